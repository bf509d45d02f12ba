"""Device profiles as package data: one TOML file a target, read by `kedge.targets`."""

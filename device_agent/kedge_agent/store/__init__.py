"""The release store: content-addressed files, releases, and which release each model serves."""

"""From a model to a release for a target."""

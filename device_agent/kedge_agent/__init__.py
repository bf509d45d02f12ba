"""kedge's on-device agent: release store, runtimes, inference server, measurement."""

__all__ = ["__version__"]

__version__ = "0.1.0"

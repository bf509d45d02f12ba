"""kedge: take a trained model to a Jetson-class device and prove it there."""

from kedge_agent import __version__

__all__ = ["__version__"]

"""What was deployed, and what came of it."""

from __future__ import annotations

from ..device import Collected, Device

__all__ = ["collect"]


def collect(device: Device) -> Collected:
    """See docs/diagnose.md."""
    return Collected({"entries": []})

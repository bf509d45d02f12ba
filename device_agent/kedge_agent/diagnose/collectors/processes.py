"""Who else computes, and who else uses the GPU."""

from __future__ import annotations

from ..device import Collected, Device

__all__ = ["collect"]


def collect(device: Device) -> Collected:
    """See docs/diagnose.md."""
    return Collected({"window_s": 0.5, "top": [], "gpu_users": None, "gpu_users_why": "not collected yet"})

"""What the kernel said of memory, GPU, heat and storage."""

from __future__ import annotations

from ..device import Collected, Device

__all__ = ["collect"]


def collect(device: Device) -> Collected:
    """See docs/diagnose.md."""
    return Collected(
        {
            "source": None,
            "lines": [],
            "counts": {"oom": None, "gpu": None, "thermal": None, "storage": None, "hung": None},
        }
    )

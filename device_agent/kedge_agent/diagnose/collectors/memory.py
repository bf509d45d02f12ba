"""Memory, swap, and who ran out of them."""

from __future__ import annotations

from ..device import Collected, Device

__all__ = ["collect"]


def collect(device: Device) -> Collected:
    """See docs/diagnose.md."""
    return Collected(
        {
            "total_bytes": None,
            "available_bytes": None,
            "swap_total_bytes": None,
            "swap_free_bytes": None,
            "zram": [],
            "pressure": None,
            "swap_in_per_s": None,
            "swap_out_per_s": None,
            "oom_kills": None,
            "cgroup": None,
        }
    )

"""What the flight recorder wrote."""

from __future__ import annotations

from ..device import Collected, Device

__all__ = ["collect"]


def collect(device: Device) -> Collected:
    """See docs/diagnose.md."""
    return Collected(
        {
            "status": {"files": 0, "bytes": 0, "first_s": None, "last_s": None, "cost": None},
            "hour": None,
            "since_deploy": {},
        }
    )

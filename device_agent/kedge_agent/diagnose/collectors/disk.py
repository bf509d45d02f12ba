"""Room on the file systems that the agent needs, and what its store takes."""

from __future__ import annotations

from ..device import Collected, Device

__all__ = ["collect"]


def collect(device: Device) -> Collected:
    """See docs/diagnose.md."""
    return Collected(
        {
            "file_systems": [],
            "store": {
                "objects_bytes": None,
                "releases": None,
                "incoming_bytes": None,
                "recorder_bytes": None,
                "log_bytes": None,
            },
        }
    )

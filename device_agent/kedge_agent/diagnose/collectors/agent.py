"""The daemon: whether it runs, answers and restarts."""

from __future__ import annotations

from ..device import Collected, Device

__all__ = ["collect"]


def collect(device: Device) -> Collected:
    """See docs/diagnose.md."""
    return Collected(
        {
            "pid": None,
            "running": None,
            "process_state": None,
            "responds": None,
            "responds_ms": None,
            "ready": None,
            "safe_mode": None,
            "info": None,
            "status": None,
            "started_at_s": None,
            "uptime_s": None,
            "threads": None,
            "open_files": None,
            "rss_bytes": None,
            "settings": {"file": None, "problem": None},
            "service": None,
            "starts": None,
            "crashes": None,
            "upgrade_last": None,
        }
    )

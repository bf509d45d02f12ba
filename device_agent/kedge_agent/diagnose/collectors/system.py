"""What the machine is, and its clock."""

from __future__ import annotations

import os
import platform
import time

from ..device import Collected, Device

__all__ = ["collect"]


def collect(device: Device) -> Collected:
    """See docs/diagnose.md."""
    return Collected(
        {
            "os": platform.system().lower(),
            "arch": platform.machine(),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "libc": None,
            "module": None,
            "l4t": None,
            "boot_id": None,
            "uptime_s": None,
            "cores": len(os.sched_getaffinity(0)),
            "load_1m": None,
            "at_s": time.time(),
            "synchronised": None,
            "container": None,
        }
    )

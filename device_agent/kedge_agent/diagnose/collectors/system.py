"""What the machine is, and its clock.

Sources: proc_uptime(5), proc_loadavg(5), adjtimex(2); systemd, src/basic/time-util.c, `ntp_synced` (the kernel raises
the largest error of a clock that follows none up to 16 s; the flag STA_UNSYNC says less, for chrony leaves it set where
the hardware's clock is not to follow), and "The Container Interface" (`/run/systemd/container`); Docker and Podman each
leave a file.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import time
from typing import Any

from ...engine.here import jetson_linux
from ...measure.sensors.tegra import module
from ..device import Collected, Device, UnavailableError

__all__ = ["collect", "synchronised"]

_CONTAINER_MARKS = ("run/systemd/container", ".dockerenv", "run/.containerenv")
# struct timex begins: modes, offset, freq, maxerror.
_TIMEX = struct.Struct("@Illl")
_TIMEX_BYTES = 512
_MOST_ERROR_US = 16_000_000


def collect(device: Device) -> Collected:
    """See docs/diagnose.md."""
    known, why = synchronised() if device.live else (None, "a recorded tree has no clock")
    data: dict[str, Any] = {
        "os": platform.system().lower(),
        "arch": platform.machine(),
        "kernel": _line(device, "proc/sys/kernel/osrelease") or platform.release(),
        "python": platform.python_version(),
        "libc": _libc(),
        "module": module(device.root),
        "l4t": jetson_linux(device.root),
        "boot_id": _line(device, "proc/sys/kernel/random/boot_id"),
        "uptime_s": _first(device, "proc/uptime"),
        "cores": len(os.sched_getaffinity(0)),
        "load_1m": _first(device, "proc/loadavg"),
        "at_s": time.time(),
        "synchronised": known,
        "synchronised_why": why,
        "container": any((device.root / mark).exists() for mark in _CONTAINER_MARKS),
    }
    return Collected(data)


def synchronised() -> tuple[bool | None, str | None]:
    """Whether the kernel's clock follows another, or why that is not known."""
    buffer = ctypes.create_string_buffer(_TIMEX_BYTES)
    try:
        told = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    except (OSError, AttributeError):
        return None, "this C library has no adjtimex"
    if told < 0:
        return None, f"adjtimex: {os.strerror(ctypes.get_errno())}"
    _, _, _, most_error_us = _TIMEX.unpack_from(buffer)
    return most_error_us < _MOST_ERROR_US, None


def _line(device: Device, path: str) -> str | None:
    try:
        return device.text(path, 256).strip() or None
    except UnavailableError:
        return None


def _first(device: Device, path: str) -> float | None:
    line = _line(device, path)
    try:
        return None if line is None else float(line.split()[0])
    except ValueError:
        return None


def _libc() -> str | None:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION")
    except (OSError, ValueError):
        return None

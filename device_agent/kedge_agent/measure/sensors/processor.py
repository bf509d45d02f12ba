"""Processor time of the system and of this process (proc_pid_stat(5), proc_stat(5))."""

from __future__ import annotations

import os
import time
from pathlib import Path

from ...formats.trust import ProcessorTime
from .files import text

__all__ = ["read_processor_time"]


def read_processor_time(root: Path) -> ProcessorTime | None:
    """What all processors did since the system started, and this process's part in it; None where it is not told."""
    system, own = text(root / "proc/stat"), text(root / "proc/self/stat")
    if system is None or own is None:
        return None
    try:
        # cpu user nice system idle iowait irq softirq steal …; guests' time is in user and nice already.
        ticks = [int(field) for field in system.splitlines()[0].split()[1:9]]
        user, nice, kernel, _, _, irq, softirq, steal = ticks
        # After the command's name, which may hold anything: utime, stime, and those of children that have ended.
        used = sum(int(field) for field in own.rpartition(")")[2].split()[11:15])
    except (IndexError, ValueError):
        return None
    a_second = os.sysconf("SC_CLK_TCK")
    busy = user + nice + kernel + irq + softirq
    return ProcessorTime(time.monotonic(), busy / a_second, steal / a_second, used / a_second)

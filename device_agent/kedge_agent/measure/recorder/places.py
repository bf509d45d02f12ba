"""Where recordings lie, and which start of the system this is."""

from __future__ import annotations

from functools import cache
from pathlib import Path

__all__ = ["MINUTES", "SECONDS", "SHARES", "boot_id", "recorder_folder"]

SECONDS, MINUTES = "seconds", "minutes"
"""The rings, and their folders' names."""

SHARES = {SECONDS: 0.625, MINUTES: 0.375}
"""Of the disk that a recording may take."""

_BOOT = "proc/sys/kernel/random/boot_id"


def recorder_folder(state: Path) -> Path:
    """The recorder's folder under a state folder."""
    return state / "recorder"


@cache
def boot_id(root: Path = Path("/")) -> str:
    """The kernel's name for this start of the system (proc(5)); empty where it has none."""
    try:
        return (root / _BOOT).read_text("ascii").strip()[:36]
    except (OSError, ValueError):
        return ""

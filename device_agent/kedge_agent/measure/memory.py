"""Memory of this process and of the system, from /proc; what cannot be read is None, never 0."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MemoryReading", "read_memory"]

_LINE = re.compile(r"^(\w+):\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True)
class MemoryReading:
    """Bytes, or None where the kernel does not say.

    rss: resident set of this process, shared pages counted whole (VmRSS).
    pss: proportional set: shared pages divided among their users (smaps_rollup).
    peak_rss: highest resident set since the process started (VmHWM).
    available: what the system could give without swapping (MemAvailable).
    """

    rss_bytes: int | None
    pss_bytes: int | None
    peak_rss_bytes: int | None
    available_bytes: int | None

    def to_json(self) -> dict[str, int | None]:
        """Plain JSON; null means unavailable."""
        return {
            "rss_bytes": self.rss_bytes,
            "pss_bytes": self.pss_bytes,
            "peak_rss_bytes": self.peak_rss_bytes,
            "available_bytes": self.available_bytes,
        }


def _kilobytes(path: Path) -> dict[str, int]:
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    return {key: int(value) * 1024 for key, value in _LINE.findall(text)}


def read_memory(proc: Path = Path("/proc")) -> MemoryReading:
    """Read this process's and the system's memory from a proc tree."""
    status = _kilobytes(proc / "self/status")
    return MemoryReading(
        rss_bytes=status.get("VmRSS"),
        pss_bytes=_kilobytes(proc / "self/smaps_rollup").get("Pss"),
        peak_rss_bytes=status.get("VmHWM"),
        available_bytes=_kilobytes(proc / "meminfo").get("MemAvailable"),
    )

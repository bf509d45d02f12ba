"""Memory of this process and of the system, from /proc; what cannot be read is None, never 0."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["MemoryReading", "Phase", "phase", "read_memory"]

_PROC = Path("/proc")
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


@dataclass
class Phase:
    """Time and memory of one part of a process's life; None: it has not ended, or the kernel does not say.

    The resident set went from begin_bytes up to peak_bytes, and was end_bytes at the end. available_bytes is what the
    system lost meanwhile (MemAvailable, begin less end): other processes are in it, and so is memory of a GPU that
    shares the system's, which no resident set counts.
    """

    ms: float | None = None
    begin_bytes: int | None = None
    peak_bytes: int | None = None
    end_bytes: int | None = None
    available_bytes: int | None = None

    def to_json(self) -> dict[str, float | int | None]:
        """Plain JSON; null means unavailable."""
        return asdict(self)


@contextlib.contextmanager
def phase(proc: Path = _PROC) -> Iterator[Phase]:
    """Measure what happens in the context; the phase is whole when it has ended.

    The kernel is asked to forget its high-water mark first (proc_pid_clear_refs(5), 5). Where it refuses, the peak is
    known only if the phase went above what was before it.
    """
    reset = _forget_peak(proc)
    before = read_memory(proc)
    found = Phase(begin_bytes=before.rss_bytes)
    start = time.perf_counter_ns()
    try:
        yield found
    finally:
        found.ms = (time.perf_counter_ns() - start) / 1e6
        after = read_memory(proc)
        found.end_bytes = after.rss_bytes
        risen = (
            None not in (before.peak_rss_bytes, after.peak_rss_bytes) and before.peak_rss_bytes != after.peak_rss_bytes
        )
        found.peak_bytes = after.peak_rss_bytes if reset or risen else None
        if before.available_bytes is not None and after.available_bytes is not None:
            found.available_bytes = before.available_bytes - after.available_bytes


def _forget_peak(proc: Path) -> bool:
    try:
        (proc / "self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _kilobytes(path: Path) -> dict[str, int]:
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    return {key: int(value) * 1024 for key, value in _LINE.findall(text)}


def read_memory(proc: Path = _PROC) -> MemoryReading:
    """Read this process's and the system's memory from a proc tree."""
    status = _kilobytes(proc / "self/status")
    return MemoryReading(
        rss_bytes=status.get("VmRSS"),
        pss_bytes=_kilobytes(proc / "self/smaps_rollup").get("Pss"),
        peak_rss_bytes=status.get("VmHWM"),
        available_bytes=_kilobytes(proc / "meminfo").get("MemAvailable"),
    )

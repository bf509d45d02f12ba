"""Memory of this process and of the system, from /proc; what cannot be read is None, never 0."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["MemoryReading", "OwnPeak", "Phase", "forget_pages", "phase", "read_libraries", "read_memory"]

_PROC = Path("/proc")
_LINE = re.compile(r"^(\w+):\s+(\d+) kB$", re.MULTILINE)
# A mapping of proc_pid_smaps(5): addresses, permissions, offset, device, inode and path; its sizes follow.
_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ (\S{4}) [0-9a-f]+ (\S+) (\d+) *(.*)$", re.MULTILINE)
# Pages of these cannot be read from a file again.
_MEMORY_ONLY = ("/memfd:", "/dev/", "/SYSV")


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


class OwnPeak:
    """The most memory that this process took of its own: its highest resident set without its program and libraries.

    What a process runs of its libraries lies once in memory for all processes and can be read from the disk again. How
    much of it counts as resident is the page cache's doing: where a library lies there in large folios, as after it was
    read from its first byte to its last, one touch maps up to 2 MiB of it. The same trial had a resident set of 88 MB
    and of 103 MB. So no limit can be held against that.

    The kernel remembers the peak of all pages together, and libraries' are taken off as of the end of each part
    (`note`): what was mapped of them after the peak, within the same part, is missing from the result. Where the
    kernel tells nothing of mappings, it is the whole resident set.

    bytes: of own memory. rss_bytes: with libraries (VmHWM). libraries_bytes: of libraries, when last noted. None:
    unavailable.
    """

    def __init__(self, proc: Path = _PROC) -> None:
        self._proc = proc
        self.bytes: int | None = None
        self.rss_bytes: int | None = None
        self.libraries_bytes: int | None = None

    def note(self) -> int | None:
        """A part has ended: raise the peak to what it came to. Returns the own memory now; None: unavailable."""
        status, libraries = _kilobytes(self._proc / "self/status"), read_libraries(self._proc)
        self.rss_bytes, now = status.get("VmHWM"), status.get("VmRSS")
        # One failed reading must not count libraries in for good.
        self.libraries_bytes = self.libraries_bytes if libraries is None else libraries
        shared = self.libraries_bytes or 0
        if self.rss_bytes is not None:
            self.bytes = max(self.bytes or 0, self.rss_bytes - shared)
        # The kernel counts the resident set less exactly than its mappings.
        return None if now is None else max(now - shared, 0)


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


def read_libraries(proc: Path = _PROC) -> int | None:
    """Bytes of this process's resident set that are unchanged pages of its program and libraries; None: unavailable.

    Those are the mappings of each file of which any part may be executed (proc_pid_smaps(5)).
    """
    try:
        text = (proc / "self/smaps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    resident: dict[tuple[str, str], int] = {}
    executed = set()
    found = list(_MAPPING.finditer(text))
    for mapping, following in itertools.zip_longest(found, found[1:]):
        permissions, device, inode, path = mapping.groups()
        if inode == "0" or path.startswith(_MEMORY_ONLY):
            continue
        sizes = dict(_LINE.findall(text, mapping.end(), following.start() if following else len(text)))
        resident.setdefault((device, inode), 0)
        resident[device, inode] += 1024 * (int(sizes.get("Rss", 0)) - int(sizes.get("Anonymous", 0)))
        if "x" in permissions:
            executed.add((device, inode))
    # A process has some of its program: where there is none, the sizes are not true, as those of qemu-user's smaps.
    return sum(resident[file] for file in executed) or None


def forget_pages(path: Path) -> None:
    """Ask the kernel to drop what it holds of a file, so that it is read from the disk; it may not follow."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)

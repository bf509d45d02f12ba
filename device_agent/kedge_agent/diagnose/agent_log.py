"""The agent's log as it lies on the disk: the newest of it, in entries with their times, and nothing that steers a
terminal."""

from __future__ import annotations

import calendar
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LogEntry", "log_bytes", "log_files", "plain", "read_entries", "tail"]

_MOST_BYTES = 8 << 20
_MOST_LINE = 4000
_FILE = re.compile(r"agent\.log(?:\.(\d{1,3}))?")
_LINE = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.,]\d{3}Z?) ([A-Z]{1,10}) (.*)", re.DOTALL)
_STAMP = re.compile(r"(\d+)-(\d+)-(\d+)[T ](\d+):(\d+):(\d+)[.,](\d+)(Z?)")


@dataclass(frozen=True)
class LogEntry:
    """What was logged at once: a line, and those below it that have no time of their own (a traceback).

    stamp: the time as it stands there; None: the entry begins before what was read. level: as Python's logging has it.
    lines: without the time and the level.
    """

    stamp: str | None
    level: str | None
    lines: tuple[str, ...]

    @property
    def at_s(self) -> float | None:
        """When, since 1970; None: it is not known."""
        found = _STAMP.fullmatch(self.stamp or "")
        if found is None:
            return None
        numbers = [int(each) for each in found.groups()[:6]]
        try:
            # Agents before 0.2 wrote the device's local time.
            whole = (
                calendar.timegm((*numbers, 0, 0, 0))
                if found[8]
                else time.mktime(time.struct_time((*numbers, 0, 0, -1)))
            )
        except (ValueError, OverflowError):
            return None
        return whole + int(found[7]) / 1000

    @property
    def at(self) -> str | None:
        """When, in UTC, as ISO 8601 has it."""
        at_s = self.at_s
        if at_s is None:
            return None
        ms = round(at_s * 1000)
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ms // 1000)) + f".{ms % 1000:03d}Z"

    @property
    def shown(self) -> tuple[str, ...]:
        """Its lines as they are shown: the first with time and level."""
        if self.stamp is None:
            return self.lines
        return (f"{self.at or self.stamp} {self.level} {self.lines[0]}", *self.lines[1:])


def log_files(state: Path) -> list[Path]:
    """The agent's log, and what was before it, the oldest first.

    Raises:
        OSError: the state folder cannot be read.
    """
    try:
        names = os.listdir(state)
    except FileNotFoundError:
        return []
    found = [(int(match[1] or 0), state / name) for name in names if (match := _FILE.fullmatch(name))]
    return [path for _, path in sorted(found, reverse=True)]


def log_bytes(state: Path) -> int | None:
    """What all of it takes; None: there is none. Raises as `log_files`."""
    sizes = []
    for path in log_files(state):
        try:
            sizes.append(path.stat().st_size)
        except OSError:
            # It was rotated meanwhile.
            continue
    return sum(sizes) if sizes else None


def tail(path: Path, most: int) -> bytes:
    """The end of a file, from the beginning of a line on.

    Raises:
        OSError: it cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        start = max(os.fstat(handle).st_size - most, 0)
        data = os.pread(handle, most, start)
    finally:
        os.close(handle)
    return data.partition(b"\n")[2] if start else data


def read_entries(state: Path) -> list[LogEntry]:
    """The newest 8 MiB of the log, oldest first.

    Raises:
        OSError: the log cannot be read.
    """
    lines: list[str] = []
    left = _MOST_BYTES
    for path in reversed(log_files(state)):
        data = tail(path, left)
        left -= len(data)
        lines[:0] = data.decode("utf-8", "replace").split("\n")[: -1 if data.endswith(b"\n") else None]
        if left <= 0:
            break
    return list(_entries(lines))


def plain(text: str) -> str:
    """The text without what a terminal would obey, or hide."""
    cut = text[:_MOST_LINE]
    return cut if cut.isprintable() else "".join(each if each.isprintable() or each == "\t" else "�" for each in cut)


def _entries(lines: list[str]) -> Iterator[LogEntry]:
    stamp, level = None, None
    gathered: list[str] = []
    for line in lines:
        found = _LINE.fullmatch(line)
        if found:
            if gathered:
                yield LogEntry(stamp, level, tuple(gathered))
            stamp, level, gathered = found[1], found[2], []
        gathered.append(plain(found[3] if found else line))
    if gathered:
        yield LogEntry(stamp, level, tuple(gathered))

"""The agent's log as it lies on the disk: the newest of it, in entries with their times, and nothing that steers a
terminal."""

from __future__ import annotations

import calendar
import errno
import os
import re
import stat
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
            sizes.append(path.lstat().st_size)
        except OSError:
            # It was rotated meanwhile.
            continue
    return sum(sizes) if sizes else None


def tail(path: Path, most: int) -> bytes:
    """The end of a file, from the beginning of a line on.

    Raises:
        OSError: it cannot be read, or is no file: a link may lead to what is none of the agent's.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "a link, which is not followed", str(path)) from error
        raise
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a file", str(path))
        start = max(found.st_size - most, 0)
        data = os.pread(handle, most, start)
    finally:
        os.close(handle)
    return data.partition(b"\n")[2] if start else data


def read_entries(state: Path) -> list[LogEntry]:
    """The newest 8 MiB of the log, oldest first; last, an error of now for each of its files that cannot be read.

    Raises:
        OSError: nothing of the log can be read.
    """
    lines: list[str] = []
    unread: list[tuple[Path, OSError]] = []
    left = _MOST_BYTES
    files = log_files(state)
    for path in reversed(files):
        try:
            data = tail(path, left)
        except FileNotFoundError:
            # It was rotated meanwhile.
            continue
        except OSError as error:
            unread.append((path, error))
            continue
        left -= len(data)
        lines[:0] = data.decode("utf-8", "replace").split("\n")[: -1 if data.endswith(b"\n") else None]
        if left <= 0:
            break
    if unread and len(unread) == len(files):
        raise unread[0][1]
    return [*_entries(lines), *(_unread(path, error) for path, error in reversed(unread))]


def plain(text: str) -> str:
    """The text without what a terminal would obey, or hide."""
    cut = text[:_MOST_LINE]
    return cut if cut.isprintable() else "".join(each if each.isprintable() or each == "\t" else "�" for each in cut)


def _unread(path: Path, error: OSError) -> LogEntry:
    why = error.strerror or type(error).__name__
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
    return LogEntry(stamp, "ERROR", (f"kedge.diagnose {path.name} is left out, for it cannot be read: {why}",))


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

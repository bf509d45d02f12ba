"""The agent's log, read through its `diagnose` process: the agent may hang, or be dead."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..report.text import printable
from ..transport.base import Deadline, Transport
from .asking import ask

__all__ = ["LEVELS", "LogEntry", "Logs", "read_logs"]

LEVELS = ("debug", "info", "warning", "error", "critical")

_MOST_BYTES = 32 << 20
_MOST_LINES = 100_000
_ALL_S = 400 * 86_400
_WITHIN_S = 60.0
_FIRST = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) ([A-Z]{1,10}) (.*)")


@dataclass(frozen=True)
class LogEntry:
    """What the agent wrote at once: a line, and those below it that have no time of their own (a traceback).

    at: in UTC by the device's clock, as ISO 8601 has it; None with `level` where the beginning is left out.
    lines: without time and level; nothing in them steers a terminal.
    """

    at: str | None
    level: str | None
    lines: tuple[str, ...]

    @property
    def shown(self) -> tuple[str, ...]:
        """Its lines as they are shown: the first with time and level."""
        return self.lines if self.at is None else (f"{self.at} {self.level} {self.lines[0]}", *self.lines[1:])


@dataclass(frozen=True)
class Logs:
    """Entries, oldest first. left_out: how many lines before them were asked for, and are more than may be told."""

    entries: Sequence[LogEntry]
    left_out: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: docs/history.md."""
        return {
            "entries": [{"at": each.at, "level": each.level, "lines": list(each.lines)} for each in self.entries],
            "left_out": self.left_out,
        }


def read_logs(transport: Transport, *, since_s: int | None = None, lines: int = 200, level: str = "debug") -> Logs:
    """The newest lines of an agent's log.

    Args:
        since_s: how many seconds back, by the device's clock; None: as far as there is a log.
        lines: how many, at the most.
        level: the least of what is told, one of LEVELS.

    Raises:
        UnreachableError: the device does not answer in time.
        IncompatibleError: what it writes makes no sense, or is too long.
        KedgeError: what the device reports.
    """
    data = bytearray()
    # What is not wanted is told too: the device counts lines of every level.
    most = lines if level == LEVELS[0] else _MOST_LINES
    words = ["logs", "--since", str(_ALL_S if since_s is None else since_s), "--lines", str(min(most, _MOST_LINES))]
    deadline = Deadline.after(_WITHIN_S, f"reading the log of {transport.name}")
    told = ask(transport, words, deadline, data.extend, limit_bytes=_MOST_BYTES)
    wanted = {each.upper() for each in LEVELS[LEVELS.index(level) :]}
    entries = [each for each in _entries(data.decode("utf-8", "replace")) if _is_of(each, wanted, level)]
    left_out = told.end.get("left_out")
    kept, dropped = _newest(entries, lines)
    return Logs(kept, dropped + (left_out if type(left_out) is int and left_out > 0 else 0))


def _is_of(entry: LogEntry, wanted: set[str], level: str) -> bool:
    return entry.level in wanted or (entry.level is None and level == LEVELS[0])


def _newest(entries: Sequence[LogEntry], most: int) -> tuple[list[LogEntry], int]:
    """The last entries that have so many lines, of the first of them maybe the end alone; and how many lines do not."""
    kept: list[LogEntry] = []
    left = most
    for entry in reversed(entries):
        if left <= 0:
            break
        kept.append(entry if len(entry.lines) <= left else LogEntry(None, None, entry.lines[-left:]))
        left -= len(kept[-1].lines)
    kept.reverse()
    return kept, sum(len(each.lines) for each in entries) - sum(len(each.lines) for each in kept)


def _entries(text: str) -> Iterator[LogEntry]:
    head: tuple[str | None, str | None] = (None, None)
    gathered: list[str] = []
    whole, _, rest = text.rpartition("\n")
    for sent in [*(whole.split("\n") if whole else ()), *([rest] if rest else ())]:
        # A device may send what its own `logs` would not.
        line = printable(sent.expandtabs(8))
        found = _FIRST.fullmatch(line)
        if found:
            if gathered:
                yield LogEntry(*head, tuple(gathered))
            head, gathered = (found[1], found[2]), []
        gathered.append(found[3] if found else line)
    if gathered:
        yield LogEntry(*head, tuple(gathered))

"""What is being done to each model, and what came of it: one file of checksummed records that is only appended to.

The file has its full size from the beginning, so that a full disk keeps nobody from writing down how a deploy ended. A
record is a line: crc32 of the rest in eight hexadecimal digits, a space, JSON. A line whose checksum is wrong is no
record: a power cut leaves one at the end, which was never acknowledged, and a bit that flipped one in the middle, whose
neighbours still count. What follows the last record is zeros.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import threading
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..failpoints import reached
from ..wire import WireError, parse_json
from .files import make_directory, move_aside, read_beginning, write_atomic
from .layout import Layout

__all__ = ["FINAL_STEPS", "STEPS", "Entry", "Journal", "read_entries", "read_unfinished"]

_LOG = logging.getLogger("kedge.journal")

STEPS = ("begun", "gated", "switching", "switched", "reverting", "committed", "reverted", "refused", "rolled-back")
"""begun: nothing changed yet. gated: the gates were passed. switching: the state is about to be renamed. switched: it
was, and is on probation. reverting: it is about to be renamed back. The others are how it ended: reverted, by the
device; rolled-back, by its user or by a later deploy (`to`, where it is told, is the release that serves then)."""

FINAL_STEPS = ("committed", "reverted", "refused", "rolled-back")

_BYTES = 256 * 1024
_KEPT = 200
_MAX_LINE = 16 * 1024
_ROOM = 8 * _MAX_LINE
_MAX_TEXT = 1000


@dataclass(frozen=True)
class Entry:
    """One record. at_s: seconds since 1970 by the device's clock, for people alone. body: what the step tells."""

    sequence: int
    model: str
    release: str
    step: str
    at_s: int
    body: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As it is written, and as the API tells it."""
        return {
            "sequence": self.sequence,
            "model": self.model,
            "release": self.release,
            "step": self.step,
            "at_s": self.at_s,
            **self.body,
        }


class Journal:
    """The journal of a store; used by the daemon alone, from any of its threads.

    Making one never fails: where the file cannot be made, on a full disk say, it is `append` that raises.
    """

    def __init__(self, layout: Layout) -> None:
        self._path = layout.root / "journal"
        self._guard = threading.Lock()
        self._entries: list[Entry] = []
        # As if there were no room: the first record then makes the file.
        self._end = _BYTES
        try:
            make_directory(layout.root, mode=0o700)
            self._open()
        except OSError as error:
            _LOG.error("the journal cannot be opened: %s", error)

    def append(self, model: str, release: str, step: str, **body: Any) -> Entry:
        """Write a record; it is on disk when this returns.

        Raises:
            OSError: it is not.
        """
        if step not in STEPS:
            raise ValueError(step)
        with self._guard:
            sequence = self._entries[-1].sequence + 1 if self._entries else 1
            entry = Entry(sequence, model, release, step, int(time.time()), body)
            line = _line(entry)
            # A deploy begins with room for all of its records: they are then written, however full the disk is.
            if self._end + (_ROOM if step == "begun" else len(line)) > _BYTES:
                self._compact()
            reached("journal.append")
            end, self._end = self._end, _BYTES
            # Until it is on disk: whatever goes wrong from here on, the next record makes another file.
            handle = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                _write_all(handle, line, end)
                reached("journal.written")
                os.fdatasync(handle)
            finally:
                os.close(handle)
            self._end = end + len(line)
            self._entries.append(entry)
            reached("journal.synced")
            return entry

    def unfinished(self) -> list[Entry]:
        """The last record of each deploy that has not ended, oldest first; a model may have two, one on probation."""
        with self._guard:
            return _unfinished(self._entries)

    def history(self, model: str | None = None) -> list[Entry]:
        """Records of a model, or of all, oldest first; the last few hundred are kept."""
        with self._guard:
            return [entry for entry in self._entries if model in (None, entry.model)]

    def _open(self) -> None:
        move_aside(self._path)
        try:
            data = _content(self._path)
        except OSError:
            self._path.rename(self._path.with_name(f"journal.damaged-{time.time_ns()}"))
            raise
        self._entries, end = _entries(data)
        if len(data) != _BYTES or self._path.is_symlink():
            self._compact()
            return
        if data[end:].strip(b"\0"):
            # It must not be taken for a record later, when the next one has been written over its beginning.
            handle = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                _write_all(handle, bytes(_BYTES - end), end)
                os.fdatasync(handle)
            finally:
                os.close(handle)
        self._end = end

    def _compact(self) -> None:
        """Write the file anew: the latest records, and room for more."""
        unfinished = {entry.sequence for entry in _unfinished(self._entries)}
        kept: list[Entry] = []
        left = _BYTES // 4
        for entry in reversed(self._entries):
            left -= len(_line(entry))
            # The last one always: numbers go on from it.
            if not kept or entry.sequence in unfinished or (left >= 0 and len(kept) < _KEPT):
                kept.append(entry)
        kept.reverse()
        lines = b"".join(map(_line, kept))
        write_atomic(self._path, lines.ljust(_BYTES, b"\0"), mode=0o600)
        self._entries, self._end = kept, len(lines)


def read_entries(layout: Layout) -> list[Entry]:
    """All records, oldest first, by what is written; for whoever is not the daemon. Changes nothing.

    Raises:
        OSError: it cannot be read.
    """
    return _entries(_content(layout.root / "journal"))[0]


def read_unfinished(layout: Layout) -> set[str]:
    """Releases whose deploys have not ended. As `read_entries`."""
    return {entry.release for entry in _unfinished(read_entries(layout))}


def _unfinished(entries: list[Entry]) -> list[Entry]:
    last = {(entry.model, entry.release): entry for entry in entries}
    return sorted((each for each in last.values() if each.step not in FINAL_STEPS), key=lambda each: each.sequence)


def _content(path: Path) -> bytes:
    with contextlib.suppress(FileNotFoundError):
        return read_beginning(path, _BYTES + 1)
    return b""


def _entries(data: bytes) -> tuple[list[Entry], int]:
    """The records of a journal, and where the last one ends."""
    entries: list[Entry] = []
    end = start = 0
    while (stop := data.find(b"\n", start)) >= 0:
        entry = _entry(data[start:stop])
        start = stop + 1
        if entry is not None and (not entries or entry.sequence > entries[-1].sequence):
            entries.append(entry)
            end = start
    return entries, end


def _line(entry: Entry) -> bytes:
    text = json.dumps(_plain(entry.to_json()), allow_nan=False).encode()
    if len(text) > _MAX_LINE - 16:
        text = json.dumps(Entry(entry.sequence, entry.model, entry.release, entry.step, entry.at_s).to_json()).encode()
    return b"%08x %b\n" % (zlib.crc32(text), text)


def _plain(value: Any) -> Any:
    """What fits into a record: long texts cut, and numbers that JSON has none for as text."""
    if isinstance(value, str):
        return value[:_MAX_TEXT]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _entry(line: bytes) -> Entry | None:
    if len(line) > _MAX_LINE or line[:9] != b"%08x " % zlib.crc32(line[9:]):
        return None
    try:
        body = parse_json(line[9:], floats=True)
        own = {key: body.pop(key) for key in ("sequence", "model", "release", "step", "at_s")}
        return Entry(**own, body=body)
    except (WireError, KeyError, TypeError, AttributeError):
        return None


def _write_all(handle: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(handle, data, offset)
        data, offset = data[written:], offset + written

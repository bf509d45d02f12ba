"""What is being done to each model, and what came of it: one file of checksummed records that is only appended to.

The file has its full size from the beginning, so that a full disk keeps nobody from writing down how a deploy ended. A
record is a line: crc32 of the rest in eight hexadecimal digits, a space, JSON. A line whose checksum is wrong, as a
power cut leaves one, ends the journal: nothing after it was ever acknowledged.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..failpoints import reached
from ..wire import WireError, parse_json
from .files import make_directory, write_atomic
from .layout import Layout

__all__ = ["FINAL_STEPS", "STEPS", "Entry", "Journal"]

_LOG = logging.getLogger("kedge.journal")

STEPS = ("begun", "gated", "switching", "switched", "reverting", "committed", "reverted", "refused", "rolled-back")
"""begun: nothing changed yet. gated: the gates were passed. switching: the state is about to be renamed. switched: it
was, and is on probation. reverting: it is about to be renamed back. The others are how it ended."""

FINAL_STEPS = ("committed", "reverted", "refused", "rolled-back")

_BYTES = 256 * 1024
_KEPT = 200
_MAX_LINE = 16 * 1024
_ROOM = 8 * _MAX_LINE


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
            self._entries, self._end = self._read()
            self._drop_torn()
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
            handle = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                _write_all(handle, line, self._end)
                reached("journal.written")
                os.fdatasync(handle)
            finally:
                os.close(handle)
            self._end += len(line)
            self._entries.append(entry)
            reached("journal.synced")
            return entry

    def unfinished(self) -> list[Entry]:
        """The last record of each model whose deploy has not ended."""
        with self._guard:
            last = {entry.model: entry for entry in self._entries}
        return [entry for entry in last.values() if entry.step not in FINAL_STEPS]

    def history(self, model: str | None = None) -> list[Entry]:
        """Records of a model, or of all, oldest first; the last few hundred are kept."""
        with self._guard:
            return [entry for entry in self._entries if model in (None, entry.model)]

    def _read(self) -> tuple[list[Entry], int]:
        try:
            with self._path.open("rb") as handle:
                data = handle.read(_BYTES)
        except FileNotFoundError:
            data = b""
        except IsADirectoryError:
            self._path.rename(self._path.with_name(f"journal.damaged-{time.time_ns()}"))
            data = b""
        entries: list[Entry] = []
        end = 0
        while (stop := data.find(b"\n", end, end + _MAX_LINE)) >= 0:
            entry = _entry(data[end:stop])
            if entry is None:
                break
            entries.append(entry)
            end = stop + 1
        return entries, end

    def _drop_torn(self) -> None:
        """What follows the last whole record must not be taken for one later."""
        if not self._path.exists() or self._path.stat().st_size != _BYTES:
            self._compact()
            return
        handle = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.pread(handle, _BYTES, self._end).strip(b"\0"):
                _write_all(handle, bytes(_BYTES - self._end), self._end)
                os.fdatasync(handle)
        finally:
            os.close(handle)

    def _compact(self) -> None:
        """Write the file anew: the latest records, and room for more. A torn record goes with it."""
        unfinished = {entry.sequence for entry in {entry.model: entry for entry in self._entries}.values()}
        recent = self._entries[-_KEPT:]
        first = recent[0].sequence if recent else 0
        kept = [entry for entry in self._entries if entry.sequence >= first or entry.sequence in unfinished]
        lines = b"".join(map(_line, kept))
        while len(lines) > _BYTES // 4:
            kept = kept[len(kept) // 2 :]
            lines = b"".join(map(_line, kept))
        write_atomic(self._path, lines.ljust(_BYTES, b"\0"), mode=0o600)
        self._entries, self._end = kept, len(lines)


def _line(entry: Entry) -> bytes:
    text = json.dumps(entry.to_json(), allow_nan=False).encode()
    if len(text) > _MAX_LINE - 16:
        # Only a reason can be as long as that.
        text = json.dumps(Entry(entry.sequence, entry.model, entry.release, entry.step, entry.at_s).to_json()).encode()
    return b"%08x %b\n" % (zlib.crc32(text), text)


def _entry(line: bytes) -> Entry | None:
    try:
        if int(line[:8], 16) != zlib.crc32(line[9:]):
            return None
        body = parse_json(line[9:], floats=True)
        own = {key: body.pop(key) for key in ("sequence", "model", "release", "step", "at_s")}
        return Entry(**own, body=body)
    except (ValueError, WireError, KeyError, TypeError, AttributeError):
        return None


def _write_all(handle: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(handle, data, offset)
        data, offset = data[written:], offset + written

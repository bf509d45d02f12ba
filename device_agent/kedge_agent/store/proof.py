"""Whether the bytes of a file on the device's disk are those that a manifest names.

Files are read, not mapped: an error of the disk is then an OSError, where a mapping would kill the process.
"""

from __future__ import annotations

import os
import queue
import stat
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..formats.digests import sha256
from ..formats.frames import frame_length
from ..formats.manifest import FileEntry
from ..wire import FRAME_BYTES

__all__ = ["RunningProof", "good_frames", "is_whole"]

_CHUNK_BYTES = 1024 * 1024


def good_frames(path: Path, entry: FileEntry, only: Collection[int] | None = None) -> set[int]:
    """Frames of a file that have the bytes that the manifest names; what cannot be read is not among them.

    The file may be shorter or longer than named, or not be there.

    Args:
        only: look at these frames alone; None: at all.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return set()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    try:
        return {
            frame
            for frame, named in enumerate(entry.frames)
            if (only is None or frame in only)
            and _hash(handle, frame * FRAME_BYTES, frame_length(entry.size_bytes, frame), buffer) == named
        }
    finally:
        os.close(handle)


def is_whole(path: Path, entry: FileEntry) -> bool:
    """Whether a file is there and is, byte for byte, what the manifest names."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_size != entry.size_bytes:
            return False
        return _hash(handle, 0, entry.size_bytes, memoryview(bytearray(_CHUNK_BYTES))) == entry.sha256
    finally:
        os.close(handle)


def _hash(handle: int, offset: int, length: int, buffer: memoryview) -> str | None:
    """sha256 of a part of a file; None where it ends before that, or cannot be read."""
    found = sha256()
    return found.hexdigest() if _take_in(found, handle, offset, length, buffer) else None


def _take_in(found: Any, handle: int, offset: int, length: int, buffer: memoryview) -> bool:
    """Have a hash take in a part of a file; False where the file ends before that, or cannot be read."""
    try:
        while length:
            got = os.preadv(handle, [buffer[: min(length, len(buffer))]], offset)
            if not got:
                return False
            found.update(buffer[:got])
            offset, length = offset + got, length - got
    except OSError:
        return False
    return True


@dataclass
class _Reading:
    """How far a file has been read. absent: frames that are not on the disk yet. readable: no read has failed."""

    entry: FileEntry
    handle: int
    absent: set[int]
    next_frame: int = 0
    readable: bool = True
    found: Any = field(default_factory=sha256)

    def read_to(self, frame: int, buffer: memoryview) -> None:
        """Read on, up to where this frame begins, or to the end."""
        begin, end = (min(each * FRAME_BYTES, self.entry.size_bytes) for each in (self.next_frame, frame))
        self.readable = self.readable and _take_in(self.found, self.handle, begin, end - begin, buffer)
        self.next_frame = frame


class RunningProof:
    """Files that are read whole while their frames arrive, close behind them: little is left to read at the end.

    The file is read, not what came: the hash is of what lies there, and what is written wrongly is found as by
    `is_whole`. Each file is read in order, up to its first frame that is not on the disk. A thread does so; where all
    that is gathered is no more than a frame, there is none, and everything is read at the end.

    Args:
        handles: open files that gather the frames, by the file's index.
        missing: frames that are not there yet, by file and frame.
    """

    def __init__(
        self, files: Sequence[FileEntry], handles: Mapping[int, int], missing: Collection[tuple[int, int]]
    ) -> None:
        self._readings = {file: _Reading(files[file], handle, set()) for file, handle in handles.items()}
        for file, frame in missing:
            self._readings[file].absent.add(frame)
        self._buffer = memoryview(bytearray(_CHUNK_BYTES))
        self._landed: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
        self._ended = False
        self._thread: threading.Thread | None = None
        if sum(files[file].size_bytes for file in handles) > FRAME_BYTES:
            self._thread = threading.Thread(target=self._follow, daemon=True)
            self._thread.start()

    def landed(self, file: int, frame: int) -> None:
        """A frame is on the disk, and proven."""
        self._landed.put((file, frame))

    def finish(self) -> frozenset[str]:
        """Read what is left, now that all frames are on the disk; sha256 of the files that are whole."""
        self.close()
        for reading in self._readings.values():
            reading.read_to(len(reading.entry.frames), self._buffer)
        return frozenset(each.entry.sha256 for each in self._readings.values() if _adds_up(each))

    def close(self) -> None:
        """Read no further; idempotent."""
        if self._thread is not None:
            self._ended = True
            self._landed.put(None)
            self._thread.join()
            self._thread = None

    def _follow(self) -> None:
        for reading in self._readings.values():
            self._read(reading)
        while (landed := self._landed.get()) is not None:
            file, frame = landed
            self._readings[file].absent.discard(frame)
            self._read(self._readings[file])

    def _read(self, reading: _Reading) -> None:
        while not self._ended and reading.next_frame not in reading.absent:
            if reading.next_frame == len(reading.entry.frames):
                return
            reading.read_to(reading.next_frame + 1, self._buffer)


def _adds_up(reading: _Reading) -> bool:
    # Frames that all are in their places are not all of a file that is longer.
    size = os.fstat(reading.handle).st_size
    return reading.readable and size == reading.entry.size_bytes and reading.found.hexdigest() == reading.entry.sha256

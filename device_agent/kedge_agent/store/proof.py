"""Whether the bytes of a file on the device's disk are those that a manifest names.

Files are read, not mapped: an error of the disk is then an OSError, where a mapping would kill the process.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path

from ..formats.digests import sha256
from ..formats.frames import frame_length
from ..formats.manifest import FileEntry
from ..wire import FRAME_BYTES

__all__ = ["good_frames", "is_whole"]

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
    try:
        while length:
            got = os.preadv(handle, [buffer[: min(length, len(buffer))]], offset)
            if not got:
                return None
            found.update(buffer[:got])
            offset, length = offset + got, length - got
    except OSError:
        return None
    return found.hexdigest()

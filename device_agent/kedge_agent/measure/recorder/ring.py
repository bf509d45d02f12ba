"""A ring of files: the newest takes records, the oldest makes room.

A record is one write, so that it survives the process at once, and a power cut after the next `sync`. A file that is
full is packed; that may fail, and the file is then kept as it is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path

from ...errors import AgentError
from ...formats.recording import Encoder, Record, pack
from ...store.files import fsync_directory, read_bounded, write_atomic

__all__ = ["Ring", "segments"]

_NAME = re.compile(r"[0-9]{10}\.rec")
_MOST_SEGMENT_BYTES = 256 << 10
_LEAST_SEGMENT_BYTES = 32 << 10
_PARTS = 24
_BLOCK_BYTES = 4096


def segments(folder: Path) -> list[Path]:
    """Files of a ring, the oldest first; none where there is no ring.

    Raises:
        OSError: the folder cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))
    except FileNotFoundError:
        return []


class Ring:
    """For one thread of the one process that may write to it. The folder is made when the first record comes.

    Args:
        folder: its parent is made too, its parent's parent is not.
        limit_bytes: of all its files, in blocks of the disk, at any time.
        boot: which start of the system this is.
    """

    def __init__(self, folder: Path, limit_bytes: int, boot: str) -> None:
        self.folder = folder
        self._limit = limit_bytes
        self._segment_bytes = max(_LEAST_SEGMENT_BYTES, min(_MOST_SEGMENT_BYTES, limit_bytes // _PARTS))
        self._encoder = Encoder(boot)
        self._handle: int | None = None
        self._path = folder
        self._size = 0
        self._sealed = 0

    @property
    def bytes(self) -> int:
        """What the files take on the disk."""
        return self._sealed + _blocks(self._size)

    def append(self, record: Record) -> int:
        """Write one record, and return the bytes it took.

        Raises:
            OSError: as the file system says; `close`, and try again later.
        """
        if self._handle is None:
            self._open()
        elif self._size >= self._segment_bytes:
            self._seal()
            self._begin(int(self._path.stem) + 1)
        assert self._handle is not None
        data = self._encoder.start(record) if record.start is not None else self._encoder.encode(record)
        written = os.write(self._handle, data)
        self._size += written
        if written != len(data):
            # The rest of it would begin in the middle of nothing.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        return written

    def sync(self) -> None:
        """What was written survives a power cut from here on.

        Raises:
            OSError: as the file system says; or the file is not in its place any more (ENOENT).
        """
        if self._handle is None:
            return
        os.fdatasync(self._handle)
        if not os.path.samestat(os.fstat(self._handle), self._path.stat()):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._path))

    def close(self) -> None:
        """Let go of the file; a later record opens it again."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _open(self) -> None:
        for folder in (self.folder.parent, self.folder):
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
                fsync_directory(folder.parent)
        for left in self.folder.glob(".*.rec.*"):
            # Somebody was killed while packing.
            left.unlink()
        found = segments(self.folder)
        # A daemon that crashes again and again goes on with the file that is there, else it would push all others out.
        self._begin(int(found[-1].stem) if found else 0)

    def _begin(self, number: int) -> None:
        self.close()
        self._make_room()
        self._path = self.folder / f"{number:010d}.rec"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._handle = os.open(self._path, flags, 0o600)
        self._size = os.fstat(self._handle).st_size
        self._sealed = sum(_blocks(path.stat().st_size) for path in segments(self.folder) if path != self._path)
        self._encoder.begin()
        if not self._size:
            fsync_directory(self.folder)

    def _make_room(self) -> None:
        """For a file that is full, and for what it is packed into before it goes."""
        found = segments(self.folder)
        sizes = [_blocks(path.stat().st_size) for path in found]
        left = sum(sizes)
        # The newest may be the one that is written to.
        for path, size in zip(found[:-1], sizes, strict=False):
            if left <= self._limit - 2 * (self._segment_bytes + _BLOCK_BYTES):
                break
            path.unlink()
            left -= size

    def _seal(self) -> None:
        with contextlib.suppress(OSError, AgentError):
            packed = pack(read_bounded(self._path, 2 * _MOST_SEGMENT_BYTES))
            write_atomic(self._path, packed, mode=0o600)


def _blocks(size: int) -> int:
    return -(-size // _BLOCK_BYTES) * _BLOCK_BYTES

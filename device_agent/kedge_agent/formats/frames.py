"""Independent 8 MiB frames: the unit of resume, of acknowledgement and of hashing.

A file of n bytes has ceil(n / 8 MiB) frames; every frame but the last is full. An empty file has
none.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

from ..wire import FRAME_BYTES

__all__ = ["FileHash", "frame_count", "frame_length", "hash_file"]


@dataclass(frozen=True)
class FileHash:
    """Size in bytes, sha256 of the whole file and of each of its frames (hex)."""

    size_bytes: int
    sha256: str
    frames: tuple[str, ...]


def frame_count(size_bytes: int) -> int:
    """How many frames a file of this size has."""
    return -(-size_bytes // FRAME_BYTES)


def frame_length(size_bytes: int, index: int) -> int:
    """Bytes in frame `index` of a file of this size.

    Raises:
        IndexError: the file has no such frame.
    """
    if not 0 <= index < frame_count(size_bytes):
        raise IndexError(f"frame {index} of a file of {size_bytes} bytes")
    return min(FRAME_BYTES, size_bytes - index * FRAME_BYTES)


def hash_file(path: Path) -> FileHash:
    """Hash a file in one pass over its bytes.

    Raises:
        OSError: the file cannot be read.
    """
    whole = hashlib.sha256()
    frames: list[str] = []
    with path.open("rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        if size:
            with mmap.mmap(handle.fileno(), size, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
                for start in range(0, size, FRAME_BYTES):
                    with view[start : start + FRAME_BYTES] as frame:
                        whole.update(frame)
                        frames.append(hashlib.sha256(frame).hexdigest())
    return FileHash(size, whole.hexdigest(), tuple(frames))

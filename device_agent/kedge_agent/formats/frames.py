"""Independent 8 MiB frames: the unit of resume, of acknowledgement and of hashing.

A file of n bytes has ceil(n / 8 MiB) frames; every frame but the last is full. An empty file has
none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..wire import FRAME_BYTES
from .digests import sha256

__all__ = ["FileHash", "frame_count", "frame_length", "hash_file"]

_CHUNK_BYTES = 1024 * 1024


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
    # Read, not mapped: an error of the disk is then an OSError, where a mapping would kill the process.
    whole = sha256()
    frames: list[str] = []
    size = 0
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with path.open("rb", buffering=0) as handle:
        while True:
            frame = sha256()
            left = FRAME_BYTES
            while left and (got := handle.readinto(buffer[: min(left, _CHUNK_BYTES)])):
                whole.update(buffer[:got])
                frame.update(buffer[:got])
                left -= got
            if left == FRAME_BYTES:
                break
            frames.append(frame.hexdigest())
            size += FRAME_BYTES - left
    return FileHash(size, whole.hexdigest(), tuple(frames))

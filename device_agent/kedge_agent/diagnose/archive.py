"""Write a snapshot's file as it comes: a tar stream, packed, in bounded memory, and nothing on the disk.

The disk may be what is full. The same members in the same order give the same bytes: they have no times, owners or
modes of their own.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable
from typing import Any

from ..formats.snapshots import MAX_MEMBER_BYTES, MAX_MEMBERS, MAX_WHOLE_BYTES, is_member_name, zstd_module

__all__ = ["Archive"]

_LEVEL = 3
_GZIP_LEVEL = 6
_PIECE_BYTES = 1 << 18
# Two blocks of zeros end a tar (POSIX.1-2017, pax, "ustar Interchange Format").
_END = bytes(2 * tarfile.BLOCKSIZE)


class Archive:
    """A snapshot's file that is being written; `write` gets its bytes.

    packing: `zstd`, or `gzip` where this Python has no zstd. Of gzip nothing else is asked than that it exists.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._names: set[str] = set()
        self._left = MAX_WHOLE_BYTES
        zstd = zstd_module()
        self.packing = "gzip" if zstd is None else "zstd"
        self._engine: Any
        self._cut: int
        if zstd is None:
            self._engine, self._cut = zlib.compressobj(_GZIP_LEVEL, wbits=31), zlib.Z_SYNC_FLUSH
        else:
            options = {zstd.CompressionParameter.compression_level: _LEVEL, zstd.CompressionParameter.checksum_flag: 1}
            self._engine = zstd.ZstdCompressor(options=options)
            self._cut = zstd.ZstdCompressor.FLUSH_BLOCK

    def refusal(self, name: str, size: int) -> str | None:
        """Why there can be no member of this name and size; None where there can."""
        if not is_member_name(name):
            return "its name is none of a member"
        if name in self._names:
            return "another has its name"
        if len(self._names) >= MAX_MEMBERS - 1:
            return f"a snapshot has at most {MAX_MEMBERS} members"
        if size > MAX_MEMBER_BYTES or size > self._left:
            return "it is too large"
        return None

    def add(self, name: str, data: bytes) -> None:
        """Add a file.

        Raises:
            ValueError: there can be none (`refusal`).
            OSError: nobody takes the bytes any more.
        """
        refusal = self.refusal(name, len(data))
        if refusal is not None:
            raise ValueError(f"{name[:80]!r}: {refusal}")
        self._names.add(name)
        self._left -= len(data)
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o600
        self._pack(info.tobuf(format=tarfile.USTAR_FORMAT))
        view = memoryview(data)
        for start in range(0, len(data), _PIECE_BYTES):
            self._pack(view[start : start + _PIECE_BYTES])
        self._pack(bytes(-len(data) % tarfile.BLOCKSIZE))

    def flush(self) -> None:
        """Pass on all that was added: where the stream is cut after this, it can be read."""
        self._pass_on(self._engine.flush(self._cut))

    def close(self) -> None:
        """End the file; nothing can be added after this."""
        self._pack(_END)
        self._pass_on(self._engine.flush())

    def _pack(self, data: bytes | memoryview) -> None:
        self._pass_on(self._engine.compress(data))

    def _pass_on(self, packed: bytes) -> None:
        if packed:
            self._write(packed)

"""Frames of a recording: each can be found, checked and passed over by itself.

    frame  = "kRc1", kind u8, length u32, crc32 u32 of kind, length and payload; payload. Little-endian.
    PACKED = frames, compressed with zlib

Whatever is torn or rotten costs its own frame; the next one is found by its first bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

__all__ = ["MAX_RECORDING_BYTES", "Kind", "Skipped", "frame", "pack", "read_frames"]

MAX_RECORDING_BYTES = 256 << 20
"""What a recording may unpack to; the rest is passed over."""

_MAGIC = b"kRc1"
_HEADER = struct.Struct("<4sBII")
_CHECKED = struct.Struct("<BI")
_BLOCK_BYTES = 64 << 10
_MAX_PAYLOAD = 256 << 10
# Whoever makes up frames that do not add up shall not keep the reader busy.
_MAX_DAMAGED = 10_000


class Kind(IntEnum):
    """Of a frame. Kinds that a version does not know it passes over."""

    TABLE = 1
    RECORD = 2
    START = 3
    PACKED = 4


@dataclass
class Skipped:
    """What a reader passed over.

    bytes: that are no frame: a torn tail, rot. damaged: places where a frame begins that does not add up.
    frames: that add up, and make no sense, or need a table that is lost.
    """

    bytes: int = 0
    damaged: int = 0
    frames: int = 0


def frame(kind: Kind, payload: bytes) -> bytes:
    """A frame of this payload."""
    crc = zlib.crc32(payload, zlib.crc32(_CHECKED.pack(kind, len(payload))))
    return _HEADER.pack(_MAGIC, kind, len(payload), crc) + payload


def read_frames(data: bytes, skipped: Skipped) -> Iterator[tuple[int, memoryview]]:
    """Kind and payload of every good frame, PACKED ones unpacked."""
    left = MAX_RECORDING_BYTES
    for kind, payload, _ in _frames(data, skipped):
        if kind != Kind.PACKED:
            yield kind, payload
            continue
        block = _unpack(payload, min(left, _MAX_PAYLOAD))
        if block is None:
            skipped.frames += 1
            continue
        left -= len(block)
        # A PACKED frame inside is none that a reader knows.
        yield from ((inner, content) for inner, content, _ in _frames(block, skipped))


def pack(data: bytes) -> bytes:
    """The same recording, smaller: runs of frames in PACKED ones, each of which begins with the table it needs.

    What is torn or rotten is left out.
    """
    out = bytearray()
    block = bytearray()
    table = b""

    def flush() -> None:
        if block:
            out.extend(frame(Kind.PACKED, zlib.compress(block, 6)))
            block.clear()

    for kind, _, whole in _frames(data, Skipped()):
        if kind == Kind.PACKED:
            flush()
            out += whole
            continue
        if len(block) + len(whole) > _BLOCK_BYTES:
            flush()
        if kind == Kind.TABLE:
            table = bytes(whole)
        elif not block:
            block += table
        block += whole
    flush()
    return bytes(out)


def _frames(data: bytes, skipped: Skipped) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Kind, payload and whole of every good frame."""
    view = memoryview(data)
    at = 0
    while at < len(data):
        found = data.find(_MAGIC, at)
        if found < 0 or len(data) - found < _HEADER.size or skipped.damaged > _MAX_DAMAGED:
            skipped.bytes += len(data) - at
            return
        skipped.bytes += found - at
        _, kind, length, crc = _HEADER.unpack_from(data, found)
        begin = found + _HEADER.size
        end = begin + length
        payload = view[begin:end]
        good = length <= _MAX_PAYLOAD and len(payload) == length
        if good and zlib.crc32(payload, zlib.crc32(_CHECKED.pack(kind, length))) == crc:
            yield kind, payload, view[found:end]
            at = end
        else:
            skipped.damaged += 1
            skipped.bytes += 1
            at = found + 1


def _unpack(payload: memoryview, limit: int) -> bytes | None:
    try:
        inflater = zlib.decompressobj()
        block = inflater.decompress(payload, limit + 1)
    except zlib.error:
        return None
    return block if inflater.eof and len(block) <= limit else None

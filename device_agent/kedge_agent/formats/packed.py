"""The packed form of a model file: rebuilds the original byte for byte, and is much smaller where weights are shared.

Weights that take few distinct values are kept as a codebook and one index a weight; the indices and all
other bytes pass through LZMA, whose adaptive range coder spends close to their entropy. The idea is that
of Han, Mao and Dally, "Deep Compression" (ICLR 2016), with a range coder in place of Huffman's code.
`docs/release-format.md` states the format for people.

Nothing here trusts the file: every size is checked before anything is decoded, what is decoded
leaves in pieces of at most 256 KiB, and the whole must have the sha256 that the header names.
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .digests import sha256

__all__ = [
    "HEADER",
    "MAGIC",
    "MAX_EXPANSION",
    "MAX_ORIGINAL_BYTES",
    "MAX_SEGMENTS",
    "SEGMENT",
    "STORED",
    "VALUE_BYTES",
    "VERSION",
    "Kind",
    "PackedError",
    "PackedInfo",
    "lzma_filters",
    "read_info",
    "unpack",
    "unpack_into",
]

MAGIC = b"kedgepak"
VERSION = 1

HEADER = struct.Struct("<8sHBBIQ32sI")
"""Magic, version, the pool's coding, zero, number of segments, size and sha256 of the original, bytes of the pool."""

SEGMENT = struct.Struct("<BBBBII")
"""Kind, coding, bytes of a value, values in the codebook less one, bytes in the original, bytes of the stream."""

STORED = 255
"""The coding of a stream that is kept as it is. Any other is LZMA's byte of properties, (pb * 5 + lp) * 9 + lc."""

MAX_ORIGINAL_BYTES = 2**31 - 1
MAX_EXPANSION = 1024
MAX_SEGMENTS = 1 << 16
VALUE_BYTES = (1, 2, 4, 8)

_MIN_DICTIONARY = 1 << 12
_MAX_DICTIONARY = 1 << 23
_PIECE = 1 << 18


class Kind:
    """How a segment's bytes are kept: in the pool shared by all such segments, in a stream of its own, as indices."""

    POOL = 0
    STREAM = 1
    CODEBOOK = 2


class PackedError(Exception):
    """The file is not what `docs/release-format.md` says; the message says why."""


@dataclass(frozen=True)
class PackedInfo:
    """What the header promises about the original."""

    original_bytes: int
    original_sha256: str
    segments: int
    pool_coding: int
    pool_bytes: int


@dataclass(frozen=True)
class _Segment:
    kind: int
    coding: int
    value_bytes: int
    values: int
    length: int
    stream_bytes: int

    @property
    def codebook_bytes(self) -> int:
        return self.values * self.value_bytes if self.kind == Kind.CODEBOOK else 0


def lzma_filters(coding: int, decoded_bytes: int) -> list[dict[str, Any]]:
    """The filter chain of a raw LZMA stream: its properties, and the least power of two that holds it as dictionary.

    Raises:
        PackedError: the byte does not name properties that LZMA has.
    """
    rest, literal_context = divmod(coding, 9)
    position, literal_position = divmod(rest, 5)
    if position > 4 or literal_context + literal_position > 4:
        raise PackedError(f"there is no coding {coding}")
    dictionary = min(max(_MIN_DICTIONARY, 1 << (decoded_bytes - 1).bit_length()), _MAX_DICTIONARY)
    properties = {"lc": literal_context, "lp": literal_position, "pb": position}
    return [{"id": lzma.FILTER_LZMA1, "dict_size": dictionary, **properties}]


def read_info(path: Path) -> PackedInfo:
    """What a packed file promises; only its header is read.

    Raises:
        PackedError: it is no packed file of this version.
        OSError: it cannot be read.
    """
    with path.open("rb") as handle:
        return _info(handle.read(HEADER.size))


def unpack(packed: bytes) -> bytes:
    """The original bytes.

    Raises:
        PackedError: the packed bytes are truncated, foreign or damaged.
    """
    out = bytearray()
    unpack_into(packed, out.extend)
    return bytes(out)


def unpack_into(packed: bytes, sink: Callable[[bytes], object]) -> None:
    """Hand the original to `sink` in pieces, in order. What was handed over is proven only when this returns.

    Raises:
        PackedError: the packed bytes are truncated, foreign or damaged.
    """
    info = _info(packed)
    whole = sha256()
    try:
        for piece in _pieces(info, memoryview(packed)):
            whole.update(piece)
            sink(piece)
    except (lzma.LZMAError, EOFError) as error:
        raise PackedError(f"a stream is damaged: {error}") from error
    if whole.hexdigest() != info.original_sha256:
        raise PackedError("what it rebuilds has another sha256 than its header names")


def _info(packed: bytes) -> PackedInfo:
    if len(packed) < HEADER.size:
        raise PackedError("it ends within its header")
    magic, version, coding, zero, segments, size, sha256, pool_bytes = HEADER.unpack_from(packed)
    if magic != MAGIC:
        raise PackedError("it is not a packed file")
    if version != VERSION or zero != 0:
        raise PackedError(f"it is packed in version {version}, this agent reads {VERSION}")
    if size > MAX_ORIGINAL_BYTES:
        raise PackedError(f"its original has {size} bytes, at most {MAX_ORIGINAL_BYTES} are allowed")
    if segments > MAX_SEGMENTS:
        raise PackedError(f"it has {segments} segments, at most {MAX_SEGMENTS} are allowed")
    return PackedInfo(size, sha256.hex(), segments, coding, pool_bytes)


def _segments(info: PackedInfo, packed: memoryview) -> list[_Segment]:
    """The table, with every size checked against the file and against what the header promises."""
    end = HEADER.size + info.segments * SEGMENT.size
    if end > len(packed):
        raise PackedError("it ends within its table of segments")
    if info.original_bytes > MAX_EXPANSION * len(packed):
        raise PackedError(f"its original is more than {MAX_EXPANSION} times as long")
    segments: list[_Segment] = []
    for kind, coding, value_bytes, last, length, stream in SEGMENT.iter_unpack(packed[HEADER.size : end]):
        if kind == Kind.POOL:
            valid = coding == value_bytes == last == stream == 0
        elif kind == Kind.STREAM:
            valid = value_bytes == last == 0
        else:
            valid = kind == Kind.CODEBOOK and value_bytes in VALUE_BYTES and length % value_bytes == 0
        if not valid or length == 0:
            raise PackedError(f"segment {len(segments)} is not acceptable")
        segments.append(_Segment(kind, coding, value_bytes, last + 1, length, stream))
    if sum(segment.length for segment in segments) != info.original_bytes:
        raise PackedError("its segments do not add up to the original's size")
    if end + info.pool_bytes + sum(s.codebook_bytes + s.stream_bytes for s in segments) != len(packed):
        raise PackedError("its segments do not add up to its own size")
    return segments


def _pieces(info: PackedInfo, packed: memoryview) -> Iterator[bytes]:
    segments = _segments(info, packed)
    cursor = HEADER.size + info.segments * SEGMENT.size
    pooled = sum(segment.length for segment in segments if segment.kind == Kind.POOL)
    pool = _Stream(packed[cursor : cursor + info.pool_bytes], info.pool_coding, pooled)
    cursor += info.pool_bytes
    for segment in segments:
        if segment.kind == Kind.POOL:
            yield from pool.read(segment.length)
            continue
        codebook = packed[cursor : cursor + segment.codebook_bytes]
        cursor += segment.codebook_bytes
        data = packed[cursor : cursor + segment.stream_bytes]
        cursor += segment.stream_bytes
        if segment.kind == Kind.STREAM:
            stream = _Stream(data, segment.coding, segment.length)
            yield from stream.read(segment.length)
        else:
            count = segment.length // segment.value_bytes
            stream = _Stream(data, segment.coding, count)
            values = np.frombuffer(codebook, dtype=f"<u{segment.value_bytes}")
            for piece in stream.read(count, _PIECE // segment.value_bytes):
                indices = np.frombuffer(piece, dtype=np.uint8)
                if indices.max() >= values.size:
                    raise PackedError("an index lies outside its codebook")
                yield values[indices].tobytes()
        stream.finish()
    pool.finish()


class _Stream:
    """A stream of a known decoded length, read in pieces, which must end where it should."""

    def __init__(self, data: memoryview, coding: int, length: int) -> None:
        self._data = data
        self._decoder = None
        if coding == STORED or length == 0:
            if len(data) != length:
                raise PackedError("a stored stream has another size than its segments")
        else:
            self._decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=lzma_filters(coding, length))

    def read(self, count: int, at_once: int = _PIECE) -> Iterator[bytes]:
        while count:
            piece = self._next(min(count, at_once))
            if not piece:
                raise PackedError("a stream ends early")
            count -= len(piece)
            yield piece

    def finish(self) -> None:
        """Refuse a stream that holds more than its segments take.

        Raises:
            PackedError: it does, or it lacks its end mark.
        """
        if self._decoder is not None and not self._decoder.eof and self._next(1):
            raise PackedError("a stream is longer than its segments")
        if self._decoder is not None and (not self._decoder.eof or self._decoder.unused_data):
            raise PackedError("a stream does not end where it should")

    def _next(self, limit: int) -> bytes:
        if self._decoder is None:
            piece, self._data = bytes(self._data[:limit]), self._data[limit:]
            return piece
        given, self._data = self._data, self._data[:0]
        return self._decoder.decompress(given, limit)

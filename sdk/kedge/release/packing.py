"""Pack a model file for a release: what `kedge_agent.formats.packed` unpacks on the device."""

from __future__ import annotations

import hashlib
import lzma
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kedge_agent.formats.packed import (
    HEADER,
    MAGIC,
    MAX_EXPANSION,
    MAX_ORIGINAL_BYTES,
    MAX_SEGMENTS,
    SEGMENT,
    STORED,
    VALUE_BYTES,
    VERSION,
    Kind,
    lzma_filters,
    unpack,
)

from ..errors import BadInputError, InternalError
from ..model.graph import Graph

__all__ = ["Span", "pack", "pack_model", "weight_spans"]

_LEAST_SAVED_BYTES = 16 * 1024
_LEAST_SAVED_SHARE = 1 / 4
_SAMPLE_BYTES = 1 << 16

# A tensor shorter than this gains less from a stream of its own than the stream costs.
_LEAST_SPAN_BYTES = 512
_MAX_VALUES = 256
# A byte is its own index: a codebook of most of them is only longer.
_MAX_VALUES_OF_ONE_BYTE = 128

# Codings are (pb * 5 + lp) * 9 + lc. Indices have no context; numbers of 2, 4 and 8 bytes have
# their place in the number; names and shapes are text.
_INDICES = 0
_NUMBERS = {1: 0, 2: 54, 4: 108, 8: 162}
_POOL = (3, 93, 108)


@dataclass(frozen=True)
class Span:
    """Where a tensor's values lie in a model file: offset and length in bytes, bytes of one value."""

    offset: int
    length: int
    value_bytes: int


@dataclass(frozen=True)
class _Part:
    kind: int
    coding: int
    value_bytes: int
    codebook: bytes
    stream: bytes


def weight_spans(original: bytes, graph: Graph) -> tuple[Span, ...]:
    """Where the constants of a graph lie in the file it was read from, in file order, none overlapping.

    The bytes are looked for, so that nothing is assumed about who wrote the file; a constant that is
    not there as plain bytes is left out, and travels with the rest of the file.
    """
    found: list[Span] = []
    cursor = 0
    for name, tensor in graph.initializers.items():
        data = tensor.raw_data or graph.array(name).tobytes()
        if len(data) < _LEAST_SPAN_BYTES:
            continue
        # Constants lie in the file in the order of the graph, unless somebody wrote it by hand.
        offset = original.find(data, cursor)
        if offset < 0:
            offset = original.find(data, 0, cursor)
        if offset < 0:
            continue
        count = int(np.prod(tensor.dims, dtype=np.int64))
        value_bytes = len(data) // count if len(data) % count == 0 and len(data) // count in VALUE_BYTES else 1
        found.append(Span(offset, len(data), value_bytes))
        cursor = offset + len(data)
    spans: list[Span] = []
    for span in sorted(found, key=lambda span: span.offset):
        if not spans or span.offset >= spans[-1].offset + spans[-1].length:
            spans.append(span)
    return tuple(spans)


def pack(original: bytes, spans: Sequence[Span] = ()) -> bytes:
    """Pack a file; a span becomes a segment of its own only where that is smaller.

    Args:
        spans: in file order, none overlapping.

    Raises:
        BadInputError: the file is larger than the format holds, or the spans do not lie in it.
    """
    if len(original) > MAX_ORIGINAL_BYTES:
        raise BadInputError(f"a file of {len(original)} bytes is too large to pack", hint="build it with --no-pack")
    # Between two segments there may be a stretch of the pool, and before the first one.
    largest = sorted(spans, key=lambda span: -span.length)[: MAX_SEGMENTS // 2 - 1]
    table: list[bytes] = []
    payload: list[bytes] = []
    pool = bytearray()
    pooled = cursor = 0
    for span in sorted(largest, key=lambda span: span.offset):
        if not cursor <= span.offset <= span.offset + span.length <= len(original):
            raise BadInputError("the spans of a packed file overlap, or lie outside it")
        data = original[span.offset : span.offset + span.length]
        part = _part(data, span.value_bytes)
        if part is None:
            continue
        pool += original[cursor : span.offset]
        if len(pool) > pooled:
            table.append(SEGMENT.pack(Kind.POOL, 0, 0, 0, len(pool) - pooled, 0))
            pooled = len(pool)
        last = len(part.codebook) // part.value_bytes - 1 if part.kind == Kind.CODEBOOK else 0
        value_bytes = part.value_bytes if part.kind == Kind.CODEBOOK else 0
        table.append(SEGMENT.pack(part.kind, part.coding, value_bytes, last, span.length, len(part.stream)))
        payload += [part.codebook, part.stream]
        cursor = span.offset + span.length
    pool += original[cursor:]
    if len(pool) > pooled:
        table.append(SEGMENT.pack(Kind.POOL, 0, 0, 0, len(pool) - pooled, 0))
    coding, stream = _coded(bytes(pool), _POOL)
    packed = _joined(original, coding, table, [stream, *payload])
    if len(original) <= MAX_EXPANSION * len(packed):
        return packed
    # A device refuses what expands further than that. Such a file is as good as empty, and travels as it is.
    return _joined(original, STORED, [SEGMENT.pack(Kind.POOL, 0, 0, 0, len(original), 0)], [original])


def _joined(original: bytes, coding: int, table: list[bytes], payload: list[bytes]) -> bytes:
    """The container; `payload` begins with the pool."""
    whole = hashlib.sha256(original).digest()
    header = HEADER.pack(MAGIC, VERSION, coding, 0, len(table), len(original), whole, len(payload[0]))
    return b"".join([header, *table, *payload])


def pack_model(model: Path, *, only_if_worthwhile: bool = False) -> bytes | None:
    """A model file packed, and proven to unpack to the very same bytes; None where that would be no smaller.

    Args:
        only_if_worthwhile: None also where it saves less than a quarter of the file, or less than 16 KiB:
            the device unpacks at every load, and a packed file of two versions has no frame in common.
            Whether it can be worthwhile is estimated first, because packing takes longer than a build.

    Raises:
        InternalError: what was packed does not unpack.
    """
    original = model.read_bytes()
    if len(original) > MAX_ORIGINAL_BYTES:
        return None
    spans = weight_spans(original, Graph.read(model))
    if only_if_worthwhile and not _is_worthwhile(len(original), _estimate(original, spans)):
        return None
    packed = pack(original, spans)
    if len(packed) >= len(original) or (only_if_worthwhile and not _is_worthwhile(len(original), len(packed))):
        return None
    if unpack(packed) != original:
        raise InternalError(f"{model} does not survive packing", hint="build it with --no-pack, and report this")
    return packed


def _is_worthwhile(original_bytes: int, packed_bytes: int) -> bool:
    saved = original_bytes - packed_bytes
    return saved >= _LEAST_SAVED_BYTES and saved >= _LEAST_SAVED_SHARE * original_bytes


def _estimate(original: bytes, spans: Sequence[Span]) -> int:
    """About how long packing would make a file, from the beginning of every span."""
    size = float(len(original))
    for span in spans:
        sample = original[span.offset : span.offset + min(span.length, _SAMPLE_BYTES)]
        part = _part(sample, span.value_bytes)
        if part is not None:
            size -= span.length - len(part.codebook) - len(part.stream) * span.length / len(sample)
    return int(size)


def _part(data: bytes, value_bytes: int) -> _Part | None:
    """A tensor as indices where it has few distinct values, else as a stream; None where the pool is no worse."""
    # As numbers without meaning: what has equal bits is equal, NaN and -0.0 included.
    values, indices = np.unique(np.frombuffer(data, dtype=f"<u{value_bytes}"), return_inverse=True)
    if values.size <= (_MAX_VALUES if value_bytes > 1 else _MAX_VALUES_OF_ONE_BYTE):
        coding, stream = _coded(indices.astype(np.uint8).tobytes(), (_INDICES,))
        part = _Part(Kind.CODEBOOK, coding, value_bytes, values.tobytes(), stream)
    else:
        coding, stream = _coded(data, (_NUMBERS[value_bytes],))
        part = _Part(Kind.STREAM, coding, value_bytes, b"", stream)
    return part if len(part.codebook) + len(stream) + SEGMENT.size < len(data) else None


def _coded(data: bytes, codings: tuple[int, ...]) -> tuple[int, bytes]:
    """The coding that makes the shortest stream, and the stream."""
    best = (STORED, data)
    for coding in codings if data else ():
        stream = lzma.compress(data, lzma.FORMAT_RAW, filters=lzma_filters(coding, len(data)))
        if len(stream) < len(best[1]):
            best = (coding, stream)
    return best

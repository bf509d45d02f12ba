"""A log-linear histogram of times: a few bytes a second keep any percentile of that second, and of any longer time.

Source: Gil Tene, HdrHistogram ("value quantization", the index from the leading bits of a value). Each octave has 32
buckets. A percentile is the middle of its bucket, at most 1/64 (1.6 %) from the time that was recorded: as near
as the end of one of 64, which HdrHistogram tells, at two thirds of the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from .latency import percentile_index

__all__ = ["LEAST_NS", "MOST_NS", "Histogram", "read_varint", "varint"]

LEAST_NS = 1_000
MOST_NS = 3_600_000_000_000
"""1 µs and 1 h: what lies outside counts as these."""

_OCTAVE_BITS = 5
_LEADING_BITS = _OCTAVE_BITS + 1
_WITHIN = (1 << _OCTAVE_BITS) - 1
_MOST_COUNT = 1 << 48
_MOST_VARINT_BITS = 63


def _index(ns: int) -> int:
    shift = ns.bit_length() - _LEADING_BITS
    return (shift << _OCTAVE_BITS) + (ns >> shift)


_LEAST_INDEX, _MOST_INDEX = _index(LEAST_NS), _index(MOST_NS)


class Histogram:
    """Counts of times by bucket; not for several threads at once."""

    __slots__ = ("_counts",)

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self._counts: dict[int, int] = dict(counts) if counts else {}

    def record(self, ns: int) -> None:
        """Count one time in nanoseconds."""
        # In the path of every request: as `_index`, less the call.
        if ns < LEAST_NS:
            ns = LEAST_NS
        elif ns > MOST_NS:
            ns = MOST_NS
        shift = ns.bit_length() - _LEADING_BITS
        index = (shift << _OCTAVE_BITS) + (ns >> shift)
        counts = self._counts
        counts[index] = counts.get(index, 0) + 1

    def merge(self, other: Histogram) -> None:
        """Count what the other one counted, too."""
        counts = self._counts
        for index, count in other._counts.items():
            counts[index] = counts.get(index, 0) + count

    @property
    def count(self) -> int:
        """How many times were recorded."""
        return sum(self._counts.values())

    def percentiles_ns(self, percentiles: Sequence[float]) -> list[float | None]:
        """Percentiles in nanoseconds by the project's rule (`formats.latency`); None each where there is nothing."""
        total = self.count
        if not total:
            return [None] * len(percentiles)
        ordered = sorted(self._counts.items())
        return [_middle(_holding(ordered, percentile_index(total, each))) for each in percentiles]

    def percentile_ns(self, percentile: float) -> float | None:
        """One of `percentiles_ns`."""
        return self.percentiles_ns((percentile,))[0]

    def buckets(self) -> Iterator[tuple[int, int, int]]:
        """Lower bound, upper bound (not part of it) and count of every bucket that holds something, in nanoseconds."""
        for index, count in sorted(self._counts.items()):
            low, width = _bounds(index)
            yield low, low + width, count

    def to_bytes(self) -> bytes:
        """Number of buckets, then of each the distance to the one before and its count: variable-length integers."""
        out = bytearray(varint(len(self._counts)))
        last = 0
        for index, count in sorted(self._counts.items()):
            out += varint(index - last) + varint(count)
            last = index
        return bytes(out)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, at: int = 0) -> tuple[Histogram, int]:
        """A histogram from its bytes, and where it ends in them.

        Raises:
            ValueError: they are none.
        """
        size, at = read_varint(data, at)
        if size > _MOST_INDEX:
            raise ValueError(f"a histogram of {size} buckets")
        counts: dict[int, int] = {}
        index = 0
        # An hour has ten thousands of these, nearly all of one byte: the call is spared.
        end = len(data)
        for _ in range(size):
            if at + 1 < end and data[at] < 128 and data[at + 1] < 128:
                step, count = data[at], data[at + 1]
                at += 2
            else:
                step, at = read_varint(data, at)
                count, at = read_varint(data, at)
            index += step
            # A bucket that is there twice would count once.
            if not step or not 0 < count < _MOST_COUNT or not _LEAST_INDEX <= index <= _MOST_INDEX:
                raise ValueError(f"bucket {index} with {count}")
            counts[index] = count
        return cls(counts), at

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and self._counts == other._counts

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Histogram({self._counts})"


def varint(value: int) -> bytes:
    """A whole number of 0 or more, 7 bits a byte, the least first, the top bit of all but the last set (LEB128)."""
    if value < 128:
        return bytes((value,))
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """The number that begins at `at`, and where it ends.

    Raises:
        ValueError: it does not end, or is too large.
    """
    value = shift = 0
    while True:
        if at >= len(data) or shift >= _MOST_VARINT_BITS:
            raise ValueError("no whole number")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _holding(ordered: Sequence[tuple[int, int]], rank: int) -> int:
    """The bucket that holds the sample of this rank."""
    for index, count in ordered:
        rank -= count
        if rank < 0:
            return index
    return ordered[-1][0]


def _bounds(index: int) -> tuple[int, int]:
    shift = (index >> _OCTAVE_BITS) - 1
    return ((1 << _OCTAVE_BITS) + (index & _WITHIN)) << shift, 1 << shift


def _middle(index: int) -> float:
    low, width = _bounds(index)
    return min(low + (width - 1) / 2, float(MOST_NS))

"""Raw samples of a benchmark: a row a request, a column a part, in nanoseconds."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from typing import Any

from ..formats.latency import summarize
from ..runtime.pool import Timing

__all__ = ["PARTS", "Samples"]

PARTS = ("queue", "input", "compute", "output")
"""What the latency of a request is made of."""

_GPU = ("h2d", "kernel", "d2h")
_COLUMNS = ("start", *PARTS, *_GPU)
_NONE = -1


class Samples:
    """Columns by name: `start`, when a request was meant to begin, from the loop's begin; PARTS; h2d, kernel, d2h.

    Where a runtime has no such part, or could not time it, there is -1.
    """

    def __init__(self) -> None:
        self.columns = {name: array("q") for name in _COLUMNS}

    def __len__(self) -> int:
        return len(self.columns["start"])

    def add(self, start_ns: int, timing: Timing) -> None:
        """One request."""
        told = (timing.h2d_ns, timing.kernel_ns, timing.d2h_ns)
        values = (start_ns, timing.queue_ns, timing.input_ns, timing.compute_ns, timing.output_ns)
        for name, value in zip(_COLUMNS, (*values, *told), strict=True):
            self.columns[name].append(_NONE if value is None else value)

    @classmethod
    def merged(cls, several: Sequence[Samples]) -> Samples:
        """All of them, by their starts."""
        out = cls()
        for name in _COLUMNS:
            for samples in several:
                out.columns[name].extend(samples.columns[name])
        if len(several) > 1:
            order = sorted(range(len(out)), key=out.columns["start"].__getitem__)
            out.columns = {name: array("q", (values[index] for index in order)) for name, values in out.columns.items()}
        return out

    def total_ms(self) -> list[float]:
        """Latency of each request: the sum of PARTS."""
        return [sum(values) / 1e6 for values in zip(*(self.columns[part] for part in PARTS), strict=True)]

    def part_ms(self, part: str) -> list[float] | None:
        """A part of each request; None where it was not measured of every one."""
        values = self.columns[part]
        return None if _NONE in values else [value / 1e6 for value in values]

    def summaries(self) -> dict[str, Any]:
        """A latency summary of the whole and of every part; null: not measured."""
        parts = {part: self.part_ms(part) for part in (*PARTS, *_GPU)}
        return {
            "total": summarize(self.total_ms()).to_json(),
            **{part: None if values is None else summarize(values).to_json() for part, values in parts.items()},
        }

    def to_bytes(self) -> tuple[list[str], bytes]:
        """Names of the columns, and the columns one after the other, in little-endian signed 64-bit integers."""
        columns = [array("q", values) for values in self.columns.values()]
        if sys.byteorder == "big":
            for values in columns:
                values.byteswap()
        return list(self.columns), b"".join(values.tobytes() for values in columns)

"""Latency summaries: one rule for percentiles wherever a figure is made.

The percentile of n sorted samples is the sample at index `max(n - 1 - int((1 - p/100) * n), 0)`, computed in single
precision: the rule trtexec uses, so that figures can be laid side by side with its own. Everything is in
milliseconds.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["LEAST_REQUESTS", "PERCENTILES", "LatencySummary", "percentile_index", "summarize"]

PERCENTILES = (50, 90, 95, 99)

LEAST_REQUESTS = 100
"""Requests of clients that a 99th percentile is taken of, at least: of fewer it is their largest."""

_FLOAT = struct.Struct("f")


@dataclass(frozen=True)
class LatencySummary:
    """Distribution of `count` samples in milliseconds."""

    count: int
    min_ms: float
    mean_ms: float
    median_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    cov: float
    """Coefficient of variation: standard deviation over mean (a ratio, not per cent)."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, the keys documented in docs/bench-report.md."""
        return asdict(self)


def percentile_index(count: int, percentile: float) -> int:
    """Index of a percentile among `count` sorted samples (trtexec's rule)."""
    # Source: NVIDIA/TensorRT, samples/common/sampleReporting.cpp, findPercentile, which takes a float. 1 - p/100 lies a
    # little beside its true value there (above it for p = 90, below it for p = 99), and the index with it.
    share = _single(1 - _single(percentile / 100))
    return max(count - 1 - int(_single(share * count)), 0)


def _single(value: float) -> float:
    """The value rounded to single precision."""
    return float(_FLOAT.unpack(_FLOAT.pack(value))[0])


def summarize(samples_ms: Sequence[float]) -> LatencySummary:
    """Summarise samples (milliseconds, any order).

    Raises:
        ValueError: there are no samples; a summary of nothing would have to invent figures.
    """
    count = len(samples_ms)
    if count == 0:
        raise ValueError("no samples to summarise")
    ordered = sorted(samples_ms)
    mean = math.fsum(ordered) / count
    deviation = math.sqrt(math.fsum((sample - mean) ** 2 for sample in ordered) / count)
    median, p90, p95, p99 = (ordered[percentile_index(count, p)] for p in PERCENTILES)
    cov = deviation / mean if mean > 0 else 0.0
    return LatencySummary(count, ordered[0], mean, median, p90, p95, p99, ordered[-1], cov)

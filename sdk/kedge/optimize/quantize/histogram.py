"""What values a tensor takes on the calibration data: extremes from all of them, a histogram of a fair share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInputError
from ...model.graph import Graph
from ...model.samples import Samples
from ...model.tap import activations

__all__ = ["BINS", "Histogram", "observe"]

BINS = 2048
_VALUES_PER_BATCH = 1 << 17


@dataclass(frozen=True)
class Histogram:
    """low, high: extremes of all values. counts: BINS equal bins between them."""

    low: float
    high: float
    counts: NDArray[np.int64]

    @property
    def centres(self) -> NDArray[np.float64]:
        """The middle of each bin."""
        width = (self.high - self.low) / len(self.counts)
        return np.asarray(self.low + width * (np.arange(len(self.counts)) + 0.5))


def observe(
    graph: Graph, tensors: Iterable[str], samples: Samples, progress: Callable[[str, float], None] | None = None
) -> dict[str, Histogram]:
    """Histograms of FP32 tensors over all samples.

    The data are run twice: once for the extremes, once to count. Of a batch of a large tensor, an
    evenly spaced share of about 131,072 values is counted.

    Raises:
        BadInputError: a tensor takes the value NaN or infinity on these data.
    """
    names = sorted(set(tensors))
    if not names:
        return {}
    low = dict.fromkeys(names, np.inf)
    high = dict.fromkeys(names, -np.inf)
    for values in activations(graph, names, samples):
        for name, array in values.items():
            if array.size:
                # numpy's minimum, unlike Python's, lets a NaN through.
                low[name] = float(np.minimum(low[name], array.min()))
                high[name] = float(np.maximum(high[name], array.max()))
    if progress is not None:
        progress("calibrating", 0.5)
    for name in names:
        if not (np.isfinite(low[name]) and np.isfinite(high[name])):
            raise BadInputError(
                f"activation {name!r} is NaN or infinite on the calibration data",
                hint="check the preprocessing, or that the model is whole",
            )
    counts = {name: np.zeros(BINS, np.int64) for name in names}
    for values in activations(graph, names, samples):
        for name, array in values.items():
            counts[name] += _count(array, low[name], high[name])
    return {name: Histogram(low[name], high[name], counts[name]) for name in names}


def _count(array: NDArray[Any], low: float, high: float) -> NDArray[np.int64]:
    flat = array.reshape(-1)
    # A stride that shares no factor with the usual sizes meets every channel and position alike.
    step = max(1, flat.size // _VALUES_PER_BATCH) | 1
    flat = flat[::step]
    if np.float32(high - low) <= 0:
        return np.bincount(np.zeros(flat.size, np.int64), minlength=BINS)
    bins = ((flat - np.float32(low)) / np.float32(high - low) * np.float32(BINS)).astype(np.int32)
    return np.bincount(np.clip(bins, 0, BINS - 1), minlength=BINS)

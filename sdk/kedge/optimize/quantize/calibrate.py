"""From the values a tensor takes to the range that is kept: min-max, percentile, entropy, mean squared error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInputError
from .affine import Grid, QuantParams, asymmetric, symmetric
from .histogram import Histogram

__all__ = [
    "CALIBRATORS",
    "CALIBRATOR_NAMES",
    "OUTPUT",
    "Range",
    "check_percentile",
    "choose_range",
    "params_for",
    "weight_params",
]

Range = tuple[float, float]

_STEPS = 80


def params_for(low: float, high: float, grid: Grid, *, is_symmetric: bool) -> QuantParams:
    """Scale and zero point of a range on a grid."""
    return symmetric(max(abs(low), abs(high)), grid) if is_symmetric else asymmetric(low, high, grid)


def choose_range(
    histogram: Histogram, calibrator: str, grid: Grid, *, is_symmetric: bool, percentile: float = 99.99
) -> Range:
    """The range to keep of a tensor.

    Args:
        calibrator: a key of CALIBRATORS. percentile: share of the values kept, in percent; used by
            that calibrator only.

    Raises:
        BadInputError: there is no such calibrator.
    """
    if calibrator not in CALIBRATORS:
        raise BadInputError(f"no calibrator named {calibrator!r}", hint=f"one of {', '.join(CALIBRATORS)}")
    if histogram.high <= histogram.low:
        return histogram.low, histogram.high
    return CALIBRATORS[calibrator](histogram, grid, is_symmetric, percentile)


def check_percentile(percentile: float) -> None:
    """Refuse what is no share of values to keep.

    Raises:
        BadInputError: it is not.
    """
    if not 50 < percentile <= 100:
        raise BadInputError(f"the percentile is {percentile:g}", hint="more than 50 and at most 100; 99.99 is usual")


def _min_max(histogram: Histogram, grid: Grid, is_symmetric: bool, percentile: float) -> Range:
    return histogram.low, histogram.high


def _percentile(histogram: Histogram, grid: Grid, is_symmetric: bool, percentile: float) -> Range:
    """Cuts (100 − percentile) %: of the magnitudes where symmetric, half at each end where not."""
    check_percentile(percentile)
    lost = 1 - percentile / 100
    if is_symmetric:
        centres = np.abs(histogram.centres)
        order = np.argsort(centres)
        share = np.cumsum(histogram.counts[order]) / histogram.counts.sum()
        bound = float(centres[order][np.searchsorted(share, 1 - lost, side="left").clip(0, len(share) - 1)])
        return max(histogram.low, -bound), min(histogram.high, bound)
    share = np.cumsum(histogram.counts) / histogram.counts.sum()
    centres = histogram.centres
    low = float(centres[np.searchsorted(share, lost / 2, side="left")])
    high = float(centres[np.searchsorted(share, 1 - lost / 2, side="left").clip(0, len(share) - 1)])
    # A one-sided tensor (after ReLU) loses nothing at 0: its whole loss belongs to the other end.
    return (histogram.low, high) if histogram.low >= 0 else (low, high)


def _mse(histogram: Histogram, grid: Grid, is_symmetric: bool, percentile: float) -> Range:
    """The clip that minimises Σ count · (x − x̂)², each end searched in turn (Banner et al. 2019 minimise the same)."""
    centres, counts = histogram.centres, histogram.counts

    def error(low: float, high: float) -> float:
        fake = params_for(low, high, grid, is_symmetric=is_symmetric).fake(centres)
        return float(np.sum(counts * (centres - fake) ** 2))

    shares = np.linspace(1.0, 0.05, _STEPS)
    if is_symmetric:
        bound = max(abs(histogram.low), abs(histogram.high))
        best = min(shares, key=lambda share: error(-share * bound, share * bound)) * bound
        return max(histogram.low, -best), min(histogram.high, best)
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    ends = (low, high)
    for _ in range(2):
        if high > 0:
            ends = (ends[0], high * min(shares, key=lambda share: error(ends[0], high * share)))
        if low < 0:
            ends = (low * min(shares, key=lambda share: error(low * share, ends[1])), ends[1])
    return ends


def _entropy(histogram: Histogram, grid: Grid, is_symmetric: bool, percentile: float) -> Range:
    """Least Kullback-Leibler divergence between the clipped distribution and its quantised form.

    Source: Migacz 2017, "8-bit inference with TensorRT", GTC. The magnitudes are used, with as many
    levels as the grid has on one side, or on both where the tensor has one sign.
    """
    bound = max(abs(histogram.low), abs(histogram.high))
    bins = len(histogram.counts)
    index = np.minimum((np.abs(histogram.centres) / bound * bins).astype(np.int64), bins - 1)
    magnitudes = np.bincount(index, weights=histogram.counts, minlength=bins)
    # The peak at exactly 0 that ReLU leaves is represented exactly by any scale; it would drown the rest.
    magnitudes[0] = magnitudes[1]
    one_sided = not is_symmetric and (histogram.low >= 0 or histogram.high <= 0)
    levels = grid.high - grid.low if one_sided else (grid.high - grid.low) // 2
    stops = (*range(max(levels, 8), bins, 8), bins)
    best = min(stops, key=lambda stop: _divergence(magnitudes, stop, levels))
    clip = bound * best / bins
    return max(histogram.low, -clip), min(histogram.high, clip)


def _divergence(counts: NDArray[Any], stop: int, levels: int) -> float:
    clipped = counts[:stop].copy()
    clipped[-1] += counts[stop:].sum()
    level = np.arange(stop) * levels // stop
    occupied = counts[:stop] > 0
    mass = np.bincount(level, weights=counts[:stop], minlength=levels)
    width = np.bincount(level, weights=occupied, minlength=levels)
    spread = np.where(occupied, mass[level] / np.maximum(width[level], 1), 0.0)
    p, q = clipped / clipped.sum(), spread / max(spread.sum(), 1e-30)
    used = p > 0
    return float(np.sum(p[used] * np.log(p[used] / np.maximum(q[used], 1e-12))))


CALIBRATORS: dict[str, Callable[[Histogram, Grid, bool, float], Range]] = {
    "min-max": _min_max,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}
"""From a tensor's histogram alone."""

OUTPUT = "output"
"""The calibrator that needs the graph: `output_mse`. Tensors that it cannot judge take "mse"."""

CALIBRATOR_NAMES = (*CALIBRATORS, OUTPUT)


def weight_params(weights: NDArray[np.float32], grid: Grid, axis: int | None, *, search: bool) -> QuantParams:
    """Symmetric parameters for weights, one scale a channel along `axis`.

    Args:
        search: choose each channel's clip by least squared error instead of its largest magnitude;
            worth it for few bits, where one outlier costs the others their resolution.
    """
    rows = weights.reshape(1, -1) if axis is None else np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1)
    amax = np.abs(rows).max(axis=1, initial=0.0).astype(np.float64)
    if search:
        best = np.full(len(amax), np.inf)
        chosen = amax.copy()
        for share in np.linspace(1.0, 0.4, 31):
            fake = symmetric(amax * share, grid, axis=0).fake(rows)
            error = np.sum((rows - fake) ** 2, axis=1)
            better = error < best
            best, chosen = np.where(better, error, best), np.where(better, amax * share, chosen)
        amax = chosen
    return symmetric(float(amax[0]), grid) if axis is None else symmetric(amax, grid, axis)

"""Activation ranges by the error they cause at the outputs of the layers that read them.

For the tensor x and the layers with weights Wᵢ that read it, with Ŵᵢ as they will be quantised, the range [a, b] of
x's grid minimises

    Σᵢ E‖Wᵢ x − Ŵᵢ x̂‖² / E‖Wᵢ x‖²

over shrunk ranges a = α·min, b = β·max. A reader without weights (a residual Add) sees x itself, W = Ŵ = 1. This is
layer by layer the optimum argmin E‖M(x) − Q(M)(x)‖²; so is the calibration of Nahshan et al. 2021, "Loss Aware
Post-training Quantization", for the whole network. A clip that spares the values a layer's weights look at can
differ from the one with the least error of x, which `calibrate` finds as "mse".

The products are taken on a random sample of the rows that the weights meet, some 2¹⁸ values a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...model.graph import Graph
from ...model.samples import Samples
from ...model.tap import activations as tap
from .affine import Grid, QuantParams
from .calibrate import Range, params_for
from .patches import as_matrix, has_rows, one_thread_below, rows
from .placement import weight_site

__all__ = ["Readers", "judge_ranges"]

_SAMPLES = 64
_VALUES = 1 << 18
_ROWS = (64, 2048)
# Coarse shares of the extreme from 1 to 0.1, then between the neighbours of the best.
_COARSE = np.geomspace(1.0, 0.1, 14)
_FINE = (_COARSE[1] / _COARSE[0]) ** np.array([-0.75, -0.5, -0.25, 0.25, 0.5, 0.75])


@dataclass(frozen=True)
class Readers:
    """Who reads a tensor's quantised form: layers with weights as (tensor, layer), and others as (tensor, "").

    The tensor named there is the one itself, or one that moves its values and shares its scale.
    """

    extremes: Range
    readers: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Judge:
    """rows: [groups, rows, k]; wanted: what the exact weights make of them; weights: [groups, k, m], or None for 1."""

    rows: torch.Tensor
    wanted: torch.Tensor
    power: float
    weights: torch.Tensor | None

    def error(self, params: QuantParams) -> float:
        """Relative squared error of the output with the rows on a grid."""
        scale, zero = float(params.scale), int(params.zero_point)
        q = torch.round(self.rows / scale).add_(zero).clamp_(params.low, params.high).sub_(zero).mul_(scale)
        made = q if self.weights is None else q @ self.weights
        return float(((made - self.wanted) ** 2).sum()) / self.power


def judge_ranges(
    graph: Graph,
    wanted: Mapping[str, Readers],
    weights: Mapping[str, QuantParams],
    grid: Grid,
    samples: Samples,
    *,
    is_symmetric: bool,
    seed: int,
) -> dict[str, Range]:
    """The best range of each tensor that some layer known to `patches.rows` reads; other tensors are left out.

    Args:
        weights: the grid of each layer's weights. samples: the first 64 are used.
    """
    known = {
        name: entry
        for name, entry in wanted.items()
        if any(layer and has_rows(graph, graph.by_name[layer]) for _, layer in entry.readers)
    }
    pairs = sorted({pair for entry in known.values() for pair in entry.readers})
    judges = _judges(graph, pairs, weights, samples.first(_SAMPLES), np.random.default_rng(seed))
    out = {}
    for name, entry in known.items():
        found = [judges[pair] for pair in entry.readers if pair in judges]
        if any(judge.weights is not None for judge in found) and entry.extremes[0] < entry.extremes[1]:
            out[name] = _search(entry.extremes, found, grid, is_symmetric=is_symmetric)
    return out


def _search(extremes: Range, judges: Sequence[_Judge], grid: Grid, *, is_symmetric: bool) -> Range:
    def error(low: float, high: float) -> float:
        params = params_for(low, high, grid, is_symmetric=is_symmetric)
        return sum(judge.error(params) for judge in judges)

    with one_thread_below(max(judge.rows.shape[-1] for judge in judges)):
        if is_symmetric:
            bound = max(abs(extremes[0]), abs(extremes[1]))
            kept = bound * _best_share(lambda share: error(-share * bound, share * bound))
            return max(extremes[0], -kept), min(extremes[1], kept)
        low, high = min(extremes[0], 0.0), max(extremes[1], 0.0)
        ends = low, high
        # Each end alone, and the first once more where the second has moved.
        for end in ("high", "low", "high") if low < 0 < high else ("high",) if high > 0 else ("low",):
            if end == "high":
                ends = ends[0], high * _best_share(lambda share, a=ends[0]: error(a, high * share))  # type: ignore[misc]
            else:
                ends = low * _best_share(lambda share, b=ends[1]: error(low * share, b)), ends[1]  # type: ignore[misc]
        return ends


def _best_share(error: Callable[[float], float]) -> float:
    errors = {float(share): error(float(share)) for share in _COARSE}
    coarse = min(errors, key=lambda share: errors[share])
    errors |= {float(share): error(float(share)) for share in coarse * _FINE if share <= 1}
    return min(errors, key=lambda share: errors[share])


def _judges(
    graph: Graph,
    pairs: Sequence[tuple[str, str]],
    weights: Mapping[str, QuantParams],
    samples: Samples,
    random: np.random.Generator,
) -> dict[tuple[str, str], _Judge]:
    drawn: dict[tuple[str, str], list[torch.Tensor]] = {pair: [] for pair in pairs}
    usable = [pair for pair in pairs if not pair[1] or has_rows(graph, graph.by_name[pair[1]])]
    for batch in tap(graph, sorted({tensor for tensor, _ in usable}), samples):
        for tensor, layer in usable:
            if tensor in batch:
                for row in batch[tensor]:
                    drawn[tensor, layer].append(_drawn(graph, layer, row[None], samples.count, random))
    out = {}
    for tensor, layer in usable:
        sampled = torch.cat(drawn[tensor, layer], dim=1)
        exact = rounded = None
        made = sampled
        if layer:
            node = graph.by_name[layer]
            site = weight_site(graph, node)
            assert site is not None
            values = graph.array(site.tensor).astype(np.float32)
            exact, rounded = (
                _columns(as_matrix(node, each), len(sampled)) for each in (values, weights[layer].fake(values))
            )
            made = sampled @ exact
        power = float((made**2).sum())
        if power > 0:
            out[tensor, layer] = _Judge(sampled, made, power, rounded)
    return out


def _drawn(graph: Graph, layer: str, x: NDArray[Any], samples: int, random: np.random.Generator) -> torch.Tensor:
    """Some of the rows of one sample, as many as make `_VALUES` values over all samples."""
    exact = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
    found = rows(graph, graph.by_name[layer], exact) if layer else exact.reshape(1, -1, 1)
    groups, count, width = found.shape
    share = np.clip(_VALUES // (groups * width), *_ROWS) if layer else _VALUES // 4
    chosen = random.integers(0, count, max(1, min(count, int(share) // samples)))
    return found[:, torch.from_numpy(chosen)]


def _columns(matrix: NDArray[Any], groups: int) -> torch.Tensor:
    """[m, k] as [groups, k, m of a group]."""
    return torch.from_numpy(np.array(matrix, dtype=np.float32)).reshape(groups, -1, matrix.shape[1]).mT.contiguous()

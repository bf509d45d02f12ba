"""AdaRound: round each weight up or down so that the layer's output stays closest to what it was.

Source: Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization". For a
layer with weight W on a grid of scale s, with h(V) = clip(σ(V)·(ζ − γ) + γ, 0, 1), ζ = 1.1,
γ = −0.1, minimise over V

    ‖ W x − Ŵ x̂ ‖²  +  λ Σ (1 − |2 h(V) − 1|^β),      Ŵ = s · clamp(⌊W / s⌋ + h(V), low, high)

with β falling from 20 to 2, so that h ends at 0 or 1. x is the layer's input on the calibration
data, x̂ the same as the quantised layer sees it.

The first term is quadratic in Ŵ, so the data enter only through two matrices that are summed once,
A = Σ x̂ x̂ᵀ and B = Σ x̂ xᵀ:  tr(Ŵ A Ŵᵀ) − 2 tr(Ŵ B Wᵀ) + constant. Every step then sees all the
data, and costs one matrix product instead of one convolution.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from ...model.graph import Graph
from ...model.samples import Samples
from ...model.tap import activations as tap
from ..work import Work
from .affine import QuantParams
from .patches import as_matrix, from_matrix, has_rows, one_thread_below, rows
from .placement import weight_site

__all__ = ["round_adaptively"]

_STEPS = 1000
_WARM_UP = 0.2
_SAMPLES = 256
_CHUNK_BYTES = 4 << 20
_LEARNING_RATE = 2e-2
_REGULARISATION = 1e-2
_ZETA, _GAMMA = 1.1, -0.1


def round_adaptively(
    graph: Graph,
    weights: Mapping[str, QuantParams],
    activations: Mapping[str, QuantParams],
    samples: Samples,
    work: Work,
) -> dict[str, NDArray[np.float32]]:
    """FP32 weights that lie on their grids, rounded adaptively, by layer name.

    Layers that `has_rows` does not know (transposed convolutions) are rounded to nearest.

    Args:
        weights: the grid of each layer's weight. activations: the grid of each layer's input tensor.
    """
    some = samples.first(_SAMPLES)
    out = {}
    for index, (layer, params) in enumerate(weights.items()):
        work.progress("adaptive rounding", index / len(weights))
        node = graph.by_name[layer]
        site = weight_site(graph, node)
        assert site is not None
        original = graph.array(site.tensor).astype(np.float32)
        if not has_rows(graph, node):
            out[layer] = params.fake(original)
            continue
        a, b, c = _moments(graph, layer, activations.get(node.input[0]), some)
        matrix = as_matrix(node, original)
        scale = np.broadcast_to(params.scale.reshape(-1), (matrix.shape[0],))
        with one_thread_below(matrix.shape[1]):
            matrix = _choose(matrix, scale, params, (a, b, c))
        out[layer] = from_matrix(node, matrix, original.shape)
    return out


def _moments(
    graph: Graph, layer: str, grid: QuantParams | None, samples: Samples
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Σ x̂ x̂ᵀ, Σ x̂ xᵀ and Σ x xᵀ over all rows of the samples, each [groups, k, k]."""
    node = graph.by_name[layer]
    total: list[torch.Tensor] = []
    for batch in tap(graph, [node.input[0]], samples):
        x = batch[node.input[0]].astype(np.float32)
        # Patches repeat each value as often as the kernel has places: of large images, a few at a time.
        for part in np.array_split(x, max(1, min(len(x), x.nbytes // _CHUNK_BYTES))):
            seen = part if grid is None else grid.fake(part)
            exact = rows(graph, node, torch.from_numpy(part))
            rounded = rows(graph, node, torch.from_numpy(np.ascontiguousarray(seen)))
            parts = [rounded.mT @ rounded, rounded.mT @ exact, exact.mT @ exact]
            total = parts if not total else [sum_ + part for sum_, part in zip(total, parts, strict=True)]
    return total[0], total[1], total[2]


def _choose(
    weights: NDArray[np.float32],
    scales: NDArray[np.float32],
    params: QuantParams,
    moments: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> NDArray[np.float32]:
    a, b, c = moments
    groups = a.shape[0]
    w = torch.from_numpy(np.array(weights, dtype=np.float32)).reshape(groups, -1, weights.shape[1])
    scale = torch.from_numpy(np.array(scales, dtype=np.float32)).reshape(groups, -1, 1)
    power = float(((w @ c) * w).sum()) + 1e-30
    target = w @ b.mT
    floor = torch.floor(w / scale)
    rest = (w / scale - floor).clamp(1e-4, 1 - 1e-4)
    # V such that h(V) is the fraction itself: the search starts at the unrounded weight.
    choice = (-torch.log((_ZETA - _GAMMA) / (rest - _GAMMA) - 1)).requires_grad_(True)
    optimiser = torch.optim.Adam([choice], lr=_LEARNING_RATE)

    def share() -> torch.Tensor:
        return (torch.sigmoid(choice) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)

    for step in range(_STEPS):
        h = share()
        soft = scale * (floor + h).clamp(params.low, params.high)
        loss = (((soft @ a) * soft).sum() - 2 * (soft * target).sum() + power) / power
        done = step / _STEPS
        if done > _WARM_UP:
            beta = 2 + 9 * (1 + float(np.cos(np.pi * (done - _WARM_UP) / (1 - _WARM_UP))))
            loss = loss + _REGULARISATION * (1 - (2 * h - 1).abs().pow(beta)).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        final = scale * (floor + (share() >= 0.5).to(torch.float32)).clamp(params.low, params.high)
    return np.asarray(final.reshape(weights.shape).numpy(), dtype=np.float32)

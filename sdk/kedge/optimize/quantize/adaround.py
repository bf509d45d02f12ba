"""AdaRound: round each weight up or down so that the layer's output stays closest to what it was.

Source: Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization". For a
layer with weight W on a grid of scale s, with h(V) = clip(σ(V)·(ζ − γ) + γ, 0, 1), ζ = 1.1,
γ = −0.1, minimise over V

    ‖ W x − Ŵ x ‖²  +  λ Σ (1 − |2 h(V) − 1|^β),      Ŵ = s · clamp(⌊W / s⌋ + h(V), low, high)

with β falling from 20 to 2, so that h ends at 0 or 1. x is the layer's input on the calibration
data, quantised as the layer will see it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...model.graph import Graph
from ...model.samples import Samples
from ...model.tap import activations as tap
from ..work import Work
from .affine import QuantParams
from .placement import weight_site
from .single_layer import single_layer

if TYPE_CHECKING:
    import torch

__all__ = ["round_adaptively"]

_STEPS = 800
_WARM_UP = 0.2
_BATCH = 32
_SAMPLES = 512
_LEARNING_RATE = 1e-2
_REGULARISATION = 0.01
_ZETA, _GAMMA = 1.1, -0.1


def round_adaptively(
    graph: Graph,
    weights: Mapping[str, QuantParams],
    activations: Mapping[str, QuantParams],
    samples: Samples,
    work: Work,
) -> dict[str, NDArray[np.float32]]:
    """FP32 weights that lie on their grids, rounded adaptively, by layer name.

    Args:
        weights: the grid of each layer's weight. activations: the grid of each layer's input tensor.
    """
    some = samples.first(_SAMPLES)
    out = {}
    for index, (layer, params) in enumerate(weights.items()):
        work.progress("adaptive rounding", index / len(weights))
        source = graph.by_name[layer].input[0]
        x = np.concatenate([batch[source] for batch in tap(graph, [source], some)])
        seen = activations[source].fake(x) if source in activations else x
        out[layer] = _round_layer(single_layer(graph, layer), layer, source, x, seen, params, work.seed)
    return out


def _round_layer(
    alone: Graph,
    layer: str,
    source: str,
    x: NDArray[np.float32],
    seen: NDArray[np.float32],
    params: QuantParams,
    seed: int,
) -> NDArray[np.float32]:
    import torch

    from ..train.view import TorchView

    site = weight_site(alone, alone.by_name[layer])
    assert site is not None
    weight = torch.from_numpy(alone.array(site.tensor).astype(np.float32))
    shape = [1] * weight.ndim
    if params.axis is not None:
        shape[params.axis] = -1
    scale = torch.from_numpy(params.scale.astype(np.float32)).reshape(shape)
    floor = torch.floor(weight / scale)
    rest = (weight / scale - floor).clamp(1e-4, 1 - 1e-4)
    # V such that h(V) is the fraction itself: the search starts at the unrounded weight.
    choice = (-torch.log((_ZETA - _GAMMA) / (rest - _GAMMA) - 1)).requires_grad_(True)
    view = TorchView(alone)
    output = alone.output_names[0]
    optimiser = torch.optim.Adam([choice], lr=_LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    exact, rounded = torch.from_numpy(x), torch.from_numpy(np.ascontiguousarray(seen))
    with torch.no_grad():
        wanted = torch.cat([view({source: part})[output] for part in exact.split(_BATCH * 4)])
        size = float(wanted.pow(2).mean()) + 1e-12

    def soft() -> torch.Tensor:
        h = (torch.sigmoid(choice) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)
        return scale * (floor + h).clamp(params.low, params.high)

    view.weight_hook = lambda name, original: _as_module(soft(), original)
    for step in range(_STEPS):
        picked = torch.randint(exact.shape[0], (_BATCH,), generator=generator)
        found = view({source: rounded[picked]})[output]
        loss = (found - wanted[picked]).pow(2).mean() / size
        done = step / _STEPS
        if done > _WARM_UP:
            beta = 2 + 18 * 0.5 * (1 + float(np.cos(np.pi * (done - _WARM_UP) / (1 - _WARM_UP))))
            h = (torch.sigmoid(choice) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)
            loss = loss + _REGULARISATION * (1 - (2 * h - 1).abs().pow(beta)).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        up = (torch.sigmoid(choice) * (_ZETA - _GAMMA) + _GAMMA >= 0.5).to(torch.float32)
        final = scale * (floor + up).clamp(params.low, params.high)
    return np.asarray(final.numpy(), dtype=np.float32)


def _as_module(weight: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """The weight as the view's module holds it: Linear modules keep MatMul weights transposed."""
    return weight if weight.shape == original.shape else weight.T

"""2:4 sparsity: of every four weights along the input channels, two are 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...model.graph import Graph
from ..work import Result, Work
from .changes import BYTES_NOT_TIME, sizes
from .weights import Layer, chosen, lift_constants, set_zeros, values, weight_layers, zeros

__all__ = ["PruneTwoFour", "check_two_four"]


@dataclass(frozen=True)
class PruneTwoFour:
    """Zero the two weights of least |w| in every group of four input channels (Mishra et al. 2021).

    The groups run along the axis that is summed, one group for each output channel and kernel position: the pattern
    that NVIDIA's sparse tensor cores and TensorRT's SPARSE_WEIGHTS take. Layers whose input channels are no multiple of
    4 cannot have it and are left, with their names in the notes; so are transposed convolutions.

    exclude: layers left alone; names or shell patterns.
    """

    kind: ClassVar[str] = "prune-2:4"

    exclude: tuple[str, ...] = ()

    def apply(self, graph: Graph, work: Work) -> Result:
        """Prune.

        Raises:
            BadInputError: a layer named is not there.
        """
        pruned = lift_constants(graph)
        layers = weight_layers(pruned)
        left = chosen(self.exclude, [layer.name for layer in layers])
        unfit = {layer.name: reason for layer in layers if (reason := _unfit(pruned, layer, layers))}
        done = [layer for layer in layers if layer.name not in left and layer.name not in unfit]
        for layer in done:
            magnitude = _groups(np.abs(values(pruned, layer)), layer)
            smallest = np.argsort(magnitude, axis=1, kind="stable")[:, :2]
            mask = np.zeros(magnitude.shape, np.bool_)
            np.put_along_axis(mask, smallest, values=True, axis=1)
            set_zeros(pruned, layer, _ungroup(mask, pruned.array(layer.tensor).shape, layer))
        changed = {**sizes(graph, pruned, work), "layers": [layer.name for layer in done], "unfit": unfit}
        return Result(pruned, {**changed, "left": sorted(left)}, tuple(_notes(done, unfit)))


def check_two_four(graph: Graph) -> dict[str, Any]:
    """Whether each layer's weight has the pattern: at most two of every four input channels are not zero.

    Weights behind DequantizeLinear are read as the layer sees them: a zero is what equals the zero point.

    Returns:
        {"holds": [names], "broken": {name: groups with three or four weights that are not zero},
        "unfit": {name: why it cannot have the pattern}}
    """
    lifted = lift_constants(graph)
    layers = weight_layers(lifted)
    holds, broken, unfit = [], {}, {}
    for layer in layers:
        reason = _unfit(lifted, layer, layers)
        if reason:
            unfit[layer.name] = reason
            continue
        kept = np.count_nonzero(_groups(~zeros(lifted, layer), layer), axis=1)
        wrong = int(np.count_nonzero(kept > 2))
        if wrong:
            broken[layer.name] = wrong
        else:
            holds.append(layer.name)
    return {"holds": holds, "broken": broken, "unfit": unfit}


def _unfit(graph: Graph, layer: Layer, layers: list[Layer]) -> str:
    dims = graph.initializers[layer.tensor].dims
    if layer.op == "ConvTranspose":
        return "a transposed convolution"
    if dims[layer.reduction_axis] % 4:
        return f"{dims[layer.reduction_axis]} input channels{' a group' if layer.groups > 1 else ''}, no multiple of 4"
    if any(other.tensor == layer.tensor and other.reduction_axis != layer.reduction_axis for other in layers):
        return "its weight is shared with a layer that sums over another axis"
    return ""


def _groups(weight: NDArray[Any], layer: Layer) -> NDArray[Any]:
    """Groups of four input channels as rows [groups, 4]."""
    return np.moveaxis(weight, layer.reduction_axis, -1).reshape(-1, 4)


def _ungroup(rows: NDArray[Any], shape: tuple[int, ...], layer: Layer) -> NDArray[Any]:
    """The inverse of `_groups`."""
    moved = [*(size for axis, size in enumerate(shape) if axis != layer.reduction_axis), shape[layer.reduction_axis]]
    return np.moveaxis(rows.reshape(moved), -1, layer.reduction_axis)


def _notes(done: list[Layer], unfit: dict[str, str]) -> list[str]:
    if not done:
        return ["nothing to prune: no layer has a constant weight with a multiple of 4 input channels"]
    claim = "sparse tensor cores may use it, which is not claimed here without a measurement on a GPU"
    notes = [f"2:4 in {len(done)} layers: on onnxruntime's CPU this {BYTES_NOT_TIME}; {claim}"]
    if unfit:
        notes.append("left: " + ", ".join(f"{name} ({reason})" for name, reason in sorted(unfit.items())))
    return notes

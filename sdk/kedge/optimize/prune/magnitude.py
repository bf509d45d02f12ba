"""Unstructured pruning: the weights of smallest magnitude become 0."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInputError
from ...model.graph import Graph
from ..work import Result, Work
from .changes import BYTES_NOT_TIME, sizes
from .weights import Layer, chosen, lift_constants, set_zeros, values, weight_layers

__all__ = ["PruneMagnitude"]


@dataclass(frozen=True)
class PruneMagnitude:
    """Set the weights of least |w| to 0 (Han et al. 2015, "Learning both Weights and Connections").

    ratio: share of the weights that are 0 afterwards, 0 to 1. threshold: when above 0, in place of the ratio: all
    weights with |w| below it go. scope: "layer" takes the ratio of each layer. "global" takes it of all together,
    ranked by w² / Σ v² over the weights v of the layer with |v| ≥ |w| (LAMP, Lee et al. 2021): plain |w| would compare
    layers whose scales a folded BatchNormalization has set, and empties some of them.
    layers: "name=0.7" gives a layer a ratio of its own. exclude: layers left alone; names or shell patterns, in both.
    keep_ends: the first and the last layer stay as they are, unless `layers` names them. They hold few of the weights
    and do the most harm: the first sees all that the others will, the last makes the scores.
    """

    kind: ClassVar[str] = "prune-magnitude"

    ratio: float = 0.5
    threshold: float = 0.0
    scope: str = "global"
    layers: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    keep_ends: bool = True

    def __post_init__(self) -> None:
        _check_ratio(self.ratio, "ratio")
        if not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise BadInputError(f"threshold {self.threshold} is no magnitude", hint="give a number of 0 or more")
        if self.scope not in ("global", "layer"):
            raise BadInputError(f"scope {self.scope!r} is not known", hint="global or layer")
        self._overrides()

    def apply(self, graph: Graph, work: Work) -> Result:
        """Prune.

        Raises:
            BadInputError: a layer named is not there.
        """
        pruned = lift_constants(graph)
        found = _one_a_constant(weight_layers(pruned))
        ratios = {
            name: ratio for pattern, ratio in self._overrides().items() for name in chosen([pattern], list(found))
        }
        left = chosen(self.exclude, list(found))
        ends = {next(iter(found)), list(found)[-1]} - set(ratios) if found and self.keep_ends else set()
        free = [layer for name, layer in found.items() if name not in left | ends and name not in ratios]
        own = {name: ratio for name, ratio in ratios.items() if name not in left}
        for name, ratio in own.items():
            _prune_share(pruned, [found[name]], ratio)
        if self.threshold > 0:
            for layer in free:
                set_zeros(pruned, layer, np.abs(values(pruned, layer)) < self.threshold)
        elif self.scope == "layer":
            for layer in free:
                _prune_share(pruned, [layer], self.ratio)
        else:
            _prune_share(pruned, free, self.ratio)
        touched = [*free, *(found[name] for name in own)]
        shares = {layer.name: float(np.mean(values(pruned, layer) == 0)) for layer in touched}
        changed = {**sizes(graph, pruned, work), "zeros": shares, "left": sorted(left | ends)}
        return Result(pruned, changed, tuple(_notes(shares, ends - left)))

    def _overrides(self) -> dict[str, float]:
        ratios = {}
        for entry in self.layers:
            name, equals, text = entry.rpartition("=")
            try:
                ratio = float(text)
            except ValueError:
                ratio = math.nan
            if not (equals and name and math.isfinite(ratio)):
                raise BadInputError(f"{entry!r} names no layer and ratio", hint="write it as: conv1=0.7")
            _check_ratio(ratio, f"the ratio of {name}")
            ratios[name] = ratio
        return ratios


def _check_ratio(ratio: float, what: str) -> None:
    if not 0 <= ratio < 1:  # NaN is refused, too
        raise BadInputError(f"{what} is {ratio}", hint="give a share of the weights, 0 or more and below 1")


def _one_a_constant(layers: Iterable[Layer]) -> dict[str, Layer]:
    """Layers by name; of those that share a constant, the first."""
    first: dict[str, Layer] = {}
    for layer in layers:
        first.setdefault(layer.tensor, layer)
    return {layer.name: layer for layer in first.values()}


def _prune_share(graph: Graph, layers: list[Layer], ratio: float) -> None:
    """Zero the share of least score of all layers together: exactly round(ratio · weights) of them."""
    if not layers:
        return
    scores = [_lamp(values(graph, layer)) for layer in layers]
    together = np.concatenate(scores)
    count = round(ratio * together.size)
    if count == 0:
        return
    mask = np.zeros(together.size, np.bool_)
    mask[np.argpartition(together, count - 1)[:count]] = True
    starts = np.cumsum([0, *(part.size for part in scores)])
    for layer, start, end in zip(layers, starts, starts[1:], strict=False):
        set_zeros(graph, layer, mask[start:end].reshape(graph.initializers[layer.tensor].dims))


def _lamp(weight: NDArray[np.float32]) -> NDArray[np.float64]:
    """LAMP scores, flat; within a layer they rank as |w| does."""
    squares = np.square(weight.astype(np.float64)).ravel()
    order = np.argsort(squares, kind="stable")
    above = np.cumsum(squares[order][::-1])[::-1]
    scores = np.empty_like(squares)
    scores[order] = squares[order] / np.maximum(above, np.finfo(np.float64).tiny)
    return scores


def _notes(shares: dict[str, float], ends: set[str]) -> list[str]:
    if not shares:
        return ["nothing to prune: no layer with constant weights is left to it"]
    why = "the runtimes multiply by zeros as by any number, and only a compressed file is smaller"
    notes = [f"unstructured zeros in {len(shares)} layers: this {BYTES_NOT_TIME}; {why}"]
    if ends:
        notes.append(f"left as first and last layer (keep_ends): {', '.join(sorted(ends))}")
    return notes

"""Weight sharing: each layer keeps few distinct weights, so that a release needs only an index for each.

Source: Han, Mao and Dally, "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained
Quantization and Huffman Coding" (ICLR 2016), sections 3 and 4. A shared weight saves bytes where the
release is packed; it saves no time, because a runtime computes with the unpacked weights.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray

from ..errors import BadInputError, IncompatibleError
from ..model.graph import Graph
from .work import Result, Work

__all__ = ["Cluster", "entropy_bits", "share_weights"]

_MAX_BITS = 8
_WEIGHT_INPUTS = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1)}

# The optimum is found for this many points, each the mean of its stretch of the range; then for all values.
_BINS = 1024
_REFINEMENTS = 100


@dataclass(frozen=True)
class Cluster:
    """k-means weight sharing with one codebook a tensor.

    bits: a layer keeps at most 2^bits distinct weights; 1 to 8.
    layers: exceptions as "name=bits", by the name of the node or of its weight; 0 leaves a layer as it is.
    min_values: a weight with fewer values is left as it is.
    zero_share: in a layer with at least this share of zeros, zeros stay zeros, so that pruning survives.
    """

    kind: ClassVar[str] = "cluster"

    bits: int = 5
    layers: tuple[str, ...] = ()
    min_values: int = 1024
    zero_share: float = 0.25

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= _MAX_BITS:
            raise BadInputError(f"cluster: bits is {self.bits}", hint=f"1 to {_MAX_BITS}")
        if self.min_values < 1:
            raise BadInputError(f"cluster: min_values is {self.min_values}", hint="at least 1")
        if not 0 <= self.zero_share <= 1:
            raise BadInputError(f"cluster: zero_share is {self.zero_share}", hint="0 to 1")
        self._exceptions()

    def apply(self, graph: Graph, work: Work) -> Result:
        """Share the weights of Conv, ConvTranspose, Gemm and MatMul.

        Raises:
            BadInputError: an exception names no layer of the graph, or weights are NaN or infinite.
            IncompatibleError: the graph has no floating-point weights to share.
        """
        weights = _weights(graph)
        bits_of = self._bits(weights)
        new = graph.copy()
        layers: dict[str, dict[str, Any]] = {}
        for done, (layer, weight) in enumerate(weights.items()):
            value = graph.array(weight)
            if value.size >= self.min_values and bits_of[layer]:
                if not np.isfinite(value).all():
                    raise BadInputError(f"the weights of {layer} hold NaN or infinity", hint="export the model again")
                shared = share_weights(value, bits_of[layer], zero_share=self.zero_share)
                new.set_array(weight, shared)
                layers[layer] = _described(value, shared, weight, bits_of[layer])
            work.progress("sharing weights", (done + 1) / len(weights))
        if not layers:
            raise IncompatibleError(
                f"no layer has {self.min_values} floating-point weights to share",
                hint="cluster before quantising, or lower min_values",
            )
        values = sum(row["values"] for row in layers.values())
        changed = {
            "layers": layers,
            "values": values,
            "mse": sum(row["mse"] * row["values"] for row in layers.values()) / values,
            "entropy_bits_per_weight": sum(row["entropy_bits"] * row["values"] for row in layers.values()) / values,
            "bytes_before": sum(row["bytes_before"] for row in layers.values()),
            "packed_bytes_estimated": sum(row["packed_bytes_estimated"] for row in layers.values()),
        }
        note = "shared weights make a packed release smaller (kedge build --pack); they run no faster"
        return Result(new, changed, (note,))

    def _exceptions(self) -> dict[str, int]:
        bits: dict[str, int] = {}
        for entry in self.layers:
            name, _, text = entry.rpartition("=")
            if not name or not text.isascii() or not text.isdigit() or int(text) > _MAX_BITS:
                raise BadInputError(
                    f"cluster: {entry!r} is not an exception", hint=f"write name=bits with 0 to {_MAX_BITS} bits"
                )
            bits[name] = int(text)
        return bits

    def _bits(self, weights: dict[str, str]) -> dict[str, int]:
        exceptions = self._exceptions()
        known = {*weights, *weights.values()}
        for name in exceptions:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise BadInputError(
                    f"cluster: no layer with weights is named {name!r}",
                    hint=f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(weights)[:5])}",
                )
        return {layer: exceptions.get(layer, exceptions.get(weight, self.bits)) for layer, weight in weights.items()}


def share_weights(weights: NDArray[Any], bits: int, *, zero_share: float = 0.25) -> NDArray[Any]:
    """Weights with at most 2^bits distinct values, close to those that give the least squared error (k-means).

    Args:
        weights: finite floating-point numbers of any shape.
        zero_share: where at least this share of them is zero, exactly these stay zero.

    Returns:
        Same shape and dtype.
    """
    flat = weights.astype(np.float64).ravel()
    keep_zeros = bool(np.mean(flat == 0) >= zero_share)
    moving = flat != 0 if keep_zeros else np.ones(flat.shape, dtype=bool)
    clusters = 2**bits - 1 if keep_zeros else 2**bits
    shared = np.zeros_like(flat)
    if moving.any():
        shared[moving] = _k_means(flat[moving], clusters)
    out = shared.astype(weights.dtype).reshape(weights.shape)
    return np.asarray(out)


def entropy_bits(values: NDArray[Any]) -> float:
    """Entropy of the distribution of distinct values, in bits a value (Shannon, 1948)."""
    _, counts = np.unique(values, return_counts=True)
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum()) if share.size > 1 else 0.0


def _k_means(values: NDArray[np.float64], clusters: int) -> NDArray[np.float64]:
    """Each value's centre: the optimum for a fine histogram, then Lloyd's iteration on the values themselves.

    Source: S. P. Lloyd, "Least squares quantization in PCM" (1982).
    """
    ordered = np.sort(values)
    if np.unique(ordered).size <= clusters:
        return values
    # Prefix sums make the mean of any stretch of the ordered values two look-ups.
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centres = _optimal_centres(*_histogram(ordered), clusters)
    for _ in range(_REFINEMENTS):
        edges = np.searchsorted(ordered, (centres[:-1] + centres[1:]) / 2)
        bounds = np.concatenate([[0], edges, [ordered.size]])
        sizes = np.diff(bounds)
        moved = np.where(sizes > 0, np.diff(sums[bounds]) / np.maximum(sizes, 1), centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return np.asarray(centres[np.searchsorted((centres[:-1] + centres[1:]) / 2, values)])


def _histogram(ordered: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points that stand for the values, ascending, and how many values each stands for."""
    low, high = ordered[0], ordered[-1]
    bins = np.minimum(((ordered - low) / (high - low) * _BINS).astype(np.int64), _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS).astype(np.float64)
    sums = np.bincount(bins, weights=ordered, minlength=_BINS)
    taken = counts > 0
    return sums[taken] / counts[taken], counts[taken]


def _optimal_centres(points: NDArray[np.float64], counts: NDArray[np.float64], clusters: int) -> NDArray[np.float64]:
    """The centres that give the least squared error, by dynamic programming over where clusters end.

    Source: H. Wang and M. Song, "Ckmeans.1d.dp: Optimal k-means Clustering in One Dimension by Dynamic
    Programming" (The R Journal, 2011): E(j, k) = min over i of E(i, k - 1) + cost(i, j), where cost(i, j)
    is the squared error of points i..j-1 about their mean. In one dimension clusters are stretches.
    """
    if points.size <= clusters:
        return points
    n, s, q = (np.concatenate([[0.0], np.cumsum(counts * points**power)]) for power in (0, 1, 2))
    n_of, s_of, q_of = (prefix[None, :] - prefix[:, None] for prefix in (n, s, q))
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = np.where(n_of > 0, np.maximum(q_of - s_of**2 / n_of, 0.0), np.inf)
    error = cost[0]
    ends = []
    for _ in range(clusters - 1):
        totals = error[:, None] + cost
        begin = totals.argmin(axis=0)
        error = np.take_along_axis(totals, begin[None, :], axis=0)[0]
        ends.append(begin)
    bounds = [points.size]
    for begin in reversed(ends):
        bounds.append(int(begin[bounds[-1]]))
    edges = np.array([0, *reversed(bounds)])
    return np.asarray(np.diff(s[edges]) / np.diff(n[edges]))


def _weights(graph: Graph) -> dict[str, str]:
    """The weight of each layer that has a constant one of floating-point numbers; a shared one counts once."""
    weights: dict[str, str] = {}
    for node in graph.nodes:
        for index in _WEIGHT_INPUTS.get(node.op_type, ()):
            name = node.input[index] if index < len(node.input) else ""
            tensor = graph.initializers.get(name)
            if tensor is None or tensor.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
                continue
            if name not in weights.values():
                weights[node.name] = name
    return weights


def _described(before: NDArray[Any], after: NDArray[Any], weight: str, bits: int) -> dict[str, Any]:
    error = before.astype(np.float64) - after.astype(np.float64)
    entropy = entropy_bits(after)
    distinct = int(np.unique(after).size)
    return {
        "weight": weight,
        "bits": bits,
        "values": int(after.size),
        "distinct": distinct,
        "mse": float(np.mean(error**2)),
        "entropy_bits": entropy,
        "zero_share": float(np.mean(after == 0)),
        "bytes_before": int(before.nbytes),
        "packed_bytes_estimated": math.ceil(after.size * entropy / 8) + distinct * after.dtype.itemsize,
    }

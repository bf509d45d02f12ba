"""Where did it go? The error of each activation of an optimised graph against the original's, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ...errors import IncompatibleError
from ...model.graph import Graph
from ...model.samples import Samples
from ...model.tap import activations
from ..work import silent
from .precision import LAYERS, MOVERS, maker_of, precision_of

__all__ = ["LayerError", "blame", "profile"]

_BATCH = 16
# Below what `activations` keeps at once, for each of the two graphs.
_GROUP_BYTES = 128 << 20


@dataclass(frozen=True)
class LayerError:
    """One activation of the optimised graph against the same one of the original.

    snr_db: 10·log10(Σx² / Σ(x - y)²), all error up to here; None for an exact tensor (its cosine is 1), for one
    that is all zero in the original, and for one that is not finite any more (`share` is then infinite).
    share: Σ(x - y)² / Σx², the same as a ratio. added: what this layer's share exceeds the worst of its
    inputs' by; negative where it damps the error.
    """

    name: str
    op: str
    precision: str
    tensor: str
    snr_db: float | None
    cosine: float | None
    share: float
    added: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: an entry of the report's `layers`."""
        return {
            "name": self.name,
            "op": self.op,
            "precision": self.precision,
            "snr_db": self.snr_db,
            "cosine": self.cosine,
            "added": self.added if math.isfinite(self.added) else None,
        }


@dataclass
class _Sums:
    """Running sums over one tensor, in double precision."""

    signal: float = 0.0
    other: float = 0.0
    product: float = 0.0
    error: float = 0.0
    comparable: bool = True

    def add(self, x: NDArray[Any], y: NDArray[Any]) -> None:
        if x.shape != y.shape or not all(np.issubdtype(value.dtype, np.floating) for value in (x, y)):
            self.comparable = False
            return
        first, second = x.astype(np.float64).ravel(), y.astype(np.float64).ravel()
        self.signal += _dot(first, first)
        # FP16 that overflows is a finding, not a warning.
        with np.errstate(invalid="ignore", over="ignore"):
            difference = first - second
            self.other += _dot(second, second)
            self.product += _dot(first, second)
            self.error += _dot(difference, difference)

    @property
    def share(self) -> float | None:
        """Σ(x - y)² / Σx²; None where the original has no signal."""
        if self.signal == 0:
            return 0.0 if self.error == 0 else None
        return self.error / self.signal if math.isfinite(self.error) else math.inf

    @property
    def cosine(self) -> float | None:
        size = math.sqrt(self.signal * self.other) if math.isfinite(self.other) else 0.0
        return min(1.0, max(-1.0, self.product / size)) if size > 0 else None


def _dot(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    # Not BLAS: its threads wait for one another longer than such a sum takes, tenfold on a busy machine.
    return float(np.einsum("i,i->", a, b))


def profile(
    original: Graph,
    optimised: Graph,
    samples: Samples,
    limit: int = 64,
    *,
    precision: Mapping[str, str] | None = None,
    progress: Callable[[str, float], None] = silent,
) -> list[LayerError]:
    """The error of each activation that both graphs have by the same name, in the original's order.

    Passes keep the names of tensors, so a tensor of the optimised graph is its own original's
    counterpart: before its Q/DQ pair, which counts for the layers that read it. What was fused away,
    or has another shape since pruning, is left out. Both graphs are computed exactly as written. Layers
    are named as the optimised graph names them, the rest as the original does.

    Args:
        limit: how many samples, from the front.
        precision: by node name, where the caller knows better than the graph's types say
            (four bits kept in int8).

    Raises:
        BadInputError: onnxruntime refuses a graph or the samples.
        IncompatibleError: the graphs insist on different batch sizes.
    """
    pairs = {
        node.output[0]: _counterpart(optimised, node) for node in original.nodes if _compares(original, optimised, node)
    }
    sums = {name: _Sums() for name in pairs}
    fixed = _fixed_batch(original, optimised)
    used = _whole_batches(samples, limit, fixed)
    groups = _groups(original, optimised, pairs, fixed or _BATCH)
    for index, group in enumerate(groups):
        others = [pairs[name] for name in group]
        first = activations(original, group, used, batch=fixed or _BATCH, optimise=False)
        second = activations(optimised, others, used, batch=fixed or _BATCH, optimise=False)
        for x, y in zip(first, second, strict=True):
            for name in group:
                sums[name].add(x[name], y[pairs[name]])
        progress("layers", (index + 1) / len(groups))
    return _rows(original, optimised, sums, precision or {})


def blame(errors: list[LayerError], count: int) -> list[str]:
    """Names of at most `count` layers that add the most error, the worst first; those that add none are left out.

    Where layers with weights add error only they are named: an activation function that cuts away
    signal raises the share of the error without making any.
    """
    adding = [error for error in errors if error.added > 0]
    layers = [error for error in adding if error.op in LAYERS] or adding
    worst = sorted(layers, key=lambda error: -error.added)
    return list(dict.fromkeys(error.name for error in worst))[:count]


def _compares(original: Graph, optimised: Graph, node: onnx.NodeProto) -> bool:
    name = node.output[0] if node.output else ""
    if not name or node.op_type in MOVERS or name not in optimised.producer or not original.is_float(name):
        return False
    return any(read and read not in original.initializers for read in node.input)


def _counterpart(optimised: Graph, node: onnx.NodeProto) -> str:
    """The tensor to compare a node's output with.

    A quantiser that drops an activation function, for the pair behind it clamps as well, gives its
    name to the tensor before: only behind the pair is it what the name says.
    """
    name: str = node.output[0]
    if node.op_type in ("Relu", "Clip") and optimised.producer[name].op_type != node.op_type:
        for op in ("QuantizeLinear", "DequantizeLinear"):
            readers = [reader for reader, index in optimised.consumers.get(name, ()) if index == 0]
            name = next((reader.output[0] for reader in readers if reader.op_type == op), name)
    return name if optimised.producer[name].op_type != "QuantizeLinear" else str(node.output[0])


def _fixed_batch(original: Graph, optimised: Graph) -> int | None:
    """The batch size that one of the graphs insists on."""
    sizes = {
        shape[0]
        for graph in (original, optimised)
        for name in graph.input_names
        if (shape := graph.types[name][1]) and shape[0] is not None
    }
    if len(sizes) > 1:
        raise IncompatibleError(
            f"the graphs insist on batches of {min(sizes)} and {max(sizes)}: their activations cannot be compared"
        )
    return sizes.pop() if sizes else None


def _whole_batches(samples: Samples, limit: int, fixed: int | None) -> Samples:
    if fixed is None:
        return samples.first(limit)
    if samples.count < fixed:
        return samples.take(np.arange(fixed) % samples.count)
    return samples.first(max(min(limit, samples.count) // fixed, 1) * fixed)


def _groups(original: Graph, optimised: Graph, pairs: Mapping[str, str], batch: int) -> list[list[str]]:
    """Tensors that are read in one run."""
    groups: list[list[str]] = []
    room = 0
    for name, other in pairs.items():
        size = max(_bytes(original, name, batch), _bytes(optimised, other, batch))
        if not groups or size > room:
            groups.append([])
            room = _GROUP_BYTES
        groups[-1].append(name)
        room -= size
    return groups


def _bytes(graph: Graph, name: str, batch: int) -> int:
    _, shape = graph.types.get(name, (0, None))
    return 4 * batch * math.prod(dim or 1 for dim in (shape or (None, 1 << 20))[1:])


def _rows(
    original: Graph, optimised: Graph, sums: Mapping[str, _Sums], precision: Mapping[str, str]
) -> list[LayerError]:
    # The share of error that reaches each tensor, handed on through what is not measured.
    reached: dict[str, float] = {}
    rows = []
    for node in original.nodes:
        reaching = max((reached.get(name, 0.0) for name in node.input), default=0.0)
        reached.update(dict.fromkeys(node.output, reaching))
        found = sums.get(node.output[0]) if node.output else None
        if found is None or not found.comparable or (share := found.share) is None:
            continue
        reached[node.output[0]] = share
        maker = maker_of(optimised, node.output[0], original.producer)
        layer = maker if maker.op_type in LAYERS else node
        exact = share == 0 or not math.isfinite(share)
        rows.append(
            LayerError(
                name=layer.name,
                op=layer.op_type,
                precision=precision.get(layer.name) or precision_of(optimised, node.output[0], original.producer),
                tensor=node.output[0],
                snr_db=None if exact else -10 * math.log10(share),
                cosine=found.cosine,
                share=share,
                # Beyond a layer whose values are lost, no layer can be told apart.
                added=share - reaching if math.isfinite(reaching) else 0.0,
            )
        )
    return rows

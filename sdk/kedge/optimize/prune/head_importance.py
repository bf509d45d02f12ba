"""How much a model needs each head: by its weights, or by what its outputs lose without it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ...model.graph import Graph, attributes
from ...model.samples import Samples
from ...model.session import ReferenceModel
from .head_labels import Heads
from .outputs import fixed_batch_of, output_error

__all__ = ["Gates", "weight_norms"]

_BATCH = 32


def weight_norms(graph: Graph, heads: Heads) -> NDArray[np.float64]:
    """‖w‖₂ over all weights that go with each head, as a share of their mean over the block's heads."""
    last = graph.by_name[heads.attention.name]
    weight = graph.array(last.input[1]).astype(np.float64)
    powers = _power(weight if attributes(last).get("transB", 0) else weight.T, heads.rows(graph), heads.count)
    for name in heads.attention.projections:
        node = graph.by_name[name]
        labels = heads.labels[node.output[0]]
        weight = graph.array(node.input[1]).astype(np.float64)
        weight = weight.T if attributes(node).get("transB", 0) else weight
        powers = powers + _power(weight, labels.reshape(-1, labels.shape[-1])[0], heads.count)
    norms = np.sqrt(powers)
    return np.asarray(norms / max(float(norms.mean()), 1e-30))


def _power(weight: NDArray[np.float64], owner: NDArray[Any], count: int) -> NDArray[np.float64]:
    """Σw² of each head's columns."""
    columns = (weight**2).sum(axis=0)
    return np.array([columns[owner == head].sum() for head in range(count)])


class Gates:
    """A model whose heads can be silenced one by one without making it anew: their channels are multiplied by 0 or 1.

    The importance of a head is the change of the outputs when it is silenced (Michel et al. 2019 approximate it by a
    gradient; here it is measured).
    """

    def __init__(self, graph: Graph, blocks: Sequence[Heads], samples: Samples) -> None:
        gated = graph.copy()
        self._rows = {}
        self._gates = {}
        nodes = gated.nodes
        for heads in blocks:
            node = gated.by_name[heads.attention.name]
            entered = node.input[0]
            kind = graph.types.get(entered, (TensorProto.FLOAT, None))[0] or TensorProto.FLOAT
            gate, passed = gated.unused_name(f"{entered}_gate"), gated.unused_name(f"{entered}_gated")
            rows = heads.rows(graph)
            gated.proto.graph.input.append(helper.make_tensor_value_info(gate, kind, [len(rows)]))
            nodes.append(helper.make_node("Mul", [entered, gate], [passed]))
            node.input[0] = passed
            self._rows[heads.attention.name] = rows
            self._gates[heads.attention.name] = (gate, helper.tensor_dtype_to_np_dtype(kind))
        gated.replace_nodes(nodes)
        self._model = ReferenceModel(gated.proto.SerializeToString())
        size = fixed_batch_of(graph) or _BATCH
        whole = max(samples.count // size * size, size) if fixed_batch_of(graph) else samples.count
        self._batches = list(samples.first(whole).batches(size))
        self._reference = self._answers({})

    def errors(
        self, gone: Mapping[str, Collection[int]], tick: Callable[[float], None]
    ) -> dict[tuple[str, int], float]:
        """The relative change of the outputs without the heads that are gone and one more, by block and head."""
        asked = [
            (name, int(head))
            for name, rows in self._rows.items()
            for head in np.unique(rows[rows >= 0])
            if head not in gone.get(name, ())
        ]
        found = {}
        for done, (name, head) in enumerate(asked):
            without = {**gone, name: [*gone.get(name, ()), head]}
            found[name, head] = output_error(self._reference, self._answers(without))
            tick((done + 1) / len(asked))
        return found

    def _answers(self, gone: Mapping[str, Collection[int]]) -> dict[str, NDArray[Any]]:
        gates = {
            gate: (~np.isin(self._rows[name], list(gone.get(name, ())))).astype(kind)
            for name, (gate, kind) in self._gates.items()
        }
        parts = [self._model.run({**batch, **gates}) for batch in self._batches]
        return {name: np.concatenate([np.atleast_1d(part[name]) for part in parts]) for name in parts[0]}

"""A view's weights back into a copy of its graph, with the shapes that pruning changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ...model.graph import Graph
from .layers import Slot
from .plan import Plan

__all__ = ["write_back"]

_Array = NDArray[Any]


def write_back(graph: Graph, plan: Plan, constants: Mapping[str, nn.Parameter]) -> Graph:
    """A copy of the graph with the weights of the plan's layers and the trained constants."""
    graph = graph.copy()
    written: dict[str, _Array] = {}
    for step in plan.steps:
        if step.layer is None:
            continue
        for slot in step.layer.slots:
            value = _array(getattr(step.layer.module, slot.attribute), slot, plan.constants[slot.tensor])
            if slot.tensor in written and not _same(written[slot.tensor], value):
                _part(graph, step.op.name, slot.tensor, value)
            written.setdefault(slot.tensor, value)
        groups = getattr(step.layer.module, "groups", None)
        for attribute in graph.by_name[step.op.name].attribute:
            if attribute.name == "group" and groups is not None:
                attribute.i = groups
    written.update({name: held.detach().numpy() for name, held in constants.items()})
    changed = {name: value for name, value in written.items() if not _same(plan.constants[name].numpy(), value)}
    for name in changed:
        if name in graph.producer:  # it was computed from constants, and is one of its own from now on
            maker = graph.producer[name].name
            graph.replace_nodes([node for node in graph.nodes if node.name != maker])
    for name, value in changed.items():
        computed = name not in graph.initializers
        graph.set_array(name, value.astype(plan.constants[name].numpy().dtype))
        if computed:
            graph.prune_unused()
    if any(plan.constants[name].shape != value.shape for name, value in changed.items()):
        _follow_shapes(graph, [step.op.name for step in plan.steps if step.flattens])
    graph.touched()
    return graph


def _array(held: Tensor, slot: Slot, original: Tensor) -> _Array:
    value = held.detach()
    value = value.t() if slot.transposed else value
    array: _Array = value.reshape((1,) * (original.dim() - value.dim()) + tuple(value.shape)).contiguous().numpy()
    return array


def _same(a: _Array, b: _Array) -> bool:
    return a.shape == b.shape and bool(np.array_equal(a, b))


def _part(graph: Graph, node: str, tensor: str, value: _Array) -> None:
    """Give a node its own constant: pruning has made what it shared differ."""
    name = graph.unused_name(f"{tensor}_{node}")
    graph.set_array(name, value)
    graph.rewire(
        tensor, name, [(graph.by_name[node], i) for i, x in enumerate(graph.by_name[node].input) if x == tensor]
    )


def _follow_shapes(graph: Graph, flattening: Iterable[str]) -> None:
    """Leave nothing that states an old shape: inferred shapes, declared constants, targets of a flattening Reshape."""
    del graph.proto.graph.value_info[:]
    for value in graph.proto.graph.input:
        tensor = graph.initializers.get(value.name)
        if tensor is not None:
            value.type.tensor_type.shape.Clear()
            for size in tensor.dims:
                value.type.tensor_type.shape.dim.add().dim_value = size
    for step in flattening:
        name = graph.unused_name(f"{step}_shape")
        graph.set_array(name, np.array([0, -1], np.int64))
        node = graph.by_name[step]
        node.input[1] = name
        # With allowzero, which torch's exporter writes, the 0 would be a dimension without elements.
        for attribute in [attribute for attribute in node.attribute if attribute.name == "allowzero"]:
            node.attribute.remove(attribute)
    graph.prune_unused()

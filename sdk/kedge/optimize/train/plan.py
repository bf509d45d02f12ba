"""A graph as steps for torch: what is computed once, which nodes are modules, which constants are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import IncompatibleError
from ...model.graph import Graph
from .layers import Layer, layer_of
from .op import Function, Op, op_of, tensor_of
from .ops import OPS

__all__ = ["WEIGHTED", "Plan", "Step", "plan_of"]

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")

# Inputs of operators that hold weights where no module of torch fits.
_WEIGHTS: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
}


@dataclass
class Step:
    """One node to run: a layer, or a function on named tensors; what nobody reads afterwards is let go.

    states_batch: a Reshape to a constant shape that begins with the graph's own fixed batch.
    flattens: a Reshape that joins all but the first dimension, however many elements those have.
    """

    op: Op
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    function: Function
    layer: Layer | None = None
    states_batch: bool = False
    flattens: bool = False
    done_with: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """The steps in order.

    constants: every constant, also those computed from others. read: those that steps and outputs read
    themselves. trained: those of them that are weights. batch: the batch the graph insists on.
    """

    steps: tuple[Step, ...]
    constants: Mapping[str, Tensor]
    read: tuple[str, ...]
    trained: frozenset[str]
    batch: int | None


def plan_of(graph: Graph, outputs: Sequence[str]) -> Plan:
    """Plan a graph whose named tensors are asked for.

    Raises:
        IncompatibleError: an operator has no torch form; the message names the node.
    """
    sizes = {shape[0] for name in graph.input_names if (shape := graph.types.get(name, (0, None))[1])}
    batch = sizes.pop() if len(sizes) == 1 else None
    with torch.no_grad():
        steps, known = _unfolded(graph)
    layouts: dict[str, set[bool]] = {}
    for step in steps:
        node = graph.by_name[step.op.name]
        _, shape = graph.types.get(step.inputs[0], (0, None)) if step.inputs else (0, None)
        step.layer = layer_of(step.op, node, known, None if shape is None else len(shape))
        if step.layer is None and step.op.kind == "ConvTranspose":
            raise step.op.cannot("its weight is computed")
        for slot in step.layer.slots if step.layer else ():
            layouts.setdefault(slot.tensor, set()).add(slot.transposed)
        target = known.get(step.inputs[1]) if step.op.kind == "Reshape" and len(step.inputs) > 1 else None
        step.flattens = shape is not None and _flattens(shape, target)
        if step.flattens:
            step.function = lambda op, x, _target: x.flatten(1)
        elif target is not None and target.numel():
            step.states_batch = int(target[0]) == batch
    plain = {name for step in steps if step.layer is None for name in step.inputs}
    for step in steps:
        # One constant in two layouts cannot be the parameter of one module.
        if step.layer and step.op.kind in OPS:
            apart = any(len(layouts[slot.tensor]) > 1 or slot.tensor in plain for slot in step.layer.slots)
            step.layer = None if apart else step.layer
        step.inputs = step.inputs[:1] if step.layer else step.inputs
    _let_go(steps, {*known, *outputs})
    read = dict.fromkeys(name for step in steps for name in step.inputs if name in known)
    read.update(dict.fromkeys(name for name in outputs if name in known))
    trained = {
        name
        for step in steps
        if step.layer is None
        for index, name in enumerate(step.inputs)
        if name in known and _is_weight(step.op.kind, index, known[name])
    }
    return Plan(tuple(steps), known, tuple(read), frozenset(trained), batch)


def _unfolded(graph: Graph) -> tuple[list[Step], dict[str, Tensor]]:
    """Nodes that depend on an input, and every constant, the others' results among them."""
    known = {name: tensor_of(tensor, name) for name, tensor in graph.initializers.items()}
    steps: list[Step] = []
    for node in graph.nodes:
        if node.domain not in ("", "ai.onnx") or (node.op_type not in OPS and node.op_type != "ConvTranspose"):
            raise IncompatibleError(
                f"node {node.name!r} has operator {node.domain + '.' if node.domain else ''}{node.op_type}, "
                "which has no torch form",
                hint="leave out the passes that train (recover, qat, attacks, structured pruning)",
            )
        op = op_of(node, graph)
        step = Step(op, tuple(node.input), tuple(node.output), OPS.get(op.kind, _no_form))
        if all(not name or name in known for name in node.input) and not _trains(node, graph):
            made = step.function(op, *(known.get(name) for name in node.input))
            known.update(zip(node.output, made if isinstance(made, tuple) else (made,), strict=False))
        else:
            steps.append(step)
    return steps, known


def _no_form(op: Op, *_: Tensor | None) -> Tensor:
    raise op.cannot("its inputs are constants")


def _trains(node: Any, graph: Graph) -> bool:
    """Whether computing a node once would cut the result from a weight that is trained where it is read itself."""
    return any(
        graph.is_float(name)
        and (index in _WEIGHTS.get(reader.op_type, ()) or reader.op_type in ("BatchNormalization", "ConvTranspose"))
        for name in node.input
        if name in graph.initializers
        for reader, index in graph.consumers.get(name, ())
        if reader.name != node.name
    )


def _is_weight(kind: str, index: int, value: Tensor) -> bool:
    """Whether a constant that no module holds acts as a weight.

    Of Add and Mul only vectors do: masks, anchors and tables of positions have two dimensions or more.
    """
    if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
        return False
    if kind in ("Add", "Mul"):
        return value.numel() >= 2 and max(value.shape) == value.numel()
    return index in _WEIGHTS.get(kind, ())


def _flattens(shape: tuple[int | None, ...], target: Tensor | None) -> bool:
    if target is None or target.numel() != 2 or len(shape) < 2 or any(size is None for size in shape[1:]):
        return False
    first, second = target.tolist()
    inside = int(np.prod([size or 0 for size in shape[1:]]))
    return (first in (0, -1, shape[0]) and second == inside) or (first in (0, shape[0]) and second == -1)


def _let_go(steps: list[Step], kept: set[str]) -> None:
    last = {name: index for index, step in enumerate(steps) for name in (*step.inputs, *step.outputs) if name}
    for name, index in last.items():
        if name not in kept:
            steps[index].done_with += (name,)

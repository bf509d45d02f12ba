"""An ONNX graph as a trainable torch module, and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import BadInputError, IncompatibleError, KedgeError, first_line
from ...model.graph import Graph
from .layers import Layer, Slot, layer_of
from .op import Function, Op, op_of, tensor_of
from .ops import OPS

__all__ = ["TorchView"]

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
_HOOKED = ("Conv", "Gemm", "MatMul")


@dataclass
class _Step:
    """One node to run: a layer, or a function on named tensors; what nobody reads afterwards is let go.

    states_batch: a Reshape to a constant shape that begins with the graph's own fixed batch.
    """

    op: Op
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    function: Function
    layer: Layer | None = None
    states_batch: bool = False
    done_with: tuple[str, ...] = ()


class TorchView(nn.Module):
    """A graph that torch runs, differentiates and trains.

    Convolutions, Gemm, MatMul by a constant matrix and normalisations are torch's own modules, children of
    `layers`. Other float constants that act as weights (per-channel operands of Add and Mul with two or more
    elements, slopes, scales of norms) are parameters of `constants`; every other constant is a buffer there.
    Nodes that depend on constants alone are computed once. A constant that several nodes read is one
    parameter. BatchNormalization uses batch statistics in train() mode.

    activation_hook(tensor name, value) replaces every float input and every float output of a node.
    weight_hook(node name, weight) replaces the weight of each Conv, ConvTranspose, Gemm and MatMul where it
    runs; it is given and returns ONNX's layout (a MatMul's is [in, out]).

    A graph of fixed batch runs on other batches too, as far as the batch stands only at the head of Reshape's
    targets.

    Raises:
        IncompatibleError: an operator has no torch form; the message names the node.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.activation_hook: Callable[[str, Tensor], Tensor] | None = None
        self.weight_hook: Callable[[str, Tensor], Tensor] | None = None
        self.input_names = list(graph.input_names)
        self.output_names = list(graph.output_names)
        self.layers = nn.Module()
        self.constants = nn.Module()
        self._graph = graph.copy()
        self._steps: list[_Step] = []
        self._layers: dict[str, Layer] = {}
        self._kept: dict[str, str] = {}  # tensor name → attribute of `constants`
        self._original: dict[str, Tensor] = {}
        self._batch = self._fixed_batch()
        self._build()

    def layer(self, name: str) -> nn.Module:
        """The module of a weighted node.

        Raises:
            BadInputError: the node has none.
        """
        if name not in self._layers:
            raise BadInputError(f"node {name!r} is no weighted layer", hint=f"there are {', '.join(self._layers)}")
        return self._layers[name].module

    @property
    def layer_names(self) -> list[str]:
        """Nodes that have a module, in graph order."""
        return list(self._layers)

    def node_of(self, module: nn.Module) -> str:
        """The node a module stands for.

        Raises:
            BadInputError: it is none of this view's.
        """
        for name, layer in self._layers.items():
            if layer.module is module:
                return name
        raise BadInputError(f"{type(module).__name__} is no layer of this view")

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name for inputs by name, samples along the first axis.

        Raises:
            BadInputError: an input is missing, or the values do not fit the graph.
        """
        hook = self.activation_hook
        values: dict[str, Tensor | None] = {name: getattr(self.constants, kept) for name, kept in self._kept.items()}
        values[""] = None
        for name in self.input_names:
            if name not in inputs:
                raise BadInputError(f"input {name!r} is missing")
            value = inputs[name]
            values[name] = hook(name, value) if hook is not None and value.is_floating_point() else value
        batch = None if self._batch is None else inputs[self.input_names[0]].shape[0]
        for step in self._steps:
            try:
                given = [values[name] for name in step.inputs]
                if batch != self._batch and step.states_batch and given[1] is not None:
                    given[1] = torch.cat([torch.tensor([batch]), given[1][1:]])
                made = self._run(step, given)
            except KedgeError:
                raise
            except (RuntimeError, IndexError, ValueError, TypeError) as error:
                raise BadInputError(
                    f"node {step.op.name!r} ({step.op.kind}) cannot run: {first_line(error)}"
                ) from error
            for name, value in zip(step.outputs, made if isinstance(made, tuple) else (made,), strict=False):
                values[name] = hook(name, value) if hook is not None and value.is_floating_point() else value
            for name in step.done_with:
                del values[name]
        results = {name: values[name] for name in self.output_names}
        return {name: value for name, value in results.items() if value is not None}

    def _run(self, step: _Step, given: list[Tensor | None]) -> Tensor | tuple[Tensor, ...]:
        hook = self.weight_hook
        if step.layer is not None and given[0] is not None:
            return step.layer(given[0], None if hook is None else partial(hook, step.op.name))
        if hook is not None and step.op.kind in _HOOKED:
            weight = given[1]
            if isinstance(weight, nn.Parameter):
                given[1] = hook(step.op.name, weight)
        return step.function(step.op, *given)

    def to_graph(self) -> Graph:
        """A copy of the graph with this view's weights and BatchNormalization statistics, under their names.

        Weights that were computed from constants (dequantised, reshaped) become constants of the result's
        name. Shapes that pruning changed are taken over, with the group counts that follow.
        """
        graph = self._graph.copy()
        reshaped = False
        written: dict[str, np.ndarray[Any, Any]] = {}
        for name, layer in self._layers.items():
            for slot in layer.slots:
                value = _array(getattr(layer.module, slot.attribute), slot, self._original[slot.tensor])
                reshaped |= value.shape != tuple(self._original[slot.tensor].shape)
                if slot.tensor in written and not _same(written[slot.tensor], value):
                    _part(graph, name, slot.tensor, value)
                written.setdefault(slot.tensor, value)
            groups = getattr(layer.module, "groups", None)
            for attribute in graph.by_name[name].attribute:
                if attribute.name == "group" and groups is not None:
                    attribute.i = groups
        for name, kept in self._kept.items():
            held = getattr(self.constants, kept)
            if isinstance(held, nn.Parameter):
                written[name] = held.detach().numpy()
                reshaped |= held.shape != self._original[name].shape
        for name, value in written.items():
            original = self._original[name].numpy()
            if not _same(original, value):
                _write(graph, name, value.astype(original.dtype))
        graph.prune_unused()
        if reshaped:
            self._follow_shapes(graph)
        return graph

    def _follow_shapes(self, graph: Graph) -> None:
        """Make what states an old shape state none: inferred shapes, and targets of Reshape that only flatten."""
        del graph.proto.graph.value_info[:]
        for step in self._steps:
            if step.op.kind == "Reshape" and step.op.get("flattens") and step.op.name in graph.by_name:
                name = graph.unused_name(f"{step.op.name}_shape")
                graph.set_array(name, np.array([0, -1], np.int64))
                graph.by_name[step.op.name].input[1] = name
        graph.touched()

    def _build(self) -> None:
        graph = self._graph
        known = {name: tensor_of(tensor, name) for name, tensor in graph.initializers.items()}
        steps: list[_Step] = []
        readers: dict[str, set[bool]] = {}  # constant → as which layouts layers read it
        with torch.no_grad():
            for node in graph.nodes:
                if node.domain not in ("", "ai.onnx") or (node.op_type not in OPS and node.op_type != "ConvTranspose"):
                    raise IncompatibleError(
                        f"node {node.name!r} has operator {node.domain + '.' if node.domain else ''}{node.op_type}, "
                        "which has no torch form",
                        hint="leave out the passes that train (recover, qat, attacks, structured pruning)",
                    )
                op = op_of(node, graph)
                step = _Step(op, tuple(node.input), tuple(node.output), OPS.get(op.kind, _no_form))
                if all(not name or name in known for name in node.input) and not self._trains(node, graph):
                    made = step.function(op, *(known.get(name) for name in node.input))
                    known.update(zip(node.output, made if isinstance(made, tuple) else (made,), strict=False))
                    continue
                steps.append(step)
        for step in steps:
            node = graph.by_name[step.op.name]
            _, shape = graph.types.get(step.inputs[0], (0, None)) if step.inputs else (0, None)
            step.layer = layer_of(step.op, node, known, None if shape is None else len(shape))
            if step.layer is None and step.op.kind == "ConvTranspose":
                raise step.op.cannot("its weight is computed")
            for slot in step.layer.slots if step.layer else ():
                readers.setdefault(slot.tensor, set()).add(slot.transposed)
            target = known.get(step.inputs[1]) if step.op.kind == "Reshape" and len(step.inputs) > 1 else None
            step.states_batch = target is not None and target.numel() > 0 and int(target[0]) == self._batch
            if shape is not None and _flattens(shape, target):
                step.op = Op(step.op.name, "Reshape", graph.opset, {"flattens": 1, "axis": 1})
                step.function, step.states_batch = lambda op, x, _target: x.flatten(1), False
        plain = {name for step in steps if step.layer is None for name in step.inputs if name in known}
        self._add_layers(steps, {name for name, kinds in readers.items() if len(kinds) > 1 or name in plain})
        self._add_constants(steps, known)
        self._finish(steps)

    def _trains(self, node: Any, graph: Graph) -> bool:
        """Whether computing a node once would cut the result from a weight that is trained where it is read itself."""
        return any(
            graph.is_float(name) and _weight_of(reader, index)
            for name in node.input
            if name in graph.initializers
            for reader, index in graph.consumers.get(name, ())
            if reader.name != node.name
        )

    def _fixed_batch(self) -> int | None:
        sizes = {shape[0] for name in self.input_names if (shape := self._graph.types.get(name, (0, None))[1])}
        return sizes.pop() if len(sizes) == 1 else None

    def _add_layers(self, steps: list[_Step], mixed: set[str]) -> None:
        tied: dict[str, nn.Parameter] = {}
        for index, step in enumerate(steps):
            if step.layer is None:
                continue
            if any(slot.tensor in mixed for slot in step.layer.slots) and step.op.kind in OPS:
                step.layer = None  # one constant in two layouts cannot be one module's parameter
                continue
            for slot in step.layer.slots:
                held = getattr(step.layer.module, slot.attribute)
                if isinstance(held, nn.Parameter):
                    setattr(step.layer.module, slot.attribute, tied.setdefault(slot.tensor, held))
            self._layers[step.op.name] = step.layer
            self.layers.add_module(f"n{index}_{re.sub(r'[^A-Za-z0-9]+', '_', step.op.name)[:60]}", step.layer.module)

    def _add_constants(self, steps: list[_Step], known: Mapping[str, Tensor]) -> None:
        for step in steps:
            for slot in step.layer.slots if step.layer else ():
                self._original[slot.tensor] = known[slot.tensor]
        trained = {
            name
            for step in steps
            if step.layer is None
            for index, name in enumerate(step.inputs)
            if name in known and _trainable(step.op.kind, index, known[name])
        }
        read = [name for step in steps for name in (step.inputs[:1] if step.layer else step.inputs)]
        for name in dict.fromkeys([*read, *self.output_names]):
            if name not in known:
                continue
            kept = f"c{len(self._kept)}"
            if name in trained:
                self.constants.register_parameter(kept, nn.Parameter(known[name].clone()))
                self._original[name] = known[name]
            else:
                self.constants.register_buffer(kept, known[name], persistent=False)
            self._kept[name] = kept

    def _finish(self, steps: list[_Step]) -> None:
        last: dict[str, int] = {}
        for index, step in enumerate(steps):
            if step.layer is not None:
                step.inputs = step.inputs[:1]
            last.update({name: index for name in (*step.inputs, *step.outputs) if name})
        for name, index in last.items():
            if name not in self._kept and name not in self.output_names:
                steps[index].done_with += (name,)
        self._steps = steps


def _no_form(op: Op, *_: Tensor | None) -> Tensor:
    raise op.cannot("its inputs are constants")


def _weight_of(node: Any, index: int) -> bool:
    return index in _WEIGHTS.get(node.op_type, ()) or node.op_type in ("BatchNormalization", "ConvTranspose")


def _trainable(kind: str, index: int, value: Tensor) -> bool:
    """Whether a constant that no module holds acts as a weight.

    Of Add and Mul only vectors do: masks, anchors and tables of positions have two dimensions or more.
    """
    if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
        return False
    if kind in ("Add", "Mul"):
        return value.numel() >= 2 and max(value.shape) == value.numel()
    return index in _WEIGHTS.get(kind, ())


def _flattens(shape: tuple[int | None, ...], target: Tensor | None) -> bool:
    """Whether a Reshape keeps the first dimension and joins the rest, whatever the rest is."""
    if target is None or target.numel() != 2 or len(shape) < 2 or any(size is None for size in shape[1:]):
        return False
    first, second = target.tolist()
    inside = int(np.prod([size or 0 for size in shape[1:]]))
    return (first in (0, -1, shape[0]) and second == inside) or (first in (0, shape[0]) and second == -1)


def _array(held: Tensor, slot: Slot, original: Tensor) -> np.ndarray[Any, Any]:
    value = held.detach()
    value = value.t() if slot.transposed else value
    return value.reshape((1,) * (original.dim() - value.dim()) + tuple(value.shape)).contiguous().numpy()


def _same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return a.shape == b.shape and bool(np.array_equal(a, b))


def _write(graph: Graph, name: str, value: np.ndarray[Any, Any]) -> None:
    """Set a constant; a node that computed it goes."""
    if name in graph.producer:
        maker = graph.producer[name]
        graph.replace_nodes([node for node in graph.nodes if node.name != maker.name])
    graph.set_array(name, value)


def _part(graph: Graph, node: str, tensor: str, value: np.ndarray[Any, Any]) -> None:
    """Give a node its own constant: pruning has made what it shared differ."""
    name = graph.unused_name(f"{tensor}_{node}")
    graph.set_array(name, value)
    reader = graph.by_name[node]
    for index, read in enumerate(reader.input):
        if read == tensor:
            reader.input[index] = name
    graph.touched()

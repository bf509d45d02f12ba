"""An ONNX graph as a trainable torch module, and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ...errors import BadInputError, KedgeError, first_line
from ...model.graph import Graph
from .layers import Layer
from .plan import WEIGHTED, Step, plan_of
from .write_back import write_back

__all__ = ["TorchView"]


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

    also: tensors to give beside the outputs.

    A graph of fixed batch runs on other batches too, as far as the batch stands only at the head of Reshape's
    targets.

    Raises:
        IncompatibleError: an operator has no torch form; the message names the node.
    """

    def __init__(self, graph: Graph, also: Sequence[str] = ()) -> None:
        super().__init__()
        self.activation_hook: Callable[[str, Tensor], Tensor] | None = None
        self.weight_hook: Callable[[str, Tensor], Tensor] | None = None
        self.input_names = list(graph.input_names)
        self.output_names = [*graph.output_names, *(name for name in also if name not in graph.output_names)]
        self.layers = nn.Module()
        self.constants = nn.Module()
        self._graph = graph.copy()
        self._plan = plan_of(self._graph, self.output_names)
        self._layers: dict[str, Layer] = {}
        self._kept: dict[str, str] = {}  # constant's name → attribute of `constants`
        self._add_layers()
        self._add_constants()

    def _add_layers(self) -> None:
        tied: dict[str, nn.Parameter] = {}
        for index, step in enumerate(self._plan.steps):
            if step.layer is None:
                continue
            module = step.layer.module
            for slot in step.layer.slots:
                held = getattr(module, slot.attribute)
                if isinstance(held, nn.Parameter):
                    setattr(module, slot.attribute, tied.setdefault(slot.tensor, held))
            self._layers[step.op.name] = step.layer
            self.layers.add_module(f"n{index}_{re.sub(r'[^A-Za-z0-9]+', '_', step.op.name)[:60]}", module)

    def _add_constants(self) -> None:
        for index, name in enumerate(self._plan.read):
            self._kept[name] = f"c{index}"
            value = self._plan.constants[name]
            if name in self._plan.trained:
                self.constants.register_parameter(self._kept[name], nn.Parameter(value.clone()))
            else:
                self.constants.register_buffer(self._kept[name], value, persistent=False)

    @property
    def layer_names(self) -> list[str]:
        """Nodes that have a module, in graph order."""
        return list(self._layers)

    @property
    def batch(self) -> int | None:
        """The batch size the graph was exported with, None when it is free."""
        return self._plan.batch

    def layer(self, name: str) -> nn.Module:
        """The module of a weighted node.

        Raises:
            BadInputError: the node has none.
        """
        if name not in self._layers:
            raise BadInputError(f"node {name!r} is no weighted layer", hint=f"there are {', '.join(self._layers)}")
        return self._layers[name].module

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
        batch = None if self.batch is None else inputs[self.input_names[0]].shape[0]
        for step in self._plan.steps:
            given = [values[name] for name in step.inputs]
            if batch != self.batch and step.states_batch and given[1] is not None:
                given[1] = torch.cat([torch.tensor([batch]), given[1][1:]])
            made = self._run(step, given)
            for name, value in zip(step.outputs, made if isinstance(made, tuple) else (made,), strict=False):
                values[name] = hook(name, value) if hook is not None and value.is_floating_point() else value
            for name in step.done_with:
                del values[name]
        results = {name: values[name] for name in self.output_names}
        return {name: value for name, value in results.items() if value is not None}

    def _run(self, step: Step, given: list[Tensor | None]) -> Tensor | tuple[Tensor, ...]:
        hook = self.weight_hook
        try:
            if step.layer is not None and given[0] is not None:
                return step.layer(given[0], None if hook is None else partial(hook, step.op.name))
            if hook is not None and step.op.kind in WEIGHTED:
                given = [hook(step.op.name, x) if isinstance(x, nn.Parameter) and x.dim() > 1 else x for x in given]
            return step.function(step.op, *given)
        except KedgeError:
            raise
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            raise BadInputError(f"node {step.op.name!r} ({step.op.kind}) cannot run: {first_line(error)}") from error

    def to_graph(self) -> Graph:
        """A copy of the graph with this view's weights and BatchNormalization statistics, under their names.

        Weights that were computed from constants (dequantised, reshaped) become constants of the result's
        name. Shapes that pruning changed are taken over, with the group counts and flattening Reshapes that
        follow from them.
        """
        held = {name: getattr(self.constants, kept) for name, kept in self._kept.items()}
        trained = {name: value for name, value in held.items() if isinstance(value, nn.Parameter)}
        return write_back(self._graph, self._plan, trained)

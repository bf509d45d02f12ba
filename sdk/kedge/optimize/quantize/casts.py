"""Casts into and out of a narrower float type, around the nodes that are computed in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ...model.graph import Graph

__all__ = ["LowFloat", "Slots", "insert_casts", "low_slots"]

_READS_NO_VALUES = ("Shape", "Size")
_TYPE_NAMES: dict[int, str] = {TensorProto.FLOAT16: "tensor(float16)", TensorProto.BFLOAT16: "tensor(bfloat16)"}


@dataclass(frozen=True)
class LowFloat:
    """A float type of 16 bits. largest, smallest: finite and normal magnitudes. roundoff: relative, to nearest.

    onnx_type: of onnx.TensorProto. opset: from which on most operators take it.
    """

    name: str
    onnx_type: int
    largest: float
    smallest: float
    roundoff: float
    opset: int


@dataclass(frozen=True)
class Slots:
    """The inputs and outputs of a node, by index, whose type may change, all of them together."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def low_slots(graph: Graph, kind: LowFloat) -> dict[str, Slots]:
    """By node name, for each node whose operator may make `kind` of `kind`.

    From the operator's schema: a float output whose type parameter allows the type, and that an input shares. An
    operator whose output's type is stated by an attribute (Cast, RandomNormal) shares none.
    """
    found = {node.name: _slots(graph, node, _TYPE_NAMES[kind.onnx_type]) for node in graph.nodes}
    return {name: slots for name, slots in found.items() if slots is not None}


def _slots(graph: Graph, node: onnx.NodeProto, wanted: str) -> Slots | None:
    graphs = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    if node.domain not in ("", "ai.onnx") or any(attribute.type in graphs for attribute in node.attribute):
        return None
    try:
        schema = onnx.defs.get_schema(node.op_type, graph.opset)
    except onnx.defs.SchemaError:
        return None
    allowed = {
        constraint.type_param_str
        for constraint in schema.type_constraints
        if wanted in constraint.allowed_type_strs and "tensor(float)" in constraint.allowed_type_strs
    }
    parameters = allowed & {formal.type_str for formal in schema.inputs}
    inputs = _by_parameter(list(schema.inputs), list(node.input))
    outputs = _by_parameter(list(schema.outputs), list(node.output))
    changing = {
        parameter
        for parameter in parameters & set(outputs)
        if parameter in inputs
        # One tensor of another or an unknown type, and the parameter cannot change.
        and all(graph.is_float(node.input[index]) for index in inputs[parameter])
        and all(graph.is_float(node.output[index]) for index in outputs[parameter])
    }
    if not changing:
        return None
    return Slots(
        tuple(sorted(index for parameter in changing for index in inputs[parameter])),
        tuple(sorted(index for parameter in changing for index in outputs[parameter])),
    )


def _by_parameter(formals: list[onnx.defs.OpSchema.FormalParameter], names: list[str]) -> dict[str, list[int]]:
    """Indices of the tensors that are present, by type parameter; the last formal parameter may stand for many."""
    found: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        if name and formals:
            found.setdefault(formals[min(index, len(formals) - 1)].type_str, []).append(index)
    return found


def insert_casts(graph: Graph, low: Mapping[str, Slots], kind: LowFloat) -> Graph:
    """A copy in which the named nodes compute in `kind`.

    A tensor that such a node makes keeps its name; outputs of the graph, and what a subgraph reads, stay FP32.
    """
    out = graph.copy()
    writer = _Writer(graph, out, low, kind)
    for node in out.nodes:
        writer.rewrite(node)
    stale = set(writer.made)
    for value in [value for value in out.proto.graph.value_info if value.name in stale]:
        out.proto.graph.value_info.remove(value)
    out.replace_nodes([*out.nodes, *writer.casts])
    out.prune_unused()
    return out


class _Writer:
    def __init__(self, source: Graph, out: Graph, low: Mapping[str, Slots], kind: LowFloat) -> None:
        self.source, self.out, self.slots, self.kind = source, out, low, kind
        self.casts: list[onnx.NodeProto] = []
        self.made = {
            source.by_name[name].output[index]: (name, index) for name, slots in low.items() for index in slots.outputs
        }
        inside = {name for name, readers in source.consumers.items() if any(index < 0 for _, index in readers)}
        self.wide_by_name = inside | set(source.output_names)
        self._low: dict[str, str] = {}
        self._wide: dict[str, str] = {}

    def rewrite(self, node: onnx.NodeProto) -> None:
        slots = self.slots.get(node.name, Slots((), ()))
        read = list(node.input)
        for index, name in enumerate(read):
            if name and index in slots.inputs:
                node.input[index] = self.low(name)
            elif name in self.made and node.op_type not in _READS_NO_VALUES:
                node.input[index] = self.wide(name)
        for index in slots.outputs:
            name = node.output[index]
            node.output[index] = self.low(name)
            if name in self.wide_by_name:
                self.wide(name)

    def low(self, name: str) -> str:
        """The tensor that holds the values of `name` in the narrow type."""
        if name in self._low:
            return self._low[name]
        if name in self.made:
            own = self.out.unused_name(f"{name}_{self.kind.name}") if name in self.wide_by_name else name
        elif name in self.source.initializers:
            own = self._constant(name)
        else:
            own = self._cast(name, self.out.unused_name(f"{name}_{self.kind.name}"), self.kind.onnx_type)
        self._low[name] = own
        return own

    def wide(self, name: str) -> str:
        """The tensor that holds the values of `name`, which is made in the narrow type, in FP32."""
        if name not in self._wide:
            own = name if name in self.wide_by_name else self.out.unused_name(f"{name}_fp32")
            self._wide[name] = self._cast(self.low(name), own, TensorProto.FLOAT)
        return self._wide[name]

    def _cast(self, name: str, own: str, to: int) -> str:
        self.casts.append(helper.make_node("Cast", [name], [own], name=self.out.unused_name(f"{own}_cast"), to=to))
        return own

    def _constant(self, name: str) -> str:
        own = self.out.unused_name(f"{name}_{self.kind.name}")
        values = self.source.array(name).astype(np.float32)
        if self.kind.onnx_type == TensorProto.FLOAT16:
            raw = values.astype("<f2").tobytes()
        else:
            raw = _bf16_bits(values).astype("<u2").tobytes()
        tensor = helper.make_tensor(own, self.kind.onnx_type, values.shape, raw, raw=True)
        self.out.proto.graph.initializer.append(tensor)
        return own


def _bf16_bits(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """The upper half of FP32's bits, rounded to nearest, ties to even; finite values only."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return np.asarray((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)

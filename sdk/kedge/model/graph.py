"""One ONNX graph in memory, with the questions every pass asks: who makes this tensor, who reads it, what shape."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from kedge_agent.formats.strings import tensor_data

from ..errors import BadInputError, first_line

__all__ = ["Graph", "attributes", "made_of"]


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as plain values: numbers, bytes, lists, TensorProtos."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


class Graph:
    """An ONNX model whose nodes all have unique names.

    Passes never change the graph they are given: they `copy()` it, edit the copy and return it.
    Edits go through the methods below, or call `touched()` after changing `proto` by hand: the
    indices (`producer`, `consumers`, `initializers`) are made once per state of the graph.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        self._close_constants()
        self._name_nodes()

    @classmethod
    def read(cls, path: Path) -> Graph:
        """Read a file that `kedge.model.onnx_io.read_model` has accepted."""
        return cls(onnx.load_model(path))

    def copy(self) -> Graph:
        """A deep copy."""
        return Graph(copy.deepcopy(self.proto))

    def write(self, path: Path) -> None:
        """Write one file, checked.

        Raises:
            BadInputError: the graph is not valid ONNX.
        """
        try:
            onnx.checker.check_model(self.proto)
        except onnx.checker.ValidationError as error:
            raise BadInputError(f"the graph is not valid ONNX: {first_line(error)}") from error
        path.write_bytes(self.proto.SerializeToString())

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """Nodes of the main graph, in topological order. Subgraphs of If and Loop are not entered."""
        return list(self.proto.graph.node)

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return max((entry.version for entry in self.proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs."""
        return [value.name for value in self.proto.graph.input]

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs."""
        return [value.name for value in self.proto.graph.output]

    @cached_property
    def digest(self) -> str:
        """sha256 of the graph's bytes: a key for caches."""
        return hashlib.sha256(self.proto.SerializeToString(deterministic=True)).hexdigest()

    @cached_property
    def initializers(self) -> dict[str, onnx.TensorProto]:
        """Constants by name."""
        return {tensor.name: tensor for tensor in self.proto.graph.initializer}

    @cached_property
    def producer(self) -> dict[str, onnx.NodeProto]:
        """The node that makes each tensor."""
        return {name: node for node in self.proto.graph.node for name in node.output if name}

    @cached_property
    def consumers(self) -> dict[str, list[tuple[onnx.NodeProto, int]]]:
        """Who reads each tensor, and as which of its inputs; readers inside subgraphs are included with index -1."""
        readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for node in self.proto.graph.node:
            for index, name in enumerate(node.input):
                readers.setdefault(name, []).append((node, index))
            for name in _names_in_subgraphs(node):
                readers.setdefault(name, []).append((node, -1))
        return readers

    @cached_property
    def by_name(self) -> dict[str, onnx.NodeProto]:
        """Nodes by their unique names."""
        return {node.name: node for node in self.proto.graph.node}

    @cached_property
    def types(self) -> dict[str, tuple[int, tuple[int | None, ...] | None]]:
        """Element type (onnx.TensorProto.*) and shape of each tensor as shape inference knows them.

        A dimension that is free is None; a shape that is unknown is None.
        """
        inferred = onnx.shape_inference.infer_shapes(self.proto)
        known: dict[str, tuple[int, tuple[int | None, ...] | None]] = {
            name: (tensor.data_type, tuple(tensor.dims)) for name, tensor in self.initializers.items()
        }
        graph = inferred.graph
        for value in (*graph.value_info, *graph.input, *graph.output):
            kind = value.type.tensor_type
            shape = None
            if kind.HasField("shape"):
                shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
            known[value.name] = (kind.elem_type, shape)
        return known

    def is_float(self, name: str) -> bool:
        """Whether a tensor is FP32."""
        return self.types.get(name, (0, None))[0] == onnx.TensorProto.FLOAT

    def array(self, name: str) -> NDArray[Any]:
        """The value of a constant."""
        return np.array(numpy_helper.to_array(self.initializers[name]))

    def set_array(self, name: str, value: NDArray[Any]) -> None:
        """Replace or add a constant."""
        tensor = numpy_helper.from_array(np.asarray(value, order="C"), name)
        if name in self.initializers:
            self.initializers[name].CopyFrom(tensor)
        else:
            self.proto.graph.initializer.append(tensor)
        for known in [value for value in self.proto.graph.value_info if value.name == name]:
            self.proto.graph.value_info.remove(known)
        self._taken.add(name)
        self.touched(new_names=False)

    def add_opset(self, at_least: int) -> None:
        """Raise the default operator set with onnx's version converter where it is older.

        Raises:
            BadInputError: the converter cannot.
        """
        if self.opset >= at_least:
            return
        try:
            self.proto = onnx.version_converter.convert_version(self.proto, at_least)
        except Exception as error:  # the converter raises RuntimeError and its own classes
            raise BadInputError(
                f"the model's opset {self.opset} cannot be raised to {at_least}: {first_line(error)}",
                hint=f"export it again with opset {at_least} or newer",
            ) from error
        # onnx 1.9, the first with operator set 14 and the last that wrote 13, wrote IR version 7.
        self.proto.ir_version = max(self.proto.ir_version, 7)
        self._name_nodes()
        self.touched()

    def unused_name(self, wanted: str) -> str:
        """A tensor or node name that nothing has yet, close to the wanted one."""
        taken = self._taken
        name, count = wanted, 1
        while name in taken:
            name, count = f"{wanted}_{count}", count + 1
        taken.add(name)
        return name

    def replace_nodes(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Set the nodes, sorted so that each comes after what it reads."""
        ordered = self._sorted(list(nodes))
        del self.proto.graph.node[:]
        self.proto.graph.node.extend(ordered)
        self._name_nodes()
        self.touched()

    def rewire(self, old: str, new: str, readers: Iterable[tuple[onnx.NodeProto, int]] | None = None) -> None:
        """Make readers of one tensor (all of them, or the named ones) read another. Graph outputs stay."""
        for node, index in list(self.consumers.get(old, ()) if readers is None else readers):
            if index >= 0:
                node.input[index] = new
        self.touched()

    def prune_unused(self) -> None:
        """Drop nodes and constants that no output depends on."""
        needed, kept = set(self.output_names), []
        for node in reversed(self.nodes):
            if any(name in needed for name in node.output):
                kept.append(node)
                needed.update(node.input)
                needed.update(_names_in_subgraphs(node))
        self.replace_nodes(reversed(kept))
        used = [tensor for tensor in self.proto.graph.initializer if tensor.name in needed]
        del self.proto.graph.initializer[:]
        self.proto.graph.initializer.extend(used)
        self.touched()

    def touched(self, *, new_names: bool = True) -> None:
        """Forget the indices: the graph has changed.

        Args:
            new_names: False where every name that was added came from `unused_name`, which knows it already; to list
                the names of a graph anew after each of many edits takes longer than the edits.
        """
        for name in ("digest", "initializers", "producer", "consumers", "by_name", "types"):
            self.__dict__.pop(name, None)
        if new_names:
            self.__dict__.pop("_taken", None)

    @cached_property
    def _taken(self) -> set[str]:
        names = set(self.initializers) | {value.name for value in self.proto.graph.input}
        for node in self.proto.graph.node:
            names.add(node.name)
            names.update(node.input)
            names.update(node.output)
            names.update(_names_in_subgraphs(node))
        return names

    def _close_constants(self) -> None:
        """Before IR version 4 every constant was an input as well, which a caller might override: nobody does."""
        constants = {tensor.name for tensor in self.proto.graph.initializer}
        fed = [value for value in self.proto.graph.input if value.name not in constants]
        if len(fed) < len(self.proto.graph.input):
            del self.proto.graph.input[:]
            self.proto.graph.input.extend(fed)
            self.proto.ir_version = max(self.proto.ir_version, 4)

    def _name_nodes(self) -> None:
        seen: set[str] = set()
        for index, node in enumerate(self.proto.graph.node):
            name, count = node.name or f"{node.op_type}_{index}", 1
            while name in seen:
                name, count = f"{node.name or node.op_type}_{index}_{count}", count + 1
            node.name = name
            seen.add(name)

    def _sorted(self, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
        made_by = {name: index for index, node in enumerate(nodes) for name in node.output if name}
        state = [0] * len(nodes)
        order: list[onnx.NodeProto] = []
        for root in range(len(nodes)):
            stack = [(root, False)]
            while stack:
                index, ready = stack.pop()
                if ready:
                    order.append(nodes[index])
                    continue
                if state[index]:
                    continue
                state[index] = 1
                stack.append((index, True))
                read = {*nodes[index].input, *_names_in_subgraphs(nodes[index])}
                stack.extend(
                    (made_by[name], False) for name in sorted(read) if name in made_by and not state[made_by[name]]
                )
        return order


def _names_in_subgraphs(node: onnx.NodeProto) -> list[str]:
    names: list[str] = []
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else list(attribute.graphs)
        for graph in graphs:
            for inner in graph.node:
                names.extend(inner.input)
                names.extend(_names_in_subgraphs(inner))
            names.extend(value.name for value in graph.output)
    return names


def made_of(arrays: Mapping[str, NDArray[Any]]) -> str:
    """sha256 of named arrays: a key for caches."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}:{value.dtype.str}:{value.shape}".encode())
        digest.update(tensor_data(value))
    return digest.hexdigest()

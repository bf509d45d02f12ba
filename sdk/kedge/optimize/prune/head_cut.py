"""Heads out of a graph: their channels out of the projections, and every size on the way mended; or silenced."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ...errors import KedgeError
from ...model.graph import Graph, attributes
from ...model.session import ReferenceModel
from .attention import ELEMENTWISE
from .head_labels import Heads, Labels, UnclearError, slice_bounds

__all__ = ["cut", "measured_shapes", "same_when_silenced", "silence"]

Inputs = Mapping[str, NDArray[Any]]
_Indices = NDArray[np.intp]

_TOLERANCE = 1e-4


def measured_shapes(graph: Graph, names: Collection[str], inputs: Inputs) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors for these inputs, in onnxruntime: shape inference does not follow sizes that are computed."""
    watched, made = graph.copy(), {}
    nodes = watched.nodes
    for name in names:
        made[name] = watched.unused_name(f"{name}_shape")
        nodes.append(helper.make_node("Shape", [name], [made[name]]))
        watched.proto.graph.output.append(helper.make_tensor_value_info(made[name], TensorProto.INT64, None))
    watched.replace_nodes(nodes)
    found = ReferenceModel(watched.proto.SerializeToString()).run(inputs, list(made.values()))
    return {name: tuple(int(size) for size in found[shape]) for name, shape in made.items()}


def silence(graph: Graph, heads: Heads, gone: Collection[int]) -> Graph:
    """A copy whose last projection gives nothing for these heads: zeros in the weights that read them."""
    quiet = graph.copy()
    node = quiet.by_name[heads.attention.name]
    weight = quiet.array(node.input[1])
    weight[_rows_axis(node, np.isin(heads.rows(graph), list(gone)))] = 0
    _own_constant(quiet, node, 1, weight)
    return quiet


def cut(graph: Graph, heads: Heads, gone: Collection[int]) -> Graph:
    """A copy without these heads. The scale of the scores stays: it belongs to the width of one head.

    Raises:
        UnclearError: something on the way has a size that does not follow.
    """
    smaller = graph.copy()
    block = heads.attention
    left = {name: _survivors(labels, gone) for name, labels in heads.labels.items()}
    for name in block.projections:
        _narrow_outward(smaller, smaller.by_name[name], left)
    for name in (*block.inward, *block.onward):
        _mend(smaller, smaller.by_name[name], heads.labels, left)
    last = smaller.by_name[block.name]
    rows = left[last.input[0]][-1]
    _own_constant(smaller, last, 1, smaller.array(last.input[1])[_rows_axis(last, rows)])
    _correct_known_shapes(smaller, heads.labels, left)
    smaller.prune_unused()
    return smaller


def same_when_silenced(graph: Graph, heads: Heads, gone: Collection[int], smaller: Graph, inputs: Inputs) -> bool:
    """Whether a graph without heads answers as the one in which they are silenced, at its block and at its outputs.

    ‖y − ŷ‖₂ ≤ 10⁻⁴ ‖y‖₂ for every floating-point tensor compared.
    """
    seen = graph.by_name[heads.attention.name].output[0]
    try:
        expected = _outputs_and(silence(graph, heads, gone), seen, inputs)
        found = _outputs_and(smaller, seen, inputs)
    except KedgeError:  # onnxruntime does not run it
        return False
    for name, value in expected.items():
        other = found[name]
        if value.shape != other.shape or value.dtype != other.dtype:
            return False
        if value.dtype.kind == "f":
            distance = float(np.linalg.norm((value - other).ravel().astype(np.float64)))
            if not distance <= _TOLERANCE * float(np.linalg.norm(value.ravel().astype(np.float64))) + 1e-9:
                return False
    return True


def _outputs_and(graph: Graph, name: str, inputs: Inputs) -> dict[str, NDArray[Any]]:
    watched = graph.copy()
    if name not in watched.output_names:
        kind = watched.types.get(name, (TensorProto.FLOAT, None))[0] or TensorProto.FLOAT
        watched.proto.graph.output.append(helper.make_tensor_value_info(name, kind, None))
        watched.touched()
    return ReferenceModel(watched.proto.SerializeToString()).run(inputs)


def _survivors(labels: Labels, gone: Collection[int]) -> list[_Indices]:
    """For each axis of a tensor, the indices that remain without these heads."""
    kept = ~np.isin(labels, list(gone))
    axes = range(kept.ndim)
    found = [np.flatnonzero(kept.any(axis=tuple(axis for axis in axes if axis != each))) for each in axes]
    if prod(len(indices) for indices in found) != int(kept.sum()):
        raise UnclearError("they are not in one piece along any axis")
    return found


def _rows_axis(node: onnx.NodeProto, rows: NDArray[Any]) -> tuple[Any, ...]:
    """Index of input channels in a projection's weight."""
    return (slice(None), rows) if attributes(node).get("transB", 0) else (rows, slice(None))


def _narrow_outward(graph: Graph, node: onnx.NodeProto, left: Mapping[str, list[_Indices]]) -> None:
    channels = left[node.output[0]][-1]
    weight = graph.array(node.input[1])
    turned = attributes(node).get("transB", 0)
    _own_constant(graph, node, 1, weight[channels] if turned else weight[:, channels])
    if len(node.input) > 2 and node.input[2]:
        bias = graph.array(node.input[2])
        if bias.ndim and bias.shape[-1] > 1:
            _own_constant(graph, node, 2, bias[..., channels])


def _mend(graph: Graph, node: onnx.NodeProto, labels: Mapping[str, Labels], left: Mapping[str, list[_Indices]]) -> None:
    """Make what a node states of sizes follow."""
    flowing = [index for index, name in enumerate(node.input) if name in labels]
    if not flowing:
        return
    source, made = node.input[flowing[0]], node.output[0]
    narrowed = [axis for axis, kept in enumerate(left[source]) if len(kept) < labels[source].shape[axis]]
    settings = attributes(node)
    if node.op_type == "Reshape":
        _mend_reshape(graph, node, labels[made].shape, left[made])
    elif node.op_type == "Slice":
        _mend_slice(graph, node, labels[source].shape, left[source], narrowed)
    elif node.op_type == "Split" and settings.get("axis", 0) % labels[source].ndim in narrowed:
        axis = settings.get("axis", 0) % labels[source].ndim
        sizes = [len(left[name][axis]) for name in node.output]
        if len(node.input) > 1 and node.input[1]:
            _own_constant(graph, node, 1, np.array(sizes, np.int64))
        elif "split" in settings:
            node.attribute.remove(next(entry for entry in node.attribute if entry.name == "split"))
            node.attribute.append(helper.make_attribute("split", sizes))
    elif node.op_type == "Gather" and settings.get("axis", 0) % labels[source].ndim in narrowed:
        raise UnclearError(f"Gather {node.name} picks from them")
    elif node.op_type == "LayerNormalization" and (labels[source] != labels[source][..., :1]).any():
        raise UnclearError(f"LayerNormalization {node.name} runs over all of them")
    elif node.op_type in ELEMENTWISE:
        for index in range(len(node.input)):
            if index not in flowing:
                _mend_operand(graph, node, index, labels, left)


def _mend_reshape(graph: Graph, node: onnx.NodeProto, shape: tuple[int, ...], left: list[_Indices]) -> None:
    if node.input[1] not in graph.initializers:
        return
    target = graph.array(node.input[1])
    new = [
        len(kept) if size > 0 and len(kept) < whole else int(size)
        for size, whole, kept in zip(target, shape, left, strict=True)
    ]
    if new != target.tolist():
        _own_constant(graph, node, 1, np.array(new, np.int64))


def _mend_slice(
    graph: Graph, node: onnx.NodeProto, shape: tuple[int, ...], left: list[_Indices], narrowed: list[int]
) -> None:
    bounds = slice_bounds(graph, node, shape)
    if not any(axis in narrowed for axis, _, _ in bounds):
        return
    starts = [int(np.searchsorted(left[axis], start)) for axis, start, _ in bounds]
    ends = [int(np.searchsorted(left[axis], end)) for axis, _, end in bounds]
    # The others may have had ends past a dimension that is free.
    given = [graph.array(name).ravel().tolist() for name in node.input[1:3]]
    for place, (axis, _, _) in enumerate(bounds):
        if axis not in narrowed:
            starts[place], ends[place] = given[0][place], given[1][place]
    _own_constant(graph, node, 1, np.array(starts, np.int64))
    _own_constant(graph, node, 2, np.array(ends, np.int64))
    _own_constant(graph, node, 3, np.array([axis for axis, _, _ in bounds], np.int64))


def _mend_operand(
    graph: Graph, node: onnx.NodeProto, index: int, labels: Mapping[str, Labels], left: Mapping[str, list[_Indices]]
) -> None:
    """Cut a constant that is added or multiplied. What is computed is not cut, and must not have the heads' axis."""
    name, remaining, shape = node.input[index], left[node.output[0]], labels[node.output[0]].shape
    narrowed = [axis - len(shape) for axis, kept in enumerate(remaining) if len(kept) < shape[axis]]
    if name not in graph.initializers:
        maker = graph.producer.get(name)
        if maker is not None and maker.op_type == "IsNaN" and maker.input[0] in labels:
            return
        sizes = graph.types.get(name, (0, None))[1]
        if sizes is None or any(len(sizes) >= -axis and sizes[axis] != 1 for axis in narrowed):
            raise UnclearError(f"{node.op_type} {node.name} joins them with something computed")
        return
    value = graph.array(name)
    axes = [axis for axis in narrowed if value.ndim >= -axis and value.shape[axis] > 1]
    for axis in axes:
        value = np.take(value, remaining[axis], axis=axis)
    if axes:
        _own_constant(graph, node, index, value)


def _correct_known_shapes(graph: Graph, labels: Mapping[str, Labels], left: Mapping[str, list[_Indices]]) -> None:
    """What the exporter knew of sizes, inference may not find out again: it is corrected, and kept."""
    for value in graph.proto.graph.value_info:
        maker = graph.producer.get(value.name)
        name = maker.input[0] if maker is not None and maker.op_type == "IsNaN" else value.name
        if name in left:
            sizes = zip(value.type.tensor_type.shape.dim, labels[name].shape, left[name], strict=False)
            for dim, whole, kept in sizes:
                if len(kept) < whole and dim.HasField("dim_value"):
                    dim.dim_value = len(kept)
                elif len(kept) < whole:
                    # A product like "4*batch": onnxruntime gives memory to tensors by such names.
                    dim.ClearField("dim_param")
    graph.touched()


def _own_constant(graph: Graph, node: onnx.NodeProto, index: int, value: NDArray[Any]) -> None:
    """Give a node a constant of its own, under the old name where nothing else reads that one."""
    while len(node.input) <= index:
        node.input.append("")
    old = node.input[index]
    readers = graph.consumers.get(old, ())
    if old and len(readers) == 1 and old not in graph.output_names:
        graph.set_array(old, value)
        return
    name = graph.unused_name(f"{old}_{node.name}" if old else f"{node.name}_constant")
    graph.set_array(name, value)
    node.input[index] = name
    graph.touched()

"""Rewrites that onnxslim leaves: each makes a form that both runtimes have a better kernel for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..model.graph import Graph, attributes

__all__ = ["rewrite"]


def rewrite(graph: Graph) -> Graph:
    """A copy with all rewrites applied, in the order of the table below."""
    out = graph.copy()
    for rule in _RULES:
        for name in [node.name for node in out.nodes]:
            node = out.by_name.get(name)
            if node is not None:
                rule(out, node)
    out.prune_unused()
    return out


def _fold_dequantized_weight(graph: Graph, node: onnx.NodeProto) -> None:
    """A constant behind DequantizeLinear (converters leave such) is an FP32 constant that was stored small."""
    if node.op_type != "DequantizeLinear" or any(name and name not in graph.initializers for name in node.input):
        return
    axis = attributes(node).get("axis", 1)
    q, scale = graph.array(node.input[0]).astype(np.float64), graph.array(node.input[1]).astype(np.float64)
    zero = graph.array(node.input[2]).astype(np.float64) if len(node.input) > 2 and node.input[2] else np.zeros(())
    if scale.ndim == 1 and scale.size > 1:
        shape = [1] * q.ndim
        shape[axis] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape) if zero.ndim else zero
    elif scale.size != 1 or "block_size" in attributes(node):
        return
    if not graph.is_float(node.input[1]):
        return
    graph.set_array(node.output[0], np.asarray((q - zero) * scale, dtype=np.float32).reshape(q.shape))
    graph.replace_nodes([other for other in graph.nodes if other.name != node.name])


def _matmul_add_to_gemm(graph: Graph, node: onnx.NodeProto) -> None:
    """MatMul [n,k]×[k,m] and a constant Add are one Gemm, which has an integer kernel with a bias."""
    add = _only_reader(graph, node, "MatMul", "Add")
    if add is None or node.input[1] not in graph.initializers or len(graph.initializers[node.input[1]].dims) != 2:
        return
    shape = graph.types.get(node.input[0], (0, None))[1]
    bias = next((name for name in add.input if name in graph.initializers), None)
    if shape is None or len(shape) != 2 or bias is None or not graph.is_float(node.input[0]):
        return
    width = graph.initializers[node.input[1]].dims[1]
    values = graph.array(bias)
    if values.size not in (1, width) or values.ndim > 2 or (values.ndim == 2 and values.shape[1] != values.size):
        return
    own = graph.unused_name(f"{bias}_row")
    graph.set_array(own, np.broadcast_to(values.reshape(-1), (width,)).copy())
    _merge(graph, node, add, helper.make_node("Gemm", [*node.input, own], [add.output[0]], name=node.name))


def _plain_gemm(graph: Graph, node: onnx.NodeProto) -> None:
    """Factors of a Gemm go into its constants, and its bias becomes a row: integer kernels take no others."""
    if node.op_type != "Gemm" or node.input[1] not in graph.initializers or not graph.is_float(node.input[1]):
        return
    known = attributes(node)
    bias = node.input[2] if len(node.input) > 2 else ""
    if bias and bias not in graph.initializers:
        return
    factors = {1: float(known.get("alpha", 1.0)), 2: float(known.get("beta", 1.0))}
    width = graph.initializers[node.input[1]].dims[0 if known.get("transB", 0) else 1]
    values = {index: graph.array(node.input[index]) for index in ((1, 2) if bias else (1,))}
    changed = {index for index in values if factors[index] != 1.0}
    if bias:
        shape, size = values[2].shape, values[2].size
        if shape != (width,) and (size == 1 or shape[-1] == size == width):
            values[2] = np.broadcast_to(values[2].reshape(-1), (width,))
            changed.add(2)
    for index in sorted(changed):
        # Others may read the same constant.
        own = graph.unused_name(f"{node.input[index]}_plain")
        graph.set_array(own, (values[index] * factors[index]).astype(np.float32))
        node.input[index] = own
    for attribute in [each for each in node.attribute if each.name in ("alpha", "beta")]:
        node.attribute.remove(attribute)
    graph.touched()


def _bias_of_convolution(graph: Graph, node: onnx.NodeProto) -> None:
    """A constant Add a channel after a convolution is its bias."""
    add = _only_reader(graph, node, "Conv", "Add")
    if add is None or node.input[1] not in graph.initializers or not graph.is_float(node.input[1]):
        return
    constant = next((name for name in add.input if name in graph.initializers), None)
    if constant is None:
        return
    weight = graph.initializers[node.input[1]].dims
    values, rank, channels = graph.array(constant), len(weight), weight[0]
    aligned = (1,) * (rank - values.ndim) + values.shape if values.ndim <= rank else ()
    if not aligned or aligned[1] not in (1, channels) or values.size != aligned[1]:
        return
    bias = np.broadcast_to(values.reshape(-1), (channels,)).astype(np.float32)
    if len(node.input) > 2 and node.input[2]:
        if node.input[2] not in graph.initializers:
            return
        bias = bias + graph.array(node.input[2])
    own = graph.unused_name(f"{constant}_bias")
    graph.set_array(own, bias)
    merged = helper.make_node("Conv", [*node.input[:2], own], [add.output[0]], name=node.name)
    merged.attribute.extend(node.attribute)
    _merge(graph, node, add, merged)


def _mean_to_pool(graph: Graph, node: onnx.NodeProto) -> None:
    """The mean over height and width is a GlobalAveragePool: runtimes keep that one in integers."""
    if node.op_type != "ReduceMean" or attributes(node).get("keepdims", 1) != 1:
        return
    shape = graph.types.get(node.input[0], (0, None))[1]
    axes = attributes(node).get("axes")
    if axes is None and len(node.input) > 1 and node.input[1] in graph.initializers:
        axes = numpy_helper.to_array(graph.initializers[node.input[1]]).tolist()
    if shape is None or len(shape) != 4 or axes is None or sorted(axis % 4 for axis in axes) != [2, 3]:
        return
    pool = helper.make_node("GlobalAveragePool", [node.input[0]], list(node.output), name=node.name)
    graph.replace_nodes([pool if other.name == node.name else other for other in graph.nodes])


def _only_reader(graph: Graph, node: onnx.NodeProto, op: str, next_op: str) -> onnx.NodeProto | None:
    if node.op_type != op or node.output[0] in graph.output_names:
        return None
    readers = graph.consumers.get(node.output[0], [])
    return readers[0][0] if len(readers) == 1 and readers[0][0].op_type == next_op else None


def _merge(graph: Graph, first: onnx.NodeProto, second: onnx.NodeProto, merged: onnx.NodeProto) -> None:
    gone = {first.name, second.name}
    graph.replace_nodes([merged, *(node for node in graph.nodes if node.name not in gone)])


_RULES: tuple[Callable[[Graph, onnx.NodeProto], None], ...] = (
    _fold_dequantized_weight,
    _matmul_add_to_gemm,
    _plain_gemm,
    _bias_of_convolution,
    _mean_to_pool,
)

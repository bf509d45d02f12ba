"""Write QuantizeLinear and DequantizeLinear into a graph, as a placement and its parameters say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper

from ...model.graph import Graph
from .affine import QuantParams
from .placement import Placement, Reader

__all__ = ["QDQ_OPSET", "insert_qdq"]

QDQ_OPSET = 13
"""The first operator set whose Q/DQ take one scale a channel."""

_INT32_MAX = 2**31 - 1


def insert_qdq(
    graph: Graph,
    placement: Placement,
    activations: Mapping[str, QuantParams],
    weights: Mapping[str, QuantParams],
    *,
    integer_bias: bool,
) -> Graph:
    """A copy of the graph with Q/DQ pairs.

    Weights become constants of the grid's integer type behind a DequantizeLinear.

    Args:
        activations: parameters by tensor, for every tensor of the placement.
        weights: parameters by node, for every weight of the placement.
        integer_bias: store biases as INT32 of scale s_x · s_w, as onnxruntime's integer kernels
            take them; otherwise they stay FP32, as TensorRT wants them.
    """
    out = graph.copy()
    out.add_opset(QDQ_OPSET)
    writer = _Writer(out)
    for tensor in sorted(placement.activations):
        readers, through = placement.activations[tensor], tensor in placement.outputs
        writer.activation(tensor, readers, activations[tensor], through=through)
    for name, site in placement.weights.items():
        node = out.by_name[name]
        params = weights[name]
        if integer_bias and len(node.input) > 2 and _is_row(out, node.input[2], params):
            source = graph.by_name[name].input[0]
            params = writer.bias(node, activations[source], params)
        writer.weight(node, site.index, params)
    out.replace_nodes([*out.nodes, *writer.added])
    out.prune_unused()
    return out


class _Writer:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.added: list[onnx.NodeProto] = []

    def activation(self, tensor: str, readers: frozenset[Reader], params: QuantParams, *, through: bool) -> None:
        graph = self.graph
        source, result = tensor, graph.unused_name(f"{tensor}_dequantized")
        takers = [(graph.by_name[node], index) for node, index in readers]
        if through:
            maker = graph.producer.get(tensor)
            if maker is not None and len(takers) == len(graph.consumers.get(tensor, [])):
                # The output itself must come out of the pair, under its own name.
                source, result = graph.unused_name(f"{tensor}_float"), tensor
                maker.output[list(maker.output).index(tensor)] = source
                takers = []
                graph.touched(new_names=False)
        for node, index in takers:
            node.input[index] = result
        graph.touched(new_names=False)
        scale, zero = self._constants(tensor, params)
        quantized = graph.unused_name(f"{tensor}_quantized")
        self._add("QuantizeLinear", [source, scale, zero], quantized, params)
        self._add("DequantizeLinear", [quantized, scale, zero], result, params)

    def weight(self, node: onnx.NodeProto, index: int, params: QuantParams) -> None:
        graph = self.graph
        name = node.input[index]
        values = params.quantize(graph.array(name)).astype(params.dtype)
        # One constant may serve several layers: each gets its own, for its scale may be its own.
        stem = graph.unused_name(f"{name}_quantized")
        graph.set_array(stem, values)
        scale, zero = self._constants(stem, params)
        result = graph.unused_name(f"{name}_dequantized")
        self._add("DequantizeLinear", [stem, scale, zero], result, params)
        node.input[index] = result
        graph.touched(new_names=False)

    def bias(self, node: onnx.NodeProto, x: QuantParams, w: QuantParams) -> QuantParams:
        """Store the bias as INT32; returns weight parameters, widened where the bias would overflow."""
        graph = self.graph
        name = node.input[2]
        values = graph.array(name).astype(np.float64).reshape(-1)
        scales = np.broadcast_to(w.scale.astype(np.float64), values.shape)
        least = np.abs(values) / (_INT32_MAX * float(x.scale))
        if np.any(least > scales):
            widened = np.maximum(scales, least * 1.01).astype(np.float32)
            scale = widened if w.axis is not None else np.asarray(widened.max())
            w = QuantParams(scale, w.zero_point, w.low, w.high, w.axis)
        scale = (np.float64(x.scale) * np.broadcast_to(w.scale.astype(np.float64), values.shape)).astype(np.float32)
        quantized = np.clip(np.rint(values / scale.astype(np.float64)), -_INT32_MAX, _INT32_MAX).astype(np.int32)
        stem = graph.unused_name(f"{name}_quantized")
        graph.set_array(stem, quantized)
        scale_name, zero_name = graph.unused_name(f"{stem}_scale"), graph.unused_name(f"{stem}_zero_point")
        graph.set_array(scale_name, scale)
        graph.set_array(zero_name, np.zeros(scale.shape, np.int32))
        result = graph.unused_name(f"{name}_dequantized")
        self.added.append(
            helper.make_node(
                "DequantizeLinear",
                [stem, scale_name, zero_name],
                [result],
                name=graph.unused_name(f"{result}_node"),
                axis=0,
            )
        )
        node.input[2] = result
        graph.touched(new_names=False)
        return w

    def _constants(self, stem: str, params: QuantParams) -> tuple[str, str]:
        scale, zero = self.graph.unused_name(f"{stem}_scale"), self.graph.unused_name(f"{stem}_zero_point")
        self.graph.set_array(scale, params.scale)
        self.graph.set_array(zero, params.zero_point.astype(params.dtype))
        return scale, zero

    def _add(self, op: str, inputs: list[str], output: str, params: QuantParams) -> None:
        attributes: dict[str, Any] = {} if params.axis is None else {"axis": params.axis}
        name = self.graph.unused_name(f"{output}_node")
        self.added.append(helper.make_node(op, inputs, [output], name=name, **attributes))


def _is_row(graph: Graph, bias: str, weights: QuantParams) -> bool:
    """Whether a bias is a constant of one value an output channel: integer kernels take no other."""
    if bias not in graph.initializers:
        return False
    dims = list(graph.initializers[bias].dims)
    channels = int(np.prod(dims)) if weights.axis is None else weights.scale.size
    return bool(dims) and dims[-1] == channels == int(np.prod(dims))

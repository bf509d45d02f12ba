"""What each tensor of a graph is computed in, read from the types around the node that makes it."""

from __future__ import annotations

from collections.abc import Collection

import onnx

from ...model.graph import Graph, attributes

__all__ = ["LAYERS", "MOVERS", "maker_of", "precision_of"]

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators with weights."""

MOVERS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Transpose", "Cast")
"""Operators that hand values on: their error is that of what they read."""

_INTEGER_OPS = (
    "ConvInteger",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QGemm",
    "QLinearConv",
    "QLinearMatMul",
)
_SCALING = ("Mul", "Cast", "Add")
_NAMES: dict[int, str] = {
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT8: "int8",
    onnx.TensorProto.INT4: "int4",
    onnx.TensorProto.UINT4: "int4",
    onnx.TensorProto.FLOAT8E4M3FN: "fp8",
    onnx.TensorProto.FLOAT8E5M2: "fp8",
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.BFLOAT16: "bf16",
}


def maker_of(graph: Graph, tensor: str, known: Collection[str] = ()) -> onnx.NodeProto:
    """The node that computes a tensor, seen through a Q/DQ pair and through the scaling of integer results.

    known: tensors of the graph before quantisation; what makes them is another layer.
    """
    node = graph.producer[tensor]
    for op in ("DequantizeLinear", "QuantizeLinear"):
        if node.op_type == op and node.input[0] in graph.producer:
            node = graph.producer[node.input[0]]
    found, steps = node, [node]
    for _ in range(4):  # integers are cast, scaled by both scales, and the bias added, before they get the name
        steps = [
            graph.producer[name]
            for step in steps
            if step.op_type in _SCALING
            for name in step.input
            if name in graph.producer and name not in known
        ]
        found = next((step for step in steps if step.op_type in _INTEGER_OPS), found)
    return found


def precision_of(graph: Graph, tensor: str, known: Collection[str] = ()) -> str:
    """fp32, fp16, bf16, fp8, int8, w4a8, or "int4 weights" where activations are not quantised."""
    node = maker_of(graph, tensor, known)
    if node.op_type in _INTEGER_OPS:
        return "int8"
    if node.op_type == "MatMulNBits":
        return f"int{attributes(node).get('bits', 4)} weights"
    read = [_stored(graph, name) for name in node.input[:2]]
    if node.op_type in LAYERS and len(read) == 2:
        activation, weight = read
        if activation and weight:
            return activation if activation == weight else f"w{weight[3:]}a{activation[3:]}"
        if weight:
            return f"{weight} weights"
    elif read and all(read):
        return next(kind for kind in read if kind)
    return _NAMES.get(graph.types.get(tensor, (0, None))[0], "fp32")


def _stored(graph: Graph, tensor: str) -> str | None:
    """What a dequantised tensor was stored as, or None when it was not quantised."""
    maker = graph.producer.get(tensor)
    while maker is not None and maker.op_type in MOVERS:
        maker = graph.producer.get(maker.input[0])
    if maker is None or maker.op_type != "DequantizeLinear":
        return None
    return _NAMES.get(graph.types.get(maker.input[0], (0, None))[0], "int8")

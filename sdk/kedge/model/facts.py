"""What preflight asks of a graph that needs onnx itself: its checker's word, and names for element types."""

from __future__ import annotations

import onnx

from ..errors import first_line
from .graph import Graph
from .onnx_io import to_standard_error

__all__ = ["CHECKER", "FP64", "LONG", "PRECISIONS_BY_KIND", "TYPES_BY_KIND", "input_kinds", "strict_fault"]

CHECKER = f"onnx {onnx.__version__}"

FP64 = int(onnx.TensorProto.DOUBLE)
LONG = (int(onnx.TensorProto.INT64), FP64)

PRECISIONS_BY_KIND: dict[int, str] = {
    onnx.TensorProto.FLOAT: "fp32",
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.BFLOAT16: "bf16",
    onnx.TensorProto.FLOAT8E4M3FN: "fp8",
    onnx.TensorProto.INT4: "int4",
    getattr(onnx.TensorProto, "FLOAT4E2M1", -1): "fp4",
}
"""Element types that are precisions, as profiles name them."""

TYPES_BY_KIND: dict[int, str] = {
    onnx.TensorProto.FLOAT: "FP32",
    onnx.TensorProto.FLOAT16: "FP16",
    onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.BOOL: "BOOL",
    onnx.TensorProto.DOUBLE: "FP64",
    onnx.TensorProto.UINT8: "UINT8",
}
"""Element types as the tables of TensorRT's parser name them."""


def strict_fault(graph: Graph) -> str | None:
    """What ONNX's checker says with strict shape inference; None where it is content."""
    try:
        with to_standard_error():
            onnx.checker.check_model(graph.proto, full_check=True)
    except Exception as error:  # the checker's and the inference's own classes, and RuntimeError
        return first_line(error)
    return None


def input_kinds(graph: Graph) -> dict[str, int]:
    """Element type of each input."""
    return {value.name: value.type.tensor_type.elem_type for value in graph.proto.graph.input}

"""Small Q/DQ graphs, right and wrong ones, made node by node."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kedge.model.graph import Graph

SCALE = 0.1
_TYPES = {
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int4": TensorProto.INT4,
    "uint4": TensorProto.UINT4,
    "fp8": TensorProto.FLOAT8E4M3FN,
    "fp8-e5m2": TensorProto.FLOAT8E5M2,
}


class Net:
    """A graph in the making: each method adds a node and returns the name of what it makes."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(seed)

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"k{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def typed(self, value: Any, kind: str) -> str:
        dtype = helper.tensor_dtype_to_np_dtype(_TYPES[kind])
        return self.constant(np.asarray(value).astype(dtype), dtype)

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name, **attributes))
        return name

    def pair(
        self, source: str, scale: Any = SCALE, zero: Any = 0, kind: str = "int8", dq_scale: Any = None, **where: Any
    ) -> str:
        """Q, then DQ."""
        at = self.constant(scale)
        z = self.typed(np.broadcast_to(zero, np.shape(scale)), kind)
        quantized = self.add("QuantizeLinear", source, at, z, **where)
        return self.add("DequantizeLinear", quantized, at if dq_scale is None else self.constant(dq_scale), z, **where)

    def weights(
        self, *shape: int, axis: int | None = 0, kind: str = "int8", scale: float = 0.01, zero: int = 0, block: int = 0
    ) -> str:
        """A DQ before a constant; axis None: one scale for all; block: elements along the axis that share one."""
        high = 7 if kind.endswith("int4") else 100
        values = self.typed(self.random.integers(0 if kind.startswith("u") else -high, high, shape), kind)
        scales: Any = () if axis is None else (shape[axis],)
        where = {} if axis is None else {"axis": axis}
        if block and axis is not None:
            scales = tuple(size // block if index == axis else size for index, size in enumerate(shape))
            where["block_size"] = block
        z = self.typed(np.full(scales, zero), kind)
        # Scales differ, or the compiler folds equal ones into one.
        steps = scale * self.random.uniform(0.5, 1.5, scales)
        return self.add("DequantizeLinear", values, self.constant(steps), z, **where)

    def conv(self, source: str, channels: int = 16, *, bias: str = "", group: int = 1, **weights: Any) -> str:
        """A quantised 3x3 convolution of 16 channels to as many as named."""
        weight = self.weights(channels, 16 // group, 3, 3, **weights)
        inputs = [source, weight, bias] if bias else [source, weight]
        return self.add("Conv", *inputs, pads=[1] * 4, group=group)

    def graph(self, out: str, shape: Any = (1, 16, 8, 8), opset: int = 21) -> Graph:
        """Input `x` of this shape; any output."""
        made = helper.make_graph(
            self.nodes,
            "qdq",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_empty_tensor_value_info(out)],
            self.constants,
        )
        made.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
        return Graph(helper.make_model(made, opset_imports=opsets, ir_version=10))

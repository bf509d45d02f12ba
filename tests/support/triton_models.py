"""Models that a client of the inference protocol can be tried on: two outputs, strings, every datatype, a long run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from onnx.onnx_ml_pb2 import ModelProto

from tests.support.models import IR_VERSION, OPSET

NUMERIC = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
}
"""ONNX element types by the protocol's names."""

SIDE = 384


def simple(path: Path) -> Path:
    """a [batch, 16], b [batch, 16] → sum, difference, all INT32: the model of Triton's first example."""
    return _save(
        path,
        [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])],
        [helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", 16]) for name in ("a", "b")],
        [helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", 16]) for name in ("sum", "difference")],
    )


def strings(path: Path) -> Path:
    """text [n] → same [n], twice [m], all BYTES."""
    return _save(
        path,
        [
            helper.make_node("Identity", ["text"], ["same"]),
            helper.make_node("Concat", ["text", "text"], ["twice"], axis=0),
        ],
        [helper.make_tensor_value_info("text", TensorProto.STRING, ["n"])],
        [
            helper.make_tensor_value_info("same", TensorProto.STRING, ["n"]),
            helper.make_tensor_value_info("twice", TensorProto.STRING, ["m"]),
        ],
    )


def every_type(path: Path) -> Path:
    """in_T [n] → out_T [n], unchanged, for every numeric datatype T."""
    names = {name.lower(): element for name, element in NUMERIC.items()}
    return _save(
        path,
        [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in names],
        [helper.make_tensor_value_info(f"in_{name}", element, ["n"]) for name, element in names.items()],
        [helper.make_tensor_value_info(f"out_{name}", element, ["n"]) for name, element in names.items()],
    )


def slow(path: Path) -> Path:
    """steps [1] INT64 → value [1] FP32, always 1: as many matrix products as asked for, one after another."""
    mean = np.full((SIDE, SIDE), 1 / SIDE, np.float32)
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["before", "mean"], ["after"]),
            helper.make_node("Identity", ["go_on"], ["going_on"]),
        ],
        "step",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, [SIDE, SIDE]),
        ],
        [
            helper.make_tensor_value_info("going_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, [SIDE, SIDE]),
        ],
    )
    return _save(
        path,
        [
            helper.make_node("Loop", ["steps", "always", "ones"], ["last"], body=body),
            helper.make_node("ReduceMean", ["last"], ["whole"], keepdims=0),
            helper.make_node("Reshape", ["whole", "one"], ["value"]),
        ],
        [helper.make_tensor_value_info("steps", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("value", TensorProto.FLOAT, [1])],
        {
            "mean": mean,
            "ones": np.ones((SIDE, SIDE), np.float32),
            "always": np.array(True),
            "one": np.array([1], np.int64),
        },
    )


def _save(path: Path, nodes: list, inputs: list, outputs: list, constants: dict[str, np.ndarray] | None = None) -> Path:
    weights = [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(nodes, "test", inputs, outputs, weights)
    model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    path.write_bytes(model.SerializeToString())
    return path

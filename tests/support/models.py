"""Small real ONNX models, made with onnx's own helpers: no torch, no downloads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8


def _save(
    path: Path, nodes: list, inputs: list, outputs: list, initializers: list, *, opsets: dict[str, int] | None = None
) -> Path:
    graph = helper.make_graph(nodes, "test", inputs, outputs, initializers)
    imports = [helper.make_opsetid(domain, version) for domain, version in (opsets or {"": OPSET}).items()]
    model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def classifier(path: Path, *, seed: int = 0, classes: int = 4, batch: str | int = "batch") -> Path:
    """image [batch, 1, 8, 8] → logits [batch, classes]: a convolution, ReLU, pooling, a matrix."""
    random = np.random.default_rng(seed)
    weights = {
        "conv.w": random.standard_normal((8, 1, 3, 3)).astype(np.float32),
        "fc.w": random.standard_normal((8, classes)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "conv.w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "fc.w"], ["logits"]),
    ]
    return _save(
        path,
        nodes,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )


def wide(path: Path) -> Path:
    """x [batch, 64] → y [batch, 4], by way of [batch, 8192]: activations are far larger than what goes in and out."""
    random = np.random.default_rng(0)
    weights = {
        "up": random.standard_normal((64, 8192)).astype(np.float32),
        "down": random.standard_normal((8192, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["u"]),
        helper.make_node("Relu", ["u"], ["r"]),
        helper.make_node("MatMul", ["r", "down"], ["y"]),
    ]
    return _save(
        path,
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )


def adder(path: Path, *, datatype: int = TensorProto.FLOAT) -> Path:
    """a [n], b [n] → sum [n]: two inputs that must agree."""
    return _save(
        path,
        [helper.make_node("Add", ["a", "b"], ["sum"])],
        [helper.make_tensor_value_info(name, datatype, ["n"]) for name in ("a", "b")],
        [helper.make_tensor_value_info("sum", datatype, ["n"])],
        [],
    )


def nonzero(path: Path) -> Path:
    """x [n] → indices [1, k]: the output's size depends on the data."""
    return _save(
        path,
        [helper.make_node("NonZero", ["x"], ["indices"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("indices", TensorProto.INT64, [1, "k"])],
        [],
    )


def to_float(path: Path, *, datatype: int) -> Path:
    """x [n] of any type → y [n] as float."""
    return _save(
        path,
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)],
        [helper.make_tensor_value_info("x", datatype, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [],
    )


def misdeclared(path: Path) -> Path:
    """x [n] → firsts [n]: but it gives the first two alone, whatever it says of itself."""
    return _save(
        path,
        [helper.make_node("Slice", ["x", "start", "end"], ["firsts"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("firsts", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.array([value]), name) for name, value in (("start", 0), ("end", 2))],
    )


def words(path: Path, *, times: int = 2) -> Path:
    """text [batch] of strings, weight [batch] → twice [batch] of strings, score [batch].

    twice: each text, so many times (2 or 3). score: weight for "yes", its negative for "no", else 0.
    """
    return _save(
        path,
        [
            helper.make_node("StringConcat", ["text", "text"], ["doubled"]),
            helper.make_node("StringConcat", ["doubled", "text" if times == 3 else "nothing"], ["twice"]),
            helper.make_node(
                "LabelEncoder",
                ["text"],
                ["sign"],
                domain="ai.onnx.ml",
                keys_strings=["yes", "no"],
                values_floats=[1.0, -1.0],
                default_float=0.0,
            ),
            helper.make_node("Mul", ["sign", "weight"], ["score"]),
        ],
        [
            helper.make_tensor_value_info("text", TensorProto.STRING, ["batch"]),
            helper.make_tensor_value_info("weight", TensorProto.FLOAT, ["batch"]),
        ],
        [
            helper.make_tensor_value_info("twice", TensorProto.STRING, ["batch"]),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"]),
        ],
        [helper.make_tensor("nothing", TensorProto.STRING, [], [b""])],
        opsets={"": 20, "ai.onnx.ml": 3},
    )


def padded(path: Path, size_bytes: int) -> Path:
    """x [n] → y [n] with an unused-but-loaded constant of `size_bytes`: a model of any weight."""
    blob = np.random.default_rng(1).standard_normal(max(size_bytes // 4, 1)).astype(np.float32)
    return _save(
        path,
        [helper.make_node("ReduceMax", ["blob"], ["m"], keepdims=0), helper.make_node("Add", ["x", "m"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(blob, "blob")],
    )


def images(count: int = 16, *, seed: int = 1) -> np.ndarray:
    """Inputs for `classifier`."""
    return np.random.default_rng(seed).standard_normal((count, 1, 8, 8)).astype(np.float32)

"""A release to try installations with: a small network, made here with the environment that builds."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .steps import shell

__all__ = ["make"]


def make(folder: Path) -> tuple[Path, Path]:
    """(release folder, .npy of inputs [4, 8] float32), for the generic target of this machine."""
    chance = np.random.default_rng(0)
    inputs = folder / "inputs.npy"
    np.save(inputs, chance.standard_normal((4, 8)).astype(np.float32))
    weight = numpy_helper.from_array(chance.standard_normal((8, 3)).astype(np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "sample",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [weight],
    )
    # The opset and IR version that onnxruntime 1.23 reads, the last for Python 3.10.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "sample.onnx"
    onnx.save(model, path)
    out = folder / "sample.release"
    program = "from kedge.targets import host_target; print(host_target().name)"
    target = shell([sys.executable, "-c", program]).strip()
    words = ["build", path, "--target", target, "--golden", inputs, "-o", out, "--json"]
    shell([sys.executable, "-m", "kedge", *words])
    return out, inputs

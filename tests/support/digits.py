"""A small residual network for 8×8 digits, and the digits: what optimisation is tried on where seconds count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from kedge.model.graph import Graph
from kedge.model.samples import Samples
from kedge.optimize.proof.runner import run_all
from kedge.optimize.train.recover import Recover
from kedge.optimize.work import Work
from kedge.targets import load_target

CPU, RTX = "cpu-generic-x86_64", "rtx-ada-2000"


def residual_net(*, batch: str | int = "n", seed: int = 0) -> Graph:
    """image [n, 1, 8, 8] → logits [n, 10]: stem, one residual block (left, right, join), head; random weights."""
    random = np.random.default_rng(seed)

    def weight(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)

    constants = {"ws": weight(8, 1, 3, 3), "wl": weight(8, 8, 3, 3), "wr": weight(8, 8, 3, 3) / 2}
    constants |= {"bs": np.zeros(8), "bl": np.zeros(8), "br": np.zeros(8), "wh": weight(10, 128), "bh": np.zeros(10)}
    conv = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["image", "ws", "bs"], ["s"], name="stem", **conv),
        helper.make_node("Relu", ["s"], ["sr"], name="stem_relu"),
        helper.make_node("MaxPool", ["sr"], ["p"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p", "wl", "bl"], ["l"], name="left", **conv),
        helper.make_node("Relu", ["l"], ["lr"], name="left_relu"),
        helper.make_node("Conv", ["lr", "wr", "br"], ["r"], name="right", **conv),
        helper.make_node("Add", ["r", "p"], ["j"], name="join"),
        helper.make_node("Relu", ["j"], ["jr"], name="join_relu"),
        helper.make_node("Flatten", ["jr"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "wh", "bh"], ["logits"], name="head", transB=1),
    ]
    made = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 10])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    return Graph(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def digits() -> tuple[Samples, Samples]:
    """Images from 0 to 1 with labels: 900 to train on, 600 to judge by."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.images))
    images = (data.images[order, None] / 16).astype(np.float32)
    whole = Samples({"image": images}, data.target[order].astype(np.int64), "digits")
    return whole.take(slice(0, 900)), whole.take(slice(900, 1500))


def work_on(
    graph: Graph,
    calibration: Samples | None,
    folder: Path,
    *,
    target: str = CPU,
    train: Samples | None = None,
    **more: Any,
) -> Work:
    return Work(load_target(target), graph, calibration, train, folder, folder, **more)


def trained_net(train: Samples, folder: Path) -> Graph:
    """About 97 % right, in a second or two."""
    start = residual_net()
    settings = Recover(learning_rate=1e-2, epochs=6, batch=64, validation=0.0)
    return settings.apply(start, work_on(start, None, folder, train=train)).graph


def accuracy(graph: Graph, samples: Samples, *, faithful: bool = False) -> float:
    assert samples.labels is not None
    scores = run_all(graph, samples, faithful=faithful)["logits"]
    return float(np.mean(scores.argmax(axis=1) == samples.labels))

"""Models and releases that misbehave on a device: they hang, fail, crash, exhaust memory, are slow, or are not as said.

Misbehaving is asked for by an input, so that one file serves well and badly: golden inputs that ask for it make a
release that its host could not have built, and clients that ask for it make one fail that passed its gates.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kedge.build.release import BuildOptions, build_release
from kedge.release.bundle import Release, write_release
from kedge.targets import host_target
from tests.support.environment import lacks
from tests.support.models import IR_VERSION, OPSET

SIDE = 64
FOREVER = 1 << 50
"""Turns: years of them."""

TOO_MUCH = 1 << 38
"""Numbers that no machine's memory holds: a tebibyte of them."""

X = np.array([1.0, -2.0, 3.0, 0.5], np.float32)


def order(*, turns: int = 1, divisor: int = 1, index: int = 0, size: int = 1) -> np.ndarray:
    """What `obedient` is to do beside its work.

    turns: matrix products, each some microseconds. divisor: of the least INT64; -1 ends an x86 process with SIGFPE
    (onnxruntime 1.32 checks for 0 alone). index: of one of four values; another is an error of the runtime's.
    size: numbers of four bytes that are allocated, and summed.
    """
    return np.array([turns, divisor, index, size], np.int64)


def slow_order(at_least_ms: float) -> np.ndarray:
    """An order that takes this machine about so long where nothing else runs on it, and longer where something does.

    A limit that it is to break lies at a third of that at most: what ran beside the measuring made it seem slower.
    """
    return order(turns=int(at_least_ms * _turns_per_ms()) + 1)


@cache
def _turns_per_ms() -> float:
    """How fast this machine turns at its best: of many short runs the quickest, with one thread and with several."""
    import onnxruntime

    best_s = float("inf")
    turns = 200
    with TemporaryDirectory() as folder:
        path = obedient(Path(folder) / "model.onnx")
        for threads in (1, 0):
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            for _ in range(50):
                began = time.perf_counter()
                session.run(None, {"x": X, "order": order(turns=turns)})
                best_s = min(best_s, time.perf_counter() - began)
    return turns / best_s / 1e3


def crash() -> np.ndarray:
    """An order that ends the process that computes it."""
    if platform.machine() != "x86_64":
        lacks("x86_64", "the least INT64 divided by -1 ends a process on x86 alone")
    return order(divisor=-1)


def obedient(path: Path, *, seed: int = 0) -> Path:
    """x [4], order [4] → y [4], x by a factor that the seed gives, once it has done what `order` says."""
    factor = np.float32(1 + np.random.default_rng(seed).random())
    body = helper.make_graph(
        [helper.make_node("MatMul", ["before", "eye"], ["after"]), helper.make_node("Identity", ["on"], ["still"])],
        "turn",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, [SIDE, SIDE]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, [SIDE, SIDE]),
        ],
    )
    nodes = [
        helper.make_node("Split", ["order"], ["turns_1", "divisor", "index", "size"], axis=0),
        helper.make_node("Squeeze", ["turns_1"], ["turns"]),
        helper.make_node("Loop", ["turns", "", "eye"], ["turned"], body=body),
        helper.make_node("ReduceMean", ["turned"], ["did_turn"], keepdims=0),
        helper.make_node("Div", ["least", "divisor"], ["quotient"]),
        helper.make_node("Cast", ["quotient"], ["did_divide"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["values", "index"], ["did_gather"]),
        helper.make_node("ConstantOfShape", ["size"], ["many"]),
        helper.make_node("ReduceSum", ["many"], ["did_allocate"], keepdims=0),
        helper.make_node("Sum", ["did_turn", "did_divide", "did_gather", "did_allocate"], ["did"]),
        helper.make_node("Mul", ["did", "nothing"], ["zero"]),
        helper.make_node("Mul", ["x", "factor"], ["scaled"]),
        helper.make_node("Add", ["scaled", "zero"], ["y"]),
    ]
    constants = {
        "eye": np.eye(SIDE, dtype=np.float32),
        "least": np.array([np.iinfo(np.int64).min], np.int64),
        "values": np.ones(4, np.float32),
        "nothing": np.zeros(1, np.float32),
        "factor": np.array([factor], np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "obedient",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [4]),
            helper.make_tensor_value_info("order", TensorProto.INT64, [4]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def obedient_release(
    folder: Path,
    *,
    version: int,
    name: str = "digits",
    golden: np.ndarray | None = None,
    gates: Mapping[str, Any] | None = None,
    probation_s: int = 0,
) -> Release:
    """A release of `obedient`; every version has other weights.

    Args:
        golden: what its golden inputs order; the golden outputs are those of an order that is harmless.
        gates: entries of the manifest's gates, beside parity and probation.
    """
    model = obedient(folder / f"{name}-{version}.onnx", seed=version)
    built = build_release(
        model,
        host_target(),
        folder / f"{name}-{version}.built",
        BuildOptions(name, version, pack=False),
        {"x": X, "order": order()},
    ).release

    def change(body: dict[str, Any]) -> None:
        body["gates"] = {"parity": body["gates"]["parity"], "probation": {"seconds": probation_s}, **(gates or {})}

    files = {}
    if golden is not None:
        files = {tensor.file: golden.tobytes() for tensor in built.manifest.golden.inputs if tensor.name == "order"}
    return variant(built, folder / f"{name}-{version}.release", change, files)


def variant(
    release: Release,
    folder: Path,
    change: Callable[[dict[str, Any]], None] = lambda body: None,
    files: Mapping[str, bytes] | None = None,
) -> Release:
    """Another release: the manifest as `change` leaves it, some files with other content; all of its hashes hold."""
    body = json.loads(release.manifest_bytes)
    sources: dict[str, Path | bytes] = {entry["name"]: release.folder / entry["name"] for entry in body.pop("files")}
    change(body)
    return write_release(folder, {**sources, **(files or {})}, body)


def wrong_outputs(release: Release, folder: Path) -> Release:
    """The same with golden outputs that no device computes: it passes on the host that says so, and on none else."""
    outputs = {tensor.file for tensor in release.manifest.golden.outputs}
    files = {name: (release.folder / name).read_bytes()[::-1] for name in outputs}
    return variant(release, folder, files=files)


def ask(what: np.ndarray | None = None) -> dict[str, Any]:
    """The body of an inference request to `obedient`."""
    return {
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [4], "data": X.tolist()},
            {
                "name": "order",
                "datatype": "INT64",
                "shape": [4],
                "data": (order() if what is None else what).tolist(),
            },
        ]
    }

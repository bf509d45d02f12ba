"""What tools/bench/serving.py asks, and whom: models with their inputs, and each server's way to put a request."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from facts import SHARED
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from serving_client import Address, Connection, prepare
from serving_servers import Server, fastapi, floor, kedge, kedge_empty, mlserver

from kedge_agent.formats.oip import HEADER_LENGTH, decode_response, encode_request

__all__ = ["EMPTY", "FLOOR", "TCP", "UNIX", "Case", "Way", "cases", "prepared", "trial"]

EMPTY = "kedge, no model"
UNIX, TCP = "kedge, Unix socket", "kedge, TCP"
FLOOR = "the floor"

_JSON = [("Content-Type", "application/json")]
_BYTES = [("Content-Type", "application/octet-stream")]
_NOBODY = "no interpreter was named that has it"

Tensor = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """A model and the one input that everybody sends."""

    key: str
    about: str
    path: Path
    input: str
    x: Tensor


@dataclass(frozen=True)
class Way:
    """One way to ask a server: how a case becomes a request, and an answer a tensor."""

    name: str
    server: str
    address: Address
    request: Callable[[Case], bytes]
    answer: Callable[[bytes, memoryview], Any]


def cases(folder: Path) -> list[Case]:
    draw = np.random.default_rng(0)

    def image(*shape: int) -> Tensor:
        return draw.uniform(-1, 1, shape).astype(np.float32)

    identity = Case(
        "identity",
        "no work at all: 1 × 3 × 224 × 224 in, the same out",
        _identity(folder / "identity.onnx"),
        "x",
        image(1, 3, 224, 224),
    )
    models = SHARED / "models"
    if not models.is_dir():
        # What a server adds does not depend on what the weights are.
        made = "weights drawn at random, for want of a real model"
        return [
            Case(
                "image",
                f"six convolutions, {made}: 1 × 3 × 224 × 224 in, 8 values out",
                _convolutions(folder / "image.onnx", (3, 32, 64, 64, 64, 64), 2),
                "x",
                image(1, 3, 224, 224),
            ),
            Case(
                "tiny",
                f"two convolutions, {made}: 1 × 1 × 28 × 28 in, 8 values out",
                _convolutions(folder / "tiny.onnx", (1, 8), 1),
                "x",
                image(1, 1, 28, 28),
            ),
            identity,
        ]
    return [
        Case(
            "mobilenetv2",
            "MobileNetV2 of ImageNet, FP32: 1 × 3 × 224 × 224 in, 1001 values out",
            models / "mobilenetv2_imagenet.onnx",
            "input",
            image(1, 3, 224, 224),
        ),
        Case(
            "mnist",
            "a small CNN: 1 × 1 × 28 × 28 in, 10 values out",
            models / "mnist_cnn.onnx",
            "Input3",
            image(1, 1, 28, 28),
        ),
        identity,
    ]


def _convolutions(path: Path, channels: Sequence[int], halvings: int) -> Path:
    """x [batch, channels[0], size, size] → y [batch, 8]: 3 × 3 kernels, the first `halvings` of stride 2; mean."""
    draw = np.random.default_rng(0)
    weights, nodes, last = [], [], "x"
    for number, (source, sink) in enumerate(pairwise([*channels, 8])):
        kernel = draw.standard_normal((sink, source, 3, 3)).astype(np.float32) / np.float32(3 * source**0.5)
        weights.append(numpy_helper.from_array(kernel, f"w{number}"))
        stride = [2, 2] if number < halvings else [1, 1]
        nodes.append(helper.make_node("Conv", [last, f"w{number}"], [f"c{number}"], pads=[1] * 4, strides=stride))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"]))
        last = f"r{number}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["mean"]))
    nodes.append(helper.make_node("Flatten", ["mean"], ["y"]))
    size = 224 if channels[0] == 3 else 28
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", channels[0], size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _identity(path: Path) -> Path:
    """x [batch, 3, 224, 224] → y, the same."""
    shape = ["batch", 3, 224, 224]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "identity",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def prepared(
    folder: Path, found: list[Case], peers: Mapping[str, str | None], threads: int
) -> tuple[list[Server], list[Way], dict[str, dict[str, str]]]:
    """The servers, the ways to ask them, and why a way is not measured: by way and model."""
    models = {case.key: case.path for case in found}

    def fresh(name: str) -> Path:
        (folder / name).mkdir()
        return folder / name

    agent, tcp = kedge(fresh("kedge"), models, threads, len(os.sched_getaffinity(0)))
    least = floor(fresh("floor"), models, threads)
    servers = [kedge_empty(fresh("empty")), agent, least]
    ways = [
        Way(FLOOR, least.name, least.address, _floor_request, _bytes_answer),
        Way(UNIX, agent.name, agent.address, _binary_request, _binary_answer),
        Way(TCP, agent.name, tcp, _binary_request, _binary_answer),
    ]
    missing: dict[str, dict[str, str]] = {}
    python = peers["mlserver"]
    for name, workers in (("MLServer", 1), ("MLServer, no worker processes", 0)):
        if python is None:
            missing[name] = dict.fromkeys(models, _NOBODY)
            continue
        server = replace(mlserver(fresh(f"mlserver-{workers}"), python, models, threads, workers), name=name)
        servers.append(server)
        ways.append(Way(name, name, server.address, _oip_json_request, _oip_json_answer))
    python = peers["fastapi"]
    if python is None:
        missing["FastAPI"] = dict.fromkeys(models, _NOBODY)
    else:
        server = fastapi(fresh("fastapi"), python, models, threads)
        servers.append(server)
        ways += [
            Way("FastAPI, JSON", server.name, server.address, _lists_request, _lists_answer),
            Way("FastAPI, bytes", server.name, server.address, _bytes_request, _bytes_answer),
        ]
    return servers, ways, missing


def _binary_request(case: Case) -> bytes:
    header, buffers = encode_request({case.input: case.x})
    headers = [(HEADER_LENGTH, str(len(header))), *_BYTES]
    return prepare("POST", f"/v2/models/{case.key}/infer", [header, *map(bytes, buffers)], headers)


def _binary_answer(head: bytes, body: memoryview) -> Any:
    name = HEADER_LENGTH.lower().encode() + b":"
    length = next(int(line[len(name) :]) for line in head.split(b"\r\n") if line.lower().startswith(name))
    return next(iter(decode_response(body, length).values()))


def _oip_json_request(case: Case) -> bytes:
    tensor = {"name": case.input, "datatype": "FP32", "shape": list(case.x.shape), "data": case.x.ravel().tolist()}
    return prepare("POST", f"/v2/models/{case.key}/infer", [json.dumps({"inputs": [tensor]}).encode()], _JSON)


def _oip_json_answer(_: bytes, body: memoryview) -> Any:
    return json.loads(bytes(body))["outputs"][0]["data"]


def _lists_request(case: Case) -> bytes:
    return prepare("POST", f"/predict/{case.key}", [json.dumps({"data": case.x.tolist()}).encode()], _JSON)


def _lists_answer(_: bytes, body: memoryview) -> Any:
    return json.loads(bytes(body))["output"]


def _bytes_request(case: Case) -> bytes:
    return prepare("POST", f"/predict_bytes/{case.key}", [case.x.tobytes()], _BYTES)


def _floor_request(case: Case) -> bytes:
    return prepare("POST", f"/{case.key}", [case.x.tobytes()], _BYTES)


def _bytes_answer(_: bytes, body: memoryview) -> Any:
    return np.frombuffer(bytes(body), np.float32)


def trial(way: Way, case: Case, expected: NDArray[Any]) -> str | None:
    """Why this way is not measured for this model; None when its answer is right."""
    try:
        with Connection(way.address) as connection:
            status, head, body = connection.ask(way.request(case))
            if status != 200:
                return f"status {status}: {bytes(body[:120]).decode(errors='replace')}"
            got = np.asarray(way.answer(head, body), np.float32).ravel()
    except OSError as error:
        return f"not reachable: {error.strerror or error}"
    if got.size != expected.size or not np.allclose(got, expected.ravel(), rtol=1e-3, atol=1e-5):
        return "its answer is not onnxruntime's"
    return None

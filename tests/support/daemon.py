"""The real agent as a child process that a test configures, confines and signals itself."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kedge.build.release import BuildOptions, build_release
from kedge.release.bundle import Release
from kedge.targets import host_target
from kedge_agent.store.layout import Layout, socket_directory
from tests.support.environment import lacks
from tests.unit.test_store import deliver

NOBODY = 65534


class Agent:
    """The real agent as a child process."""

    def __init__(
        self, state: Path, *options: str, prefix: Sequence[str] = (), uid: int | None = None, **environment: str
    ) -> None:
        self.state = state
        mine = socket_directory(state)
        self.sockets = mine if uid is None else Path(f"/tmp/kedge-{uid}") / mine.name
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "kedge_agent", "--state", str(state), "serve", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
            cwd="/",
        )
        assert self.process.stdout is not None
        self.greeting = self.process.stdout.readline()

    @property
    def pid(self) -> int:
        return self.process.pid

    def connect(self, door: str) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(60)
        try:
            client.connect(str(self.sockets / f"{door}.sock"))
        except OSError:
            client.close()
            raise
        return client

    def request(self, method: str, path: str, body: Any = None, *, door: str = "infer", port: int = 0) -> Any:
        """(status, headers, JSON) of one request of its own connection."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        if not port:
            connection.sock = self.connect(door)
        with contextlib.closing(connection):
            connection.request(method, path, b"" if body is None else json.dumps(body).encode())
            with connection.getresponse() as answer:
                return answer.status, answer.headers, json.loads(answer.read() or b"null")

    def spin(self, turns: int, **where: Any) -> Any:
        tensor = {"name": "turns", "shape": [1], "datatype": "INT64", "data": [turns]}
        return self.request("POST", "/v2/models/spin/infer", {"inputs": [tensor]}, **where)

    def serve(self, release: Release) -> None:
        """Put a release into the store and make it live."""
        deliver(Layout(self.state), release)
        status, _, said = self.request("POST", f"/kedge/v1/releases/{release.digest}/activate", door="control")
        assert status == 200, said

    def ends(self, timeout_s: float = 60) -> tuple[int, str]:
        """Exit status and what it said on standard error."""
        _, errors = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, errors.decode()

    @property
    def log(self) -> str:
        return (self.state / "agent.log").read_text()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def spinning(folder: Path) -> Release:
    """A release of a model that computes for as many turns as its input says."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            helper.make_node("Identity", ["on"], ["still"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [64, 64]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, 64]),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Squeeze", ["turns"], ["trips"]),
            helper.make_node("Loop", ["trips", "", "w"], ["last"], body=body),
            helper.make_node("ReduceSum", ["last"], ["sum"], keepdims=0),
        ],
        "spin",
        [helper.make_tensor_value_info("turns", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, [])],
        [numpy_helper.from_array(np.eye(64, dtype=np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "spin.onnx")
    golden = {"turns": np.array([3], np.int64)}
    options = BuildOptions("spin", pack=False)
    return build_release(folder / "spin.onnx", host_target(), folder / "release", options, golden).release


def as_nobody() -> list[str]:
    """A prefix that runs a command as `nobody`.

    It may read this checkout, which may be closed to all but its owner; it may write and connect as anybody may.
    """
    if os.geteuid() != 0:
        lacks("root", "only root can become another user")
    if shutil.which("setpriv") is None:
        lacks("root", "no setpriv on this machine (Debian: util-linux)")
    reading = "+dac_read_search"
    return [
        "setpriv",
        f"--reuid={NOBODY}",
        f"--regid={NOBODY}",
        "--clear-groups",
        f"--inh-caps=-all,{reading}",
        f"--ambient-caps=-all,{reading}",
        f"--bounding-set=-all,{reading}",
        "--no-new-privs",
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

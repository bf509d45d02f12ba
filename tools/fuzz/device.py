"""The agent that tools/fuzz fuzzes: a child process with models of several datatypes, and what is watched of it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tools.fuzz.exchange import Link, Violation

from kedge.build.release import BuildOptions, build_release
from kedge.deploy.push import deploy
from kedge.release.bundle import Release
from kedge.targets import host_target
from kedge.transport.base import Deadline
from kedge.transport.local import LocalAgent
from kedge_agent.formats.oip import HEADER_LENGTH, decode_response, encode_request
from kedge_agent.store.layout import Layout, socket_directory

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["REGION_PREFIX", "Device", "Model"]

REGION_PREFIX = f"/kedge_fuzz_{os.getpid()}_"
_SETTLE_S = 5.0
_SPARE_THREADS = 2


@dataclass(frozen=True)
class Model:
    """A model that is served: one good request, and what must come of it. digest: of its release."""

    name: str
    inputs: Mapping[str, NDArray[Any]]
    expected: Mapping[str, NDArray[Any]]
    digest: str

    def request(self) -> tuple[bytes, bytes]:
        """JSON header and binary data of the good request."""
        header, buffers = encode_request(self.inputs)
        return header, b"".join(map(bytes, buffers))


class Device:
    """The agent and its models, for as long as the context lasts. Nothing else may use it meanwhile."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        state = folder / "state"
        state.mkdir(mode=0o700)
        settings = {"shared_memory_prefix": REGION_PREFIX}
        (state / "agent.json").write_text(json.dumps(settings), encoding="utf-8")
        self._agent = LocalAgent(state, threads=1)
        self._log = Layout(state).log
        self._logged = 0
        self.models: tuple[Model, ...] = ()
        self.doors = {name: socket_directory(state) / f"{name}.sock" for name in ("infer", "control")}

    def __enter__(self) -> Self:
        try:
            self._agent.start(Deadline.after(60, "starting the agent"))
            self.models = tuple(self._deployed(*each) for each in _models(self._folder))
        except BaseException:
            self._agent.close()
            raise
        self.causes()
        return self

    def __exit__(self, *_: object) -> None:
        self._agent.close()

    @property
    def pid(self) -> int:
        assert self._agent.pid is not None
        return self._agent.pid

    def check(self) -> None:
        """It lives, and serves every model correctly, by each door.

        Raises:
            Violation: it does not.
        """
        self._settle()
        for door in self.doors.values():
            link = Link(door)
            try:
                for model in self.models:
                    self._check(link, model)
            finally:
                link.close()

    def rss_bytes(self) -> int:
        """Resident memory now."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def peak_bytes(self) -> int:
        """Resident memory at its highest."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

    def threads(self) -> int:
        """Threads now."""
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def settled(self, most: int) -> int:
        """Threads, once they are no more than `most`.

        Raises:
            Violation: they remain more.
        """
        end = time.monotonic() + _SETTLE_S
        while (count := self.threads()) > most + _SPARE_THREADS:
            if time.monotonic() > end:
                raise Violation(f"{count} threads, where there were {most}")
            time.sleep(0.01)
        return count

    def causes(self) -> list[str]:
        """Errors that were logged since the last call, a line each."""
        size = self._log.stat().st_size
        if size < self._logged:
            self._logged = 0
        with self._log.open("rb") as log:
            log.seek(self._logged)
            lines = log.read().decode(errors="replace").splitlines()
        self._logged = size
        return [line for line in lines if " ERROR " in line]

    def _settle(self) -> None:
        if not Path(f"/proc/{self.pid}/exe").exists():
            raise Violation("the agent is gone")

    def _check(self, link: Link, model: Model) -> None:
        header, data = model.request()
        head = f"POST /v2/models/{model.name}/infer HTTP/1.1\r\nContent-Length: {len(header) + len(data)}\r\n"
        request = f"{head}{HEADER_LENGTH}: {len(header)}\r\n\r\n".encode() + header + data
        (answer,) = link.exchange([request], 1)
        if answer.status == 404:
            # A case has unloaded it, as it may.
            path = f"/v2/repository/models/{model.name}/load"
            loader = Link(self.doors["control"])
            try:
                (done,) = loader.exchange([f"POST {path} HTTP/1.1\r\nContent-Length: 0\r\n\r\n".encode()], 1)
            finally:
                loader.close()
            if done.status != 200:
                raise Violation(f"{model.name} cannot be loaded again: {done.body[:200]!r}")
            (answer,) = link.exchange([request], 1)
        if answer.status != 200:
            raise Violation(f"a good request to {model.name} is answered {answer.status}: {answer.body[:200]!r}")
        length = int(answer.headers[HEADER_LENGTH.lower()])
        found = decode_response(memoryview(answer.body), length)
        for name, value in model.expected.items():
            if value.dtype.kind == "f":
                right = np.allclose(found[name], value, rtol=1e-4, atol=1e-5)
            else:
                right = [_plain(each) for each in found[name].ravel()] == [_plain(each) for each in value.ravel()]
            if not right:
                raise Violation(f"a good request to {model.name} is answered wrongly")

    def _deployed(
        self, name: str, path: Path, inputs: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]
    ) -> Model:
        built = build_release(path, host_target(), self._folder / f"{name}.release", BuildOptions(name), dict(inputs))
        release: Release = built.release
        deploy(self._agent, release)
        return Model(name, inputs, expected, release.digest)


def _plain(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value


def _models(folder: Path) -> list[tuple[str, Path, dict[str, NDArray[Any]], dict[str, NDArray[Any]]]]:
    """Name, file, inputs and expected outputs: floats and free sizes; integers and truth; strings."""
    draw = np.random.default_rng(0)
    weights = draw.standard_normal((12, 4)).astype(np.float32)
    x = draw.standard_normal((2, 12)).astype(np.float32)
    integers = np.arange(6, dtype=np.int32).reshape(2, 3)
    truth = np.array([True, False])
    texts = np.array(["", "kedge", "Grüße"], dtype=object)
    return [
        (
            "floats",
            _save(
                folder / "floats.onnx",
                [helper.make_node("MatMul", ["x", "w"], ["y"])],
                [("x", TensorProto.FLOAT, ["batch", 12])],
                [("y", TensorProto.FLOAT, ["batch", 4])],
                [numpy_helper.from_array(weights, "w")],
            ),
            {"x": x},
            {"y": x @ weights},
        ),
        (
            "mixed",
            _save(
                folder / "mixed.onnx",
                [helper.make_node("Add", ["a", "a"], ["twice"]), helper.make_node("Not", ["t"], ["not"])],
                [("a", TensorProto.INT32, ["n", 3]), ("t", TensorProto.BOOL, ["n"])],
                [("twice", TensorProto.INT32, ["n", 3]), ("not", TensorProto.BOOL, ["n"])],
                [],
            ),
            {"a": integers, "t": truth},
            {"twice": integers * 2, "not": ~truth},
        ),
        (
            "texts",
            _save(
                folder / "texts.onnx",
                [helper.make_node("Identity", ["s"], ["same"])],
                [("s", TensorProto.STRING, ["n"])],
                [("same", TensorProto.STRING, ["n"])],
                [],
            ),
            {"s": texts},
            {"same": texts},
        ),
    ]


def _save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any]) -> Path:
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*each) for each in outputs],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path

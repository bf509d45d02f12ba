"""The agent's inference protocol from outside: a daemon with a TCP door, plain HTTP, schemas, a way to other doors."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator

from kedge.build.gates import GateOptions
from kedge.build.release import BuildOptions, build_release
from kedge.deploy.push import deploy
from kedge.release.bundle import Release
from kedge.targets import host_target
from kedge.transport.base import Deadline
from kedge.transport.local import LocalAgent
from kedge_agent.formats.oip import HEADER_LENGTH
from kedge_agent.store.layout import socket_directory

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas" / "oip"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The JSON of the body: all of it, or as much as its header says."""
        return json.loads(self.body[: int(self.headers.get(HEADER_LENGTH, len(self.body)))])

    @property
    def binary(self) -> bytes:
        return self.body[int(self.headers.get(HEADER_LENGTH, len(self.body))) :]


def call(
    port: int, method: str, path: str, body: bytes | Any = b"", headers: Mapping[str, str] | None = None
) -> Answer:
    """One request on a connection of its own; a body that is not bytes is sent as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body=data, headers={"Content-Length": str(len(data)), **(headers or {})})
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def conforms(document: Any, name: str) -> None:
    """Assert that a document is as docs/schemas/oip/NAME.schema.json has it."""
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    errors = [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message[:300]}"
        for error in Draft202012Validator(schema).iter_errors(document)
    ]
    assert not errors, errors


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def forwarded(state: Path, door: str) -> Iterator[int]:
    """A TCP port that leads to a door's Unix socket, as `ssh -L PORT:….sock` makes one."""
    target = str(socket_directory(state) / f"{door}.sock")
    listener = socket.create_server(("127.0.0.1", 0))
    open_now: list[socket.socket] = []

    def copy(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.socket(socket.AF_UNIX)
                open_now.extend((near, far))
                far.connect(target)
                for pair in ((near, far), (far, near)):
                    threads.append(threading.Thread(target=copy, args=pair, daemon=True))
                    threads[-1].start()

    threads = [threading.Thread(target=accept, daemon=True)]
    threads[0].start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        for end in (listener, *open_now):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(5)
        for end in (listener, *open_now):
            end.close()


@dataclass(frozen=True)
class Served:
    """A running agent. port: of its inference door on localhost. state: its state folder."""

    port: int
    state: Path
    agent: LocalAgent

    def control(self) -> contextlib.AbstractContextManager[int]:
        return forwarded(self.state, "control")

    def deploy(
        self, model: Path, name: str, golden: Mapping[str, np.ndarray] | None = None, version: int = 1
    ) -> Release:
        options = BuildOptions(name, version, GateOptions(probation_s=0))
        release = build_release(model, host_target(), model.with_suffix(f".{version}"), options, golden).release
        deploy(self.agent, release)
        return release

    def alive(self) -> bool:
        """It is the same process still, and answers."""
        return self.agent.pid is not None and call(self.port, "GET", "/v2/health/live").json == {"live": True}


@contextlib.contextmanager
def served(folder: Path, settings: Mapping[str, Any] | None = None) -> Iterator[Served]:
    """The real agent as a child process, with a TCP door and these settings besides."""
    state = folder / "device"
    state.mkdir(mode=0o700, parents=True)
    port = free_port()
    (state / "agent.json").write_text(json.dumps({"tcp_port": port, **(settings or {})}))
    agent = LocalAgent(state, threads=1)
    try:
        agent.start(Deadline.after(60, "starting the agent"))
        yield Served(port, state, agent)
    finally:
        agent.close()

"""The HTTP surface over a real Unix socket in this process, and a client that says exactly what it is told to say."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kedge.release.bundle import Release
from kedge_agent.runtime.onnxruntime import OnnxRuntime
from kedge_agent.serving.building import Builds
from kedge_agent.serving.deploys import Deploys
from kedge_agent.serving.limits import Limits
from kedge_agent.serving.repository import Repository
from kedge_agent.serving.routes import control_handler
from kedge_agent.serving.server import HTTPServer, unix_listener
from kedge_agent.serving.shared_memory import Regions
from kedge_agent.store.journal import Journal
from kedge_agent.store.layout import Layout
from kedge_agent.store.rules import ReleaseRules


class Client:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection = http.client.HTTPConnection("agent", timeout=20)
        self.connect()

    def connect(self) -> None:
        self.connection.sock = socket.socket(socket.AF_UNIX)
        self.connection.sock.connect(str(self.path))

    def call(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any, bytes]:
        if self.connection.sock is None:
            self.connect()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, path, body=body, headers={"Content-Length": str(len(body)), **given})
        response = self.connection.getresponse()
        return response.status, response.headers, response.read()

    def infer(self, body: dict[str, Any], binary: bytes = b"", path: str = "/v2/models/digits/infer"):
        header = json.dumps(body).encode()
        extra = {"Inference_Header_Content_Length": str(len(header))} if binary else {}
        return self.call("POST", path, header + binary, **extra)

    def close(self) -> None:
        self.connection.close()


@contextmanager
def socket_path() -> Iterator[Path]:
    """A path short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder) / "s"


def activated(layout: Layout, release: Release) -> Repository:
    """A repository on a store that has this release, which serves it."""
    onnx = OnnxRuntime()
    repository = Repository(layout, {onnx.name: onnx}, threads=1)
    repository.start()
    deploys_of(repository, layout).activate(release.digest)
    return repository


def deploys_of(repository: Repository, layout: Layout, **rules: Any) -> Deploys:
    """Deploys to a repository; what goes live is not watched, unless the rules say so."""
    return Deploys(layout, repository, Journal(layout), lambda: ReleaseRules(**{"probation_s": 0, **rules}))


@contextmanager
def serving(
    repository: Repository,
    layout: Layout,
    *,
    limits: Limits | None = None,
    regions: Regions | None = None,
    door: str = "control",
) -> Iterator[tuple[HTTPServer, Path]]:
    """A server of everything; it is closed at the end, and the repository with it."""
    onnx = OnnxRuntime()
    regions = regions or Regions()
    with socket_path() as path:
        deploys = deploys_of(repository, layout)
        handler = control_handler(repository, regions, layout, {onnx.name: onnx}, Builds(layout), deploys, dict)
        server = HTTPServer(unix_listener(path), handler, limits, door=door)
        server.start()
        try:
            yield server, path
        finally:
            server.close()
            regions.close()
            repository.close()


def raw_exchange(path: Path, data: bytes, *, timeout_s: float = 10.0) -> bytes:
    """Everything the server says to these bytes until it hangs up, or has nothing more to say."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(path))
        # A server may have answered and hung up before it was asked; the answer is there all the same.
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer

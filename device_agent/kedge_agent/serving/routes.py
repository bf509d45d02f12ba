"""Which request goes where: the inference door's routes, and the control door's.

The inference door speaks the Open Inference Protocol v2 and nothing else. The control door speaks
it too, so that one connection serves a whole session of the host, and adds `/kedge/v1/`.
"""

from __future__ import annotations

import os
import platform
import re
import time
from functools import cache
from typing import Any

from .. import __version__
from ..engine.here import compatible_modules, gpu_here, jetson_linux, passport_here
from ..engine.library import RUNTIMES
from ..errors import AgentError
from ..formats.oip import HEADER_LENGTH, encode_request
from ..measure.benchmark import BenchmarkRules, run_benchmark
from ..measure.memory import read_memory
from ..runtime.base import Runtime
from ..store.layout import Layout
from ..wire import PROTOCOLS_SPOKEN
from .build_routes import build_routes
from .building import Builds
from .golden import golden_batch
from .http import Handler, Request, Response, Route, json_response, route
from .inference import infer
from .repository import Repository

__all__ = ["control_handler", "inference_handler"]

_NAME = r"(?P<model>[a-z0-9][a-z0-9_-]{0,63})"
_VERSIONED = rf"/v2/models/{_NAME}(?:/versions/(?P<version>\d{{1,20}}))?"
_DIGEST = r"(?P<digest>[0-9a-f]{64})"


def _handler(routes: list[Route]) -> Handler:
    def handle(request: Request) -> Response:
        known_path = False
        for method, pattern, function in routes:
            match = pattern.fullmatch(request.path)
            if match is not None:
                known_path = True
                if method == request.method:
                    return function(request, **match.groupdict())
        if known_path:
            raise AgentError(f"{request.method} is not allowed on {request.path[:200]}", kind="method")
        raise AgentError(f"no such resource: {request.path[:200]}", kind="not_found")

    return handle


def inference_handler(repository: Repository) -> Handler:
    """Handler of the inference door."""
    return _handler(_inference_routes(repository))


def control_handler(repository: Repository, layout: Layout, runtimes: dict[str, Runtime], builds: Builds) -> Handler:
    """Handler of the control door."""
    control = _control_routes(repository, layout, runtimes)
    return _handler(_inference_routes(repository) + control + build_routes(builds))


def _inference_routes(repository: Repository) -> list[Route]:
    def server(_: Request) -> Response:
        return json_response({"name": "kedge-agent", "version": __version__, "extensions": ["binary_tensor_data"]})

    def live(_: Request) -> Response:
        return json_response({"live": True})

    def ready(_: Request) -> Response:
        if not repository.ready.is_set():
            raise AgentError("models are still being loaded")
        return json_response({"ready": True})

    def model_metadata(_: Request, model: str, version: str | None) -> Response:
        entry = repository.get(model)
        _same_version(entry.manifest.version, version)
        return json_response(
            {
                "name": model,
                "versions": [str(entry.manifest.version)],
                "platform": f"{entry.artefact.runtime}_{'onnx' if entry.artefact.runtime == 'onnxruntime' else 'plan'}",
                "inputs": [spec.to_json() for spec in entry.artefact.inputs],
                "outputs": [spec.to_json() for spec in entry.artefact.outputs],
            }
        )

    def model_ready(_: Request, model: str, version: str | None) -> Response:
        _same_version(repository.get(model).manifest.version, version)
        return json_response({"name": model, "ready": True})

    def model_infer(request: Request, model: str, version: str | None) -> Response:
        return infer(repository, model, version, request)

    return [
        route("POST", rf"{_VERSIONED}/infer", model_infer),
        route("GET", r"/v2/?", server),
        route("GET", r"/v2/health/live", live),
        route("GET", r"/v2/health/ready", ready),
        route("GET", rf"{_VERSIONED}/ready", model_ready),
        route("GET", _VERSIONED, model_metadata),
    ]


def _same_version(serving: int, asked: str | None) -> None:
    if asked is not None and asked != str(serving):
        raise AgentError(f"version {asked} is not served, {serving} is", kind="not_found")


def _control_routes(repository: Repository, layout: Layout, runtimes: dict[str, Runtime]) -> list[Route]:
    started = time.monotonic()

    @cache
    def compilers() -> dict[str, Any]:
        found = {name: passport_here(name) for name in RUNTIMES}
        return {name: passport.to_json() for name, passport in found.items() if passport is not None}

    def info(_: Request) -> Response:
        gpu = gpu_here()
        return json_response(
            {
                "version": __version__,
                "protocols": list(PROTOCOLS_SPOKEN),
                "python": platform.python_version(),
                "os": platform.system().lower(),
                "arch": platform.machine(),
                "cores": len(os.sched_getaffinity(0)),
                "threads": repository.threads,
                "pid": os.getpid(),
                "uid": os.geteuid(),
                "uptime_s": time.monotonic() - started,
                "state": str(layout.root),
                "runtimes": {name: runtime.version() for name, runtime in runtimes.items()},
                "compilers": compilers(),
                "gpu": None if gpu is None else gpu.compute_capability,
                "compatible": list(compatible_modules()),
                "l4t": jetson_linux(),
                "memory": read_memory().to_json(),
            }
        )

    def status(_: Request) -> Response:
        return json_response({"ready": repository.ready.is_set(), "models": repository.status()})

    def activate(_: Request, digest: str) -> Response:
        return json_response(repository.activate(digest))

    def rollback(_: Request, model: str) -> Response:
        return json_response(repository.rollback(model))

    def benchmark(request: Request, model: str) -> Response:
        options = _options(request, {"batch", "warmup_ms", "duration_ms", "min_runs"})
        entry = repository.get(model)
        inputs, batch = golden_batch(layout, entry.manifest, entry.artefact.inputs, options.pop("batch", 1))
        try:
            rules = BenchmarkRules(**options)
        except ValueError as error:
            raise AgentError(str(error)) from error
        result = run_benchmark(entry.pool, inputs, rules)
        return json_response({"release": entry.manifest.digest, "batch": batch} | result)

    def memory(_: Request, model: str) -> Response:
        entry = repository.get(model)
        return json_response(
            {
                "release": entry.manifest.digest,
                "model_bytes": entry.manifest.file(entry.artefact.file).size_bytes,
                "load": entry.load,
                "now": read_memory().to_json(),
            }
        )

    def golden(request: Request, model: str) -> Response:
        match = re.fullmatch(r"(?:batch=(\d{1,6}))?", request.query)
        if match is None:
            raise AgentError(f"unknown query: {request.query[:80]!r}")
        entry = repository.get(model)
        inputs, _ = golden_batch(layout, entry.manifest, entry.artefact.inputs, int(match[1] or 1))
        header, buffers = encode_request(inputs)
        return Response(200, [header, *buffers], [(HEADER_LENGTH, str(len(header)))], "application/octet-stream")

    return [
        route("GET", r"/kedge/v1/info", info),
        route("GET", r"/kedge/v1/status", status),
        route("POST", rf"/kedge/v1/releases/{_DIGEST}/activate", activate),
        route("POST", rf"/kedge/v1/models/{_NAME}/rollback", rollback),
        route("POST", rf"/kedge/v1/models/{_NAME}/benchmark", benchmark),
        route("GET", rf"/kedge/v1/models/{_NAME}/memory", memory),
        route("GET", rf"/kedge/v1/models/{_NAME}/golden", golden),
    ]


def _options(request: Request, allowed: set[str]) -> dict[str, int]:
    body: Any = request.read_json() or {}
    if not isinstance(body, dict) or not set(body) <= allowed or not all(type(v) is int for v in body.values()):
        raise AgentError(f"options are integers among {', '.join(sorted(allowed))}")
    return body

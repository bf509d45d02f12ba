"""The Open Inference Protocol's routes: health, metadata, inference, and Triton's extensions of it.

Both doors and the localhost port have them. What changes which models are served is control, and is refused elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from .. import __version__
from ..errors import AgentError
from .http import Request, Response, Route, json_response, route
from .inference import infer
from .loading import LiveModel
from .metrics import CONTENT_TYPE, render_metrics
from .model_config import model_config, platform_of
from .repository import Repository
from .shared_memory import Regions

__all__ = ["MODEL_NAME", "oip_routes"]

MODEL_NAME = r"(?P<model>[a-z0-9][a-z0-9_-]{0,63})"
_VERSIONED = rf"/v2/models/{MODEL_NAME}(?:/versions/(?P<version>\d{{1,20}}))?"
_REGION = r"(?P<region>[^/]{1,768})"
_EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "statistics",
)
_OVERRIDE = re.compile(r"config|file:.*")


def oip_routes(repository: Repository, regions: Regions) -> list[Route]:
    """Routes of `repository`; `regions`: of shared memory, which may be off."""

    def server(_: Request) -> Response:
        extensions = [*_EXTENSIONS, *(["system_shared_memory"] if regions.prefix is not None else [])]
        return json_response({"name": "kedge-agent", "version": __version__, "extensions": extensions})

    def live(_: Request) -> Response:
        return json_response({"live": True})

    def ready(_: Request) -> Response:
        if not repository.ready.is_set():
            raise AgentError("models are still being loaded", kind="busy", hint="try again in a moment")
        return json_response({"ready": True})

    def served(model: str, version: str | None) -> LiveModel:
        entry = repository.get(model)
        entry.require_version(version)
        return entry

    def metadata(_: Request, model: str, version: str | None) -> Response:
        entry = served(model, version)
        return json_response(
            {
                "name": model,
                "versions": [str(entry.manifest.version)],
                "platform": platform_of(entry.artefact.runtime),
                "inputs": [spec.to_json() for spec in entry.artefact.inputs],
                "outputs": [spec.to_json() for spec in entry.artefact.outputs],
            }
        )

    def config(_: Request, model: str, version: str | None) -> Response:
        return json_response(model_config(served(model, version)))

    def model_ready(_: Request, model: str, version: str | None) -> Response:
        served(model, version)
        return json_response({"name": model, "ready": True})

    def model_infer(request: Request, model: str, version: str | None) -> Response:
        return infer(repository, regions, model, version, request)

    def model_statistics(_: Request, model: str, version: str | None) -> Response:
        return json_response({"model_stats": [_statistics(served(model, version))]})

    def all_statistics(_: Request) -> Response:
        return json_response({"model_stats": [_statistics(entry) for entry in repository.live()]})

    def metrics(_: Request) -> Response:
        return Response(200, [render_metrics(repository).encode()], content_type=CONTENT_TYPE)

    return [
        route("POST", rf"{_VERSIONED}/infer", model_infer),
        route("GET", r"/v2/?", server),
        route("GET", r"/v2/health/live", live),
        route("GET", r"/v2/health/ready", ready),
        route("GET", r"/v2/models/stats", all_statistics),
        route("GET", rf"{_VERSIONED}/ready", model_ready),
        route("GET", rf"{_VERSIONED}/config", config),
        route("GET", rf"{_VERSIONED}/stats", model_statistics),
        route("GET", _VERSIONED, metadata),
        route("GET", r"/metrics", metrics),
        *_repository_routes(repository),
        *_shared_memory_routes(regions),
    ]


def _statistics(entry: LiveModel) -> dict[str, Any]:
    return {
        "name": entry.manifest.model,
        "version": str(entry.manifest.version),
        **entry.statistics.to_json(),
        "drift": [] if entry.drift is None else entry.drift.report(),
    }


def _repository_routes(repository: Repository) -> list[Route]:
    def index(request: Request) -> Response:
        body = request.read_json()
        if body is not None and (not isinstance(body, dict) or not isinstance(body.get("ready", False), bool)):
            raise AgentError("the index takes an object with the key ready, true or false, or nothing")
        only_ready = bool(body and body.get("ready"))
        rows = [_index_row(row) for row in repository.status()]
        return json_response([row for row in rows if not only_ready or row["state"] == "READY"])

    def load(request: Request, model: str) -> Response:
        _require_control(request, "loading a model")
        parameters = _parameters(request)
        for name in parameters:
            if _OVERRIDE.fullmatch(name):
                raise AgentError(
                    f"a model is loaded as its release was accepted; {name[:80]!r} is refused",
                    hint="build and deploy another release",
                )
        repository.load(model)
        return json_response({})

    def unload(request: Request, model: str) -> Response:
        _require_control(request, "unloading a model")
        _parameters(request)
        repository.unload(model)
        return json_response({})

    return [
        route("POST", r"/v2/repository/index", index),
        route("POST", rf"/v2/repository/models/{MODEL_NAME}/load", load),
        route("POST", rf"/v2/repository/models/{MODEL_NAME}/unload", unload),
    ]


def _require_control(request: Request, what: str) -> None:
    if request.door != "control":
        raise AgentError(
            f"{what} is not allowed here", kind="forbidden", hint="it goes through the agent's control socket"
        )


def _parameters(request: Request) -> Mapping[str, Any]:
    body = request.read_json()
    if body is None:
        return {}
    parameters = body.get("parameters", {}) if isinstance(body, dict) else None
    if not isinstance(parameters, dict):
        raise AgentError("the request is not an object with parameters")
    return parameters


def _index_row(row: Mapping[str, Any]) -> dict[str, str]:
    serving = row["state"] == "serving"
    return {
        "name": row["model"],
        "version": str(row["version"] or ""),
        "state": "READY" if serving else "LOADING" if row["state"] == "loading" else "UNAVAILABLE",
        "reason": row["problem"] or ("unloaded" if row["state"] == "unloaded" else ""),
    }


def _shared_memory_routes(regions: Regions) -> list[Route]:
    def status(_: Request, region: str | None = None) -> Response:
        return json_response(regions.status(None if region is None else unquote(region)))

    def register(request: Request, region: str) -> Response:
        regions.register(unquote(region), request.read_json())
        return json_response({})

    def unregister(_: Request, region: str | None = None) -> Response:
        regions.unregister(None if region is None else unquote(region))
        return json_response({})

    def no_cuda_regions(_: Request) -> Response:
        # Triton's own examples clear both kinds of shared memory before they begin.
        return json_response([])

    def no_cuda(_: Request) -> Response:
        raise AgentError(
            "CUDA shared memory is not offered", kind="bad_input", hint="use system shared memory, or binary tensors"
        )

    base = r"/v2/systemsharedmemory"
    return [
        route("GET", rf"{base}(?:/region/{_REGION})?/status", status),
        route("POST", rf"{base}/region/{_REGION}/register", register),
        route("POST", rf"{base}(?:/region/{_REGION})?/unregister", unregister),
        route("GET", r"/v2/cudasharedmemory/status", no_cuda_regions),
        route("POST", r"/v2/cudasharedmemory/unregister", no_cuda_regions),
        route("GET", r"/v2/cudasharedmemory/.*", no_cuda),
        route("POST", r"/v2/cudasharedmemory/.*", no_cuda),
    ]

"""The control door's routes for deploys: begin one, follow it, go back, and what was done before."""

from __future__ import annotations

import re

from ..errors import AgentError
from ..formats.manifest import is_digest, is_model_name
from .deploys import Deploys
from .http import Request, Response, Route, json_response, route
from .oip_routes import MODEL_NAME

__all__ = ["deploy_routes"]

_DIGEST = r"(?P<digest>[0-9a-f]{64})"
_WAIT_S = 10.0


def deploy_routes(deploys: Deploys) -> list[Route]:
    """Routes of `deploys`."""

    def start(request: Request) -> Response:
        body = request.read_json()
        if not isinstance(body, dict) or set(body) != {"release"} or not is_digest(str(body["release"])):
            raise AgentError('a deploy is asked for by {"release": "<digest>"}')
        return json_response(deploys.start(body["release"]))

    def watch(request: Request, digest: str) -> Response:
        match = re.fullmatch(r"(?:after=(\d{1,9}))?(?:&?wait=(\d{1,2}))?", request.query)
        if match is None:
            raise AgentError(f"unknown query: {request.query[:80]!r}")
        wait_s = _WAIT_S if match[2] is None else min(float(match[2]), _WAIT_S)
        return json_response(deploys.watch(digest, int(match[1] or 0), wait_s))

    def activate(_: Request, digest: str) -> Response:
        return json_response(deploys.activate(digest))

    def rollback(_: Request, model: str) -> Response:
        return json_response(deploys.rollback(model))

    def history(request: Request) -> Response:
        match = re.fullmatch(r"(?:model=([^&]{1,80}))?", request.query)
        if match is None or (match[1] is not None and not is_model_name(match[1])):
            raise AgentError(f"unknown query: {request.query[:80]!r}")
        return json_response({"entries": [entry.to_json() for entry in deploys.journal.history(match[1])]})

    return [
        route("POST", r"/kedge/v1/deploys", start),
        route("GET", rf"/kedge/v1/deploys/{_DIGEST}", watch),
        route("POST", rf"/kedge/v1/releases/{_DIGEST}/activate", activate),
        route("POST", rf"/kedge/v1/models/{MODEL_NAME}/rollback", rollback),
        route("GET", r"/kedge/v1/history", history),
    ]

"""The control door's routes for engines: ask for a build, follow it, end it, fetch what it made."""

from __future__ import annotations

import re
from collections.abc import Callable

from ..errors import AgentError
from ..formats.manifest import is_digest
from ..store.engines import PARTS, read_part
from ..wire import FRAME_BYTES
from .building import Builds
from .http import Request, Response, Route, json_response, route

__all__ = ["build_routes"]

_KEY = r"(?P<key>[0-9a-f]{64})"
_WAIT_S = 10.0
_MAX_WORKSPACE_BYTES = 1 << 46


def build_routes(builds: Builds, permit: Callable[[str], None]) -> list[Route]:
    """Routes of `builds`; `permit` refuses a release, by its digest, that the owner's rules do not let be worked on."""

    def start(request: Request) -> Response:
        body = request.read_json()
        allowed = {"release", "compute_capabilities", "workspace_bytes"}
        if not isinstance(body, dict) or not set(body) <= allowed or not is_digest(str(body.get("release"))):
            raise AgentError(f"a build is asked for by an object of {', '.join(sorted(allowed))}")
        capabilities = body.get("compute_capabilities", [])
        if not isinstance(capabilities, list) or not all(isinstance(each, str) for each in capabilities):
            raise AgentError("compute_capabilities is no list of versions")
        workspace = body.get("workspace_bytes")
        if workspace is not None and (type(workspace) is not int or not 1 <= workspace <= _MAX_WORKSPACE_BYTES):
            raise AgentError("workspace_bytes is no size")
        permit(body["release"])
        return json_response(builds.start(body["release"], tuple(capabilities[:16]), workspace))

    def watch(request: Request, key: str) -> Response:
        match = re.fullmatch(r"(?:after=(\d{1,9}))?(?:&?wait=(\d))?", request.query)
        if match is None:
            raise AgentError(f"unknown query: {request.query[:80]!r}")
        wait = _WAIT_S if match[2] is None else float(match[2])
        return json_response(builds.watch(key, int(match[1] or 0), wait))

    def cancel(_: Request, key: str) -> Response:
        return json_response(builds.cancel(key))

    def engine(request: Request, key: str) -> Response:
        match = re.fullmatch(r"part=(engine|report\.json)&offset=(\d{1,15})", request.query)
        if match is None:
            raise AgentError(f"say what, and where to begin: ?part=engine&offset=0; parts: {', '.join(PARTS)}")
        part, offset = match[1], int(match[2])
        # Hashed once, at the beginning: a file that changes on the way fails the host's own check.
        stored = builds.engine(key, verified=part == "engine" and offset == 0)
        data = read_part(stored, part, offset, FRAME_BYTES)
        return Response(200, [data], (), "application/octet-stream")

    return [
        route("POST", r"/kedge/v1/build", start),
        route("GET", rf"/kedge/v1/build/{_KEY}", watch),
        route("POST", rf"/kedge/v1/build/{_KEY}/cancel", cancel),
        route("GET", rf"/kedge/v1/engines/{_KEY}", engine),
    ]

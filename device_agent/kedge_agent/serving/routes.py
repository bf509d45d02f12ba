"""Which request goes where: the inference door's routes, and the control door's.

The inference door and the localhost port speak the Open Inference Protocol v2 and nothing else. The control door speaks
it too, so that one connection serves a whole session of the host, and adds `/kedge/v1/`.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from .. import __version__
from ..engine.here import compatible_modules, gpu_here, jetson_linux, passport_here
from ..engine.library import RUNTIMES
from ..errors import AgentError
from ..measure.memory import read_memory
from ..runtime.base import Runtime
from ..store.layout import Layout
from ..wire import PROTOCOLS_SPOKEN
from .build_routes import build_routes
from .building import Builds
from .deploy_routes import deploy_routes
from .deploys import Deploys
from .http import Handler, Request, Response, Route, json_response, route, routed
from .measure_routes import measure_routes
from .oip_routes import oip_routes
from .release_routes import release_routes
from .repository import Repository
from .shared_memory import Regions

__all__ = ["control_handler", "inference_handler"]

_LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")


def inference_handler(repository: Repository, regions: Regions) -> Handler:
    """Handler of the inference door and of the localhost port."""
    handle = routed(oip_routes(repository, regions))

    def guarded(request: Request) -> Response:
        if request.door == "tcp":
            _require_program(request)
        return handle(request)

    return guarded


def _require_program(request: Request) -> None:
    """Refuse a web page in a browser on the device: it reaches the port too.

    Browsers say where a page came from (Origin), or, where its site's name was made to lead here, by which name (Host).

    Raises:
        AgentError: it is one (forbidden).
    """
    host = request.headers.get("host", "localhost").lower().rpartition(":")
    if (host[0] or host[2]) not in _LOCAL_HOSTS:
        raise AgentError("this port answers to the name localhost", kind="forbidden", hint="ask localhost")
    if "origin" in request.headers:
        raise AgentError("requests of web pages are not taken", kind="forbidden", hint="ask from a program")


def control_handler(
    repository: Repository,
    regions: Regions,
    layout: Layout,
    runtimes: Mapping[str, Runtime],
    builds: Builds,
    deploys: Deploys,
    settings: Callable[[], Mapping[str, Any]],
) -> Handler:
    """Handler of the control door; `settings`: what the agent tells of its own, asked anew each time."""
    control = _control_routes(repository, layout, runtimes, deploys, settings)
    measure = measure_routes(repository, regions, layout)
    jobs = [*build_routes(builds, deploys.permit), *deploy_routes(deploys), *release_routes(layout)]
    return routed([*oip_routes(repository, regions), *control, *measure, *jobs])


def _control_routes(
    repository: Repository,
    layout: Layout,
    runtimes: Mapping[str, Runtime],
    deploys: Deploys,
    settings: Callable[[], Mapping[str, Any]],
) -> list[Route]:
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
                "settings": settings(),
                "signatures": deploys.signatures(),
                "runtimes": {name: runtime.version() for name, runtime in runtimes.items()},
                "compilers": compilers(),
                "gpu": None if gpu is None else gpu.compute_capability,
                "compatible": list(compatible_modules()),
                "l4t": jetson_linux(),
                "memory": read_memory().to_json(),
            }
        )

    def status(_: Request) -> Response:
        ready, safe_mode = repository.ready.is_set(), repository.safe_mode
        return json_response({"ready": ready, "safe_mode": safe_mode, "models": deploys.status()})

    return [
        route("GET", r"/kedge/v1/info", info),
        route("GET", r"/kedge/v1/status", status),
    ]

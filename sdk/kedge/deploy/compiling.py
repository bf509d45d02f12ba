"""Have a device compile what was pushed to it, follow its compiler, take the engine, and keep it in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable
from typing import Any

from kedge_agent.engine.order import Order, engine_key
from kedge_agent.formats.manifest import is_digest
from kedge_agent.formats.passport import Passport, fit

from ..build.cache import CachedEngine, EngineCache
from ..errors import IncompatibleError, IntegrityError, KedgeError
from ..release.bundle import Release
from ..report.text import printable
from ..transport.base import Transport
from ..transport.client import AgentClient
from .pull_engine import nonsense, pull_engine, pull_report, stated
from .vouching import as_builder

__all__ = ["compile_there"]

Progress = Callable[[str, float], None]

_CANCEL_S = 5.0
_POLL_S = 0.02
# What a compiler says of itself in each build; of no news to anyone.
_SHOWN_LOG = 120


def compile_there(
    transport: Transport,
    client: AgentClient,
    release: Release,
    order: Order,
    onnx: str,
    here: Passport,
    cache: EngineCache,
    progress: Progress,
) -> CachedEngine:
    """Build the engine of a release that a device has, or join its build; it goes on when nobody listens.

    Args:
        onnx: sha256 of what is compiled.
        here: the passport that the engine is asked for with.

    Raises:
        IncompatibleError: the compiler refuses the model, or built another engine. IntegrityError: other bytes came.
        KedgeError: what else the build failed of, or that the device cannot be reached.
    """
    asked = client.post("/kedge/v1/build", {"release": release.digest}, expect=("job", "state"))
    key = str(asked["job"])
    if not is_digest(key):
        raise nonsense(transport.name, "a build without a key")
    try:
        result = _followed(client, key, transport.name, progress)
    except KeyboardInterrupt:
        # It is the user's word that counts, whether or not the device still hears it.
        with contextlib.suppress(KedgeError):
            client.post(f"/kedge/v1/build/{key}/cancel", timeout_s=_CANCEL_S)
        raise
    size, sha256, passport = stated(result, transport.name)
    engine = pull_engine(client, key, size, transport.name, progress)
    if hashlib.sha256(engine).hexdigest() != sha256:
        raise IntegrityError(f"{transport.name}: the engine arrived with other bytes than were built", hint="try again")
    fitting = fit(passport, here)
    if not fitting.fits:
        raise IncompatibleError(f"{transport.name} built another engine than was asked for: {fitting.refusals[0]}")
    report = pull_report(client, key, transport.name)
    key = engine_key(onnx, order, here)
    return cache.put(key, onnx, order, passport, engine, report, as_builder(transport))


def _followed(client: AgentClient, key: str, device: str, progress: Progress) -> Any:
    """Follow a build until it ends; what its compiler says shows as the step's name."""
    after = 0
    while True:
        answer = client.get(f"/kedge/v1/build/{key}?after={after}", expect=("state", "events", "next", "result"))
        events, following = answer["events"], answer["next"]
        if not isinstance(events, list) or type(following) is not int or following < after:
            raise nonsense(device, "events of a build")
        for event in events:
            _tell(event, device, progress)
        after = following
        if answer["state"] == "built":
            return answer["result"]
        if answer["state"] != "running":
            raise nonsense(device, f"a build that is {answer['state']}")
        time.sleep(_POLL_S)


def _tell(event: Any, device: str, progress: Progress) -> None:
    if not isinstance(event, dict):
        return
    kind = event.get("event")
    if kind == "progress":
        step, steps = event.get("step"), event.get("steps")
        if isinstance(step, int) and isinstance(steps, int) and steps > 0:
            progress(f"compiling on {device}", min(max(step / steps, 0.0), 1.0))
    elif kind == "attempt" and event.get("outcome") != "built":
        workspace = event.get("workspace_bytes")
        size = f"{workspace >> 20} MiB of workspace" if isinstance(workspace, int) else "no limit"
        progress(f"compiling on {device}: not within {size}, trying again", 0.0)
    elif kind == "log" and str(event.get("line", "")).startswith(("WARNING", "ERROR")):
        progress(f"compiling on {device}: {printable(str(event['line'])[:_SHOWN_LOG])}", 0.0)

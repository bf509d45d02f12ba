"""Engines that only a device can build: have it built there, pull it back, keep it for all of the same passport."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from kedge_agent.engine.order import Order, engine_key, parse_order
from kedge_agent.engine.report import EngineError
from kedge_agent.formats.manifest import Artefact
from kedge_agent.formats.passport import Passport, PassportError, fit, parse_passport
from kedge_agent.wire import FRAME_BYTES

from ..build.cache import CachedEngine, EngineCache
from ..build.release import Built, engine_artefact
from ..errors import IncompatibleError, IntegrityError
from ..release.bundle import Release, write_release
from ..targets import Target
from ..transport.base import Deadline, Transport
from ..transport.client import AgentClient
from ..transport.upload import upload
from .identity import require_target

__all__ = ["complete", "engine_on_device", "needs_engine", "prepared", "with_engine"]

Progress = Callable[[str, float], None]

_CONNECT_S = 30.0
_MAX_ENGINE_BYTES = 1 << 33
# What a compiler says of itself in each build; of no news to anyone.
_SHOWN_LOG = 120


def needs_engine(release: Release) -> Artefact | None:
    """The artefact that has yet to be compiled; None where the release is ready."""
    return next((artefact for artefact in release.manifest.artefacts if artefact.build is not None), None)


def engine_on_device(
    transport: Transport,
    target: Target,
    release: Release,
    progress: Progress,
    *,
    cache: EngineCache | None = None,
) -> tuple[CachedEngine, bool]:
    """The engine of a release for a device: from the cache where one fits, else built there and pulled back.

    Returns:
        The engine, and whether it was built now.

    Raises:
        IncompatibleError: the device has no compiler for it, or is not of this target; the compiler refuses the model.
        KedgeError: the device cannot be reached, or what the build failed of.
    """
    artefact = needs_engine(release)
    if artefact is None:
        raise IncompatibleError("the release has nothing to compile", hint="deploy it as it is")
    try:
        order = parse_order(dict(artefact.build or {}))
    except EngineError as error:
        raise IncompatibleError(error.message, hint="build the release again") from error
    kept = cache or EngineCache()
    client = AgentClient(transport)
    try:
        here = _passport(transport, client, target, order)
        onnx = release.manifest.file(artefact.file).sha256
        found = kept.find(onnx, order, here)
        if found is not None:
            return found[0], False
        with kept.building(engine_key(onnx, order, here)):
            found = kept.find(onnx, order, here)
            if found is not None:
                return found[0], False
            return _built(transport, client, release, order, onnx, here, kept, progress), True
    finally:
        client.close()


def with_engine(built: Built, engine: CachedEngine, *, compiled: bool) -> Built:
    """A release that was built for a device to compile, with the engine in the model's place."""
    release = complete(built.release, engine, built.release.folder)
    return replace(built, release=release, engine=engine, compiled=compiled)


def complete(release: Release, engine: CachedEngine, folder: Path) -> Release:
    """A release with an engine where it had a build plan; all else is the same. Its digest is another one.

    Args:
        folder: where it is written; may be the release's own.
    """
    body: dict[str, Any] = json.loads(release.manifest_bytes)
    planned = needs_engine(release)
    assert planned is not None
    body["artefacts"] = [
        engine_artefact(each, engine) if each.get("build") is not None else each for each in body["artefacts"]
    ]
    del body["files"]
    still = {each["file"] for each in body["artefacts"]}
    golden = {tensor.file for tensor in (*release.manifest.golden.inputs, *release.manifest.golden.outputs)}
    sources: dict[str, Path | bytes] = {"model.engine": engine.path}
    for entry, path in release.files():
        if entry.name in still | golden and entry.name != "model.engine":
            # Read now: the folder may be the one that is replaced.
            sources[entry.name] = path.read_bytes()
    return write_release(folder, sources, body)


def _passport(transport: Transport, client: AgentClient, target: Target, order: Order) -> Passport:
    info = client.get("/kedge/v1/info", expect=("compilers", "compatible", "gpu", "os", "arch"))
    require_target(transport.name, info, target)
    stated = info["compilers"].get(order.runtime) if isinstance(info["compilers"], dict) else None
    if stated is None:
        raise IncompatibleError(
            f"{transport.name} has no compiler for {order.runtime}",
            hint="install it there: on a Jetson, apt install python3-libnvinfer, and provision the device again",
        )
    try:
        here = parse_passport(stated)
    except PassportError as error:
        raise IncompatibleError(f"{transport.name}: the agent's passport makes no sense: {error}") from error
    if order.compute_capabilities:
        return replace(here, compute_capabilities=order.compute_capabilities)
    return here


def _built(
    transport: Transport,
    client: AgentClient,
    release: Release,
    order: Order,
    onnx: str,
    here: Passport,
    cache: EngineCache,
    progress: Progress,
) -> CachedEngine:
    progress("pushing what is to be compiled", 0.0)
    channel = transport.open_receive(Deadline.after(_CONNECT_S, f"reaching {transport.name}"))

    def sent(done: int, total: int) -> None:
        progress("pushing what is to be compiled", done / total if total else 1.0)

    upload(channel, transport.name, release.manifest_bytes, release.files(), sent)
    asked = client.post("/kedge/v1/build", {"release": release.digest}, expect=("job", "state"))
    key = str(asked["job"])
    try:
        result = _followed(client, key, transport.name, progress)
    except KeyboardInterrupt:
        client.post(f"/kedge/v1/build/{key}/cancel")
        raise
    engine = _pulled(client, key, int(result["bytes"]), transport.name, progress)
    if hashlib.sha256(engine).hexdigest() != result["sha256"]:
        raise IntegrityError(f"{transport.name}: the engine arrived with other bytes than were built", hint="try again")
    try:
        passport = parse_passport(result["passport"])
    except PassportError as error:
        raise IncompatibleError(f"{transport.name}: the engine's passport makes no sense: {error}") from error
    fitting = fit(passport, here)
    if not fitting.fits:
        raise IncompatibleError(f"{transport.name} built another engine than was asked for: {fitting.refusals[0]}")
    return cache.put(engine_key(onnx, order, here), onnx, order, passport, engine, dict(result["report"]))


def _followed(client: AgentClient, key: str, device: str, progress: Progress) -> dict[str, Any]:
    """Follow a build until it ends; what its compiler says shows as the step's name."""
    after = 0
    while True:
        answer = client.get(f"/kedge/v1/build/{key}?after={after}", expect=("state", "events", "next", "result"))
        for event in answer["events"]:
            _tell(event, device, progress)
        after = int(answer["next"])
        if answer["state"] == "built":
            return dict(answer["result"])
        if answer["state"] != "running":
            raise IncompatibleError(f"{device}: the build ended as {str(answer['state'])[:40]}")
        time.sleep(0.02)


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
        progress(f"compiling on {device}: {str(event['line'])[:_SHOWN_LOG]}", 0.0)


def _pulled(client: AgentClient, key: str, size: int, device: str, progress: Progress) -> bytes:
    if not 0 < size <= _MAX_ENGINE_BYTES:
        raise IntegrityError(f"{device}: an engine of {size} bytes is not acceptable")
    parts: list[memoryview] = []
    done = 0
    while done < size:
        progress("pulling the engine back", done / size)
        part = client.get_bytes(f"/kedge/v1/engines/{key}?offset={done}", limit_bytes=FRAME_BYTES)
        if not part:
            raise IntegrityError(f"{device}: the engine ends after {done} of {size} bytes", hint="try again")
        parts.append(part)
        done += len(part)
    return b"".join(parts)[:size]


def prepared(transport: Transport, target: Target, release: Release, folder: Path, progress: Progress) -> Release:
    """A release as it can be deployed to a device: with an engine for it, where it had a build plan.

    Args:
        folder: where a completed release is written.

    Raises:
        KedgeError: as `engine_on_device`.
    """
    if needs_engine(release) is None:
        return release
    release.verify()
    engine, _ = engine_on_device(transport, target, release, progress)
    return complete(release, engine, folder)

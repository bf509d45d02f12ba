"""Engines that only a device can build: have it built there, pull it back, keep it for all of the same passport."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from kedge_agent.engine.order import Order, engine_key, parse_order
from kedge_agent.engine.report import EngineError
from kedge_agent.formats.manifest import Artefact, is_digest
from kedge_agent.formats.offer import Offer, Signed
from kedge_agent.formats.passport import Passport, PassportError, fit, parse_passport

from ..build.cache import CachedEngine, EngineCache
from ..build.release import Built, engine_artefact
from ..errors import IncompatibleError, IntegrityError, KedgeError
from ..release.bundle import ATTESTATION, BASE, DOWNGRADE, Release, write_release, write_side
from ..report.text import printable
from ..targets import Target
from ..transport.base import Transport
from ..transport.client import AgentClient
from .identity import require_target
from .pull_engine import nonsense, pull_engine, pull_report, stated
from .sending import send
from .vouching import as_builder, has_engine, may_run, require_vouched

__all__ = ["complete", "engine_on_device", "needs_engine", "prepared", "with_engine"]

Progress = Callable[[str, float], None]

_PATIENCE_S = 60.0
_CANCEL_S = 5.0
_POLL_S = 0.02
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
    downgrade: Signed | None = None,
    limit_bytes_per_s: int | None = None,
) -> tuple[CachedEngine, bool]:
    """The engine of a release for a device: from the cache where one fits, else built there and pulled back.

    One that another device built is taken only where somebody has attested it for this release.

    Args:
        downgrade: a statement that this version is wanted, though the device may have had a later one.
        limit_bytes_per_s: push no faster.

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
        here, signatures = _passport(transport, client, target, order)
        onnx = release.manifest.file(artefact.file).sha256
        key = engine_key(onnx, order, here)
        device = as_builder(transport)
        with kept.building(key):
            found = kept.find(
                onnx,
                order,
                here,
                lambda each: may_run(each, device, release, signatures, lambda e: has_engine(client, key, e)),
            )
            if found is not None:
                return found[0], False
            elsewhere = kept.find(onnx, order, here, lambda each: not device.is_same(each.builder))
            if elsewhere is not None:
                builder = elsewhere[0].builder
                whose = "this host" if builder is None else builder.device
                progress(f"not taking the engine of {whose}: nobody attested it (kedge release attest)", 0.0)
            offer = release.offer()
            offer = replace(offer, downgrade=downgrade or offer.downgrade)
            _sent(transport, release, offer, progress, limit_bytes_per_s)
            # The push may have outlasted the connection that this client knows.
            client.close()
            return _built(transport, client, release, order, onnx, here, kept, progress), True
    finally:
        client.close()


def with_engine(built: Built, engine: CachedEngine, folder: Path, *, compiled: bool) -> Built:
    """A release that was built for a device to compile, with the engine in the model's place, written to `folder`."""
    release = complete(built.release, engine, folder)
    return replace(built, release=release, engine=engine, compiled=compiled)


def complete(release: Release, engine: CachedEngine, folder: Path) -> Release:
    """A release with an engine where it had a build plan; all else is the same. Its digest is another one.

    Beside it lies what shows whose it is: the manifest that it completes with its signatures, and the attestation of
    the engine where there is one.

    Args:
        folder: where it is written; not the release's own.
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
            sources[entry.name] = path
    whole = write_release(folder, sources, body)
    write_side(folder, BASE, Signed(release.manifest_bytes, release.signatures))
    for name, statement in ((ATTESTATION, engine.attestation(release.digest)), (DOWNGRADE, release.offer().downgrade)):
        if statement is not None:
            write_side(folder, name, statement)
    return whole


def _passport(transport: Transport, client: AgentClient, target: Target, order: Order) -> tuple[Passport, bool]:
    """The passport that an engine built there would get, and whether the device asks for signatures."""
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
        here = replace(here, compute_capabilities=order.compute_capabilities)
    signatures = info.get("signatures")
    return here, isinstance(signatures, dict) and signatures.get("required") is True


def _sent(
    transport: Transport, release: Release, offer: Offer, progress: Progress, limit_bytes_per_s: int | None
) -> None:
    step = "pushing what is to be compiled"
    progress(step, 0.0)
    send(
        transport,
        release,
        offer,
        progress=lambda done, total: progress(step, done / total if total else 1.0),
        state=lambda name: None,
        limit_bytes_per_s=limit_bytes_per_s,
        patience_s=_PATIENCE_S,
    )


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


def _require_runtime(transport: Transport, runtime: str) -> None:
    """Refuse a device that could not run what it would build, before it builds for an hour."""
    client = AgentClient(transport)
    try:
        runtimes = client.get("/kedge/v1/info", expect=("runtimes",))["runtimes"]
    finally:
        client.close()
    if not isinstance(runtimes, dict) or not runtimes.get(runtime):
        raise IncompatibleError(
            f"{transport.name} has no runtime for {runtime}: it could build the engine, and not run it",
            hint="to build and keep the engine all the same: kedge build … --on DEVICE",
        )


def prepared(
    transport: Transport,
    target: Target,
    release: Release,
    folder: Path,
    progress: Progress,
    *,
    downgrade: Signed | None = None,
    limit_bytes_per_s: int | None = None,
) -> Release:
    """A release as it can be deployed to a device: with an engine for it, where it had a build plan.

    Args:
        folder: where a completed release is written.
        downgrade, limit_bytes_per_s: as `engine_on_device` takes them.

    Raises:
        IntegrityError: it has an engine of another device, for which nobody vouches.
        KedgeError: as `engine_on_device`.
    """
    artefact = needs_engine(release)
    if artefact is None:
        require_vouched(transport, release)
        return release
    if release.manifest.target != target.name:
        raise IncompatibleError(
            f"{transport.name} is {target.name}, the release is for {release.manifest.target}",
            hint=f"kedge build … --target {target.name}",
        )
    release.verify()
    _require_runtime(transport, artefact.runtime)
    engine, _ = engine_on_device(
        transport, target, release, progress, downgrade=downgrade, limit_bytes_per_s=limit_bytes_per_s
    )
    return complete(release, engine, folder)

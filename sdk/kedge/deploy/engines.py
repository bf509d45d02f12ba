"""Engines that only a device can build: have it built there, pull it back, keep it for all of the same passport."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kedge_agent.engine.order import Order, engine_key, parse_order
from kedge_agent.engine.report import EngineError
from kedge_agent.formats.manifest import Artefact
from kedge_agent.formats.offer import Offer, Signed
from kedge_agent.formats.passport import Passport, PassportError, parse_passport

from ..build.cache import CachedEngine, EngineCache
from ..build.release import Built, engine_artefact
from ..errors import IncompatibleError
from ..release.bundle import ATTESTATION, BASE, DOWNGRADE, Release, write_release, write_side
from ..targets import Target
from ..transport.base import Deadline, Transport
from ..transport.client import AgentClient
from .compiling import compile_there
from .identity import require_target
from .sending import send
from .vouching import as_builder, has_engine, may_run, require_vouched

__all__ = ["Wanted", "complete", "engine_on_device", "needs_engine", "prepared", "wanted_engine", "with_engine"]

Progress = Callable[[str, float], None]

_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Wanted:
    """The engine that a device would have of a release.

    key: of the engine (`kedge_agent.engine.order.engine_key`): the same for all devices of a passport's hard keys.
    onnx: sha256 of what is compiled. signatures: whether the device asks for them.
    """

    key: str
    onnx: str
    order: Order
    passport: Passport
    signatures: bool


def needs_engine(release: Release) -> Artefact | None:
    """The artefact that has yet to be compiled; None where the release is ready."""
    return next((artefact for artefact in release.manifest.artefacts if artefact.build is not None), None)


def wanted_engine(transport: Transport, client: AgentClient, target: Target, release: Release) -> Wanted:
    """What a device has to be given, or to compile, to run a release with a build plan.

    Raises:
        IncompatibleError: the release has none; the device has no compiler or runtime for it, or is not of this target.
        KedgeError: the device cannot be reached.
    """
    artefact = _planned(release)
    found = _wanted(transport, client, target, release, artefact)
    _require_runtime(transport.name, client, artefact.runtime)
    return found


def engine_on_device(
    transport: Transport,
    target: Target,
    release: Release,
    progress: Progress,
    *,
    cache: EngineCache | None = None,
    downgrade: Signed | None = None,
    limit_bytes_per_s: int | None = None,
    alone: bool = False,
    deadline: Deadline | None = None,
) -> tuple[CachedEngine, bool]:
    """The engine of a release for a device: from the cache where one fits, else built there and pulled back.

    One that another device built is taken only where somebody has attested it for this release.

    Args:
        downgrade: a statement that this version is wanted, though the device may have had a later one.
        limit_bytes_per_s: push no faster.
        alone: do not wait while another device builds for the same passport: somebody else sees to that, or nobody will
            vouch for what it builds.
        deadline: as `deploy.push.deploy` takes it.

    Returns:
        The engine, and whether it was built now.

    Raises:
        IncompatibleError: the device has no compiler for it, or is not of this target; the compiler refuses the model.
        KedgeError: the device cannot be reached, or what the build failed of.
    """
    artefact = _planned(release)
    kept = cache or EngineCache()
    client = AgentClient(transport, deadline=deadline)
    try:
        want = _wanted(transport, client, target, release, artefact)
        device = as_builder(transport)
        with contextlib.nullcontext() if alone else kept.building(want.key):
            found = kept.find(
                want.onnx,
                want.order,
                want.passport,
                lambda each: may_run(each, device, release, want.signatures, lambda e: has_engine(client, want.key, e)),
            )
            if found is not None:
                return found[0], False
            elsewhere = kept.find(want.onnx, want.order, want.passport, lambda each: not device.is_same(each.builder))
            if elsewhere is not None:
                builder = elsewhere[0].builder
                whose = "this host" if builder is None else builder.device
                progress(f"not taking the engine of {whose}: nobody attested it (kedge release attest)", 0.0)
            offer = release.offer()
            offer = replace(offer, downgrade=downgrade or offer.downgrade)
            _sent(transport, release, offer, progress, limit_bytes_per_s, deadline)
            # The push may have outlasted the connection that this client knows.
            client.close()
            return (
                compile_there(transport, client, release, want.order, want.onnx, want.passport, kept, progress),
                True,
            )
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


def _planned(release: Release) -> Artefact:
    artefact = needs_engine(release)
    if artefact is None:
        raise IncompatibleError("the release has nothing to compile", hint="deploy it as it is")
    return artefact


def _wanted(transport: Transport, client: AgentClient, target: Target, release: Release, artefact: Artefact) -> Wanted:
    try:
        order = parse_order(dict(artefact.build or {}))
    except EngineError as error:
        raise IncompatibleError(error.message, hint="build the release again") from error
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
    asked = isinstance(signatures, dict) and signatures.get("required") is True
    onnx = release.manifest.file(artefact.file).sha256
    return Wanted(engine_key(onnx, order, here), onnx, order, here, asked)


def _sent(
    transport: Transport,
    release: Release,
    offer: Offer,
    progress: Progress,
    limit_bytes_per_s: int | None,
    deadline: Deadline | None,
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
        deadline=deadline,
    )


def _require_runtime(device: str, client: AgentClient, runtime: str) -> None:
    """Refuse a device that could not run what it would build, before it builds for an hour."""
    runtimes = client.get("/kedge/v1/info", expect=("runtimes",))["runtimes"]
    if not isinstance(runtimes, dict) or not runtimes.get(runtime):
        raise IncompatibleError(
            f"{device} has no runtime for {runtime}: it could build the engine, and not run it",
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
    alone: bool = False,
    deadline: Deadline | None = None,
) -> Release:
    """A release as it can be deployed to a device: with an engine for it, where it had a build plan.

    Args:
        folder: where a completed release is written.
        downgrade, limit_bytes_per_s, alone, deadline: as `engine_on_device` takes them.

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
    client = AgentClient(transport, deadline=deadline)
    try:
        _require_runtime(transport.name, client, artefact.runtime)
    finally:
        client.close()
    engine, _ = engine_on_device(
        transport,
        target,
        release,
        progress,
        downgrade=downgrade,
        limit_bytes_per_s=limit_bytes_per_s,
        alone=alone,
        deadline=deadline,
    )
    return complete(release, engine, folder)

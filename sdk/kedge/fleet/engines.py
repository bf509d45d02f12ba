"""Engines of a rollout: one device of a passport builds, the host vouches for what it built, the rest receive it.

What a device built lies in the cache of the host that its worker runs on. Where the rollout's release is a folder, that
is the coordinator's host. Where it is at a URL, the worker may be anywhere: then the engine comes back through the URL,
as a release that it completes, for what is there is bounded by its manifest and checked byte by byte, and an answer is
small. Nobody has vouched for that release, so no other device takes it: the host pulls it, attests the engine, and puts
the attestation beside it there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedge_agent.engine.order import Order, engine_key, parse_order
from kedge_agent.engine.report import EngineError
from kedge_agent.formats.manifest import is_digest
from kedge_agent.formats.passport import Passport, PassportError, fit, parse_passport
from kedge_agent.formats.sshsig import split_signatures
from kedge_agent.formats.statements import completed_artefact

from ..build.attestation import HOST, attest
from ..build.cache import Builder, CachedEngine, EngineCache
from ..config import state_dir
from ..deploy.engines import Wanted, complete, needs_engine
from ..errors import BadInputError, IncompatibleError, IntegrityError
from ..release.bundle import Release
from ..release.remote import fetched, pull_from, push_to
from ..release.urls import is_url
from ..targets import Target, host_target, load_target
from ..transport.hostkeys import HostKey
from .way import local_way

if TYPE_CHECKING:
    from .rollout.plan import Plan, Planned

__all__ = ["EngineGoneError", "built_engine", "choose_engine", "complete_for"]


def choose_engine(want: Wanted, engines: Sequence[Mapping[str, Any]]) -> Mapping[str, str] | None:
    """The completed release, {"digest", "source"}, whose engine a device can run; None: none of these.

    Args:
        engines: {"key", "passport", "release"}, as `complete_for` gives them.
    """
    exact = next((each for each in engines if each["key"] == want.key), None)
    if exact is not None:
        release: Mapping[str, str] = exact["release"]
        return release
    for each in engines:
        try:
            if want.passport.compute_capabilities and fit(parse_passport(each["passport"]), want.passport).fits:
                found: Mapping[str, str] = each["release"]
                return found
        except PassportError:
            continue
    return None


def built_engine(want: Wanted, engine: CachedEngine, release: Release, source: str) -> dict[str, Any]:
    """What an answer says of an engine that a device built; `complete_for` reads it.

    Args:
        source: where the rollout's release is. Of a URL, the release that the engine completes is put there.

    Raises:
        KedgeError: the URL cannot be written.
    """
    back = None
    if is_url(source):
        with tempfile.TemporaryDirectory(prefix="kedge-engine-") as folder:
            whole = complete(release, engine, Path(folder) / "release")
            push_to(whole, source)
            back = {"digest": whole.digest, "source": source}
    builder = engine.builder
    return {
        "key": want.key,
        "wanted": want.passport.to_json(),
        "passport": engine.passport.to_json(),
        "sha256": engine.sha256,
        "bytes": engine.size_bytes,
        "builder": None if builder is None else {"device": builder.device, "host_key": builder.host_key},
        "release": back,
    }


def complete_for(plan: Plan, answer: Mapping[str, Any], key: Path) -> dict[str, Any]:
    """Vouch for the engine that a device built, and complete the rollout's release with it for all of its passport.

    It runs on the host that has the key; ssh-keygen may ask ssh-agent, never the user. What the engine computes, nobody
    can tell from its bytes: that is the word of the worker (docs/cluster.md, "Whom you trust"). What can be held
    against it is: the passport that the device asked for, which its key names; the device's target; and who the plan
    says that the device is.

    Args:
        answer: a task's, with state `built`.
        key: as `build.attestation.attest` takes it.

    Returns:
        `key` and `passport` of the engine; `release`: {"digest", "source"} of the completed release, which lies at the
        rollout's URL or beside its ledger; `attested`: fingerprint of the key.

    Raises:
        EngineGoneError: the engine is not in this host's cache (any more): it is to be built again.
        IncompatibleError: it does not run where it was asked for.
        IntegrityError: it is of another device; what came back is not the rollout's release with an engine.
        BadInputError: it could not be signed.
        KedgeError: the URL cannot be read or written.
    """
    device, source = str(answer["device"]), plan.release["source"]
    told, asked = _read(device, answer["engine"]), _device(plan, device)
    base, cache = fetched(plan.release), EngineCache()
    onnx, order = _planned(base)
    if engine_key(onnx, order, told.wanted) != told.key:
        raise _nonsense(device)
    if told.back is not None:
        if not _is(told.builder, asked):
            raise _not_its_own(device)
        _take_back(base, told, source, cache, asked)
    engine = next((each for each in cache.of_model(onnx, order) if each.sha256 == told.sha256), None)
    if engine is None:
        raise EngineGoneError(
            f"the engine that {device} built is not in this host's cache",
            hint="resume the rollout: it is built again. Workers of another host or user send it back by a URL alone: "
            "kedge release push RELEASE --to URL, and --source URL",
        )
    # One that this host built, or that somebody has vouched for already, may go to whoever it fits.
    if engine.builder is not None and not _is(engine.builder, asked) and engine.attestation(base.digest) is None:
        raise _not_its_own(device)
    _require_fit(device, engine.passport, told.wanted, _target(plan, device))
    attest(base, key, cache, HOST if engine.builder is None else engine.builder.device)
    statement = engine.attestation(base.digest)
    if statement is None:
        raise IntegrityError(f"{engine.path}: the attestation is gone", hint="resume the rollout")
    folder = state_dir() / "rollouts" / plan.id / "engines" / told.key
    whole = complete(base, engine, folder)
    if is_url(source):
        push_to(whole, source)
    return {
        "key": told.key,
        "passport": engine.passport.to_json(),
        "release": {"digest": whole.digest, "source": source if is_url(source) else str(folder)},
        "attested": split_signatures(statement.signatures)[-1].fingerprint,
    }


class EngineGoneError(IntegrityError):
    """An engine that a device built is not where it was kept."""


@dataclass(frozen=True)
class _Told:
    """What an answer says of an engine.

    wanted: the passport that it was asked for with. back: digest of the release that it completes, at the rollout's
    URL.
    """

    key: str
    wanted: Passport
    sha256: str
    builder: Builder | None
    back: str | None


def _read(device: str, told: Any) -> _Told:
    """As `built_engine` wrote it, on what may be another machine."""
    try:
        builder, back = told["builder"], told["release"]
        found = _Told(
            told["key"],
            parse_passport(told["wanted"]),
            told["sha256"],
            None if builder is None else Builder(str(builder["device"])[:256], _text(builder["host_key"])),
            None if back is None else back["digest"],
        )
    except (KeyError, TypeError, PassportError) as error:
        raise _nonsense(device) from error
    if not all(is_digest(str(each)) for each in (found.key, found.sha256, found.back or found.key)):
        raise _nonsense(device)
    return found


def _text(value: Any) -> str | None:
    return None if value is None else str(value)[:256]


def _nonsense(device: str) -> IntegrityError:
    return IntegrityError(
        f"{device}: what its worker tells of an engine makes no sense",
        hint="the worker's kedge may be of another version; resume the rollout",
    )


def _device(plan: Plan, name: str) -> Builder:
    """A device as the cache would note it, by the plan."""
    pinned = _planned_device(plan, name).way.get("host_key")
    return Builder(name, None if pinned is None else HostKey.parse(str(pinned)).fingerprint)


def _target(plan: Plan, name: str) -> Target:
    planned = _planned_device(plan, name)
    return host_target() if planned.way == local_way() else load_target(planned.target)


def _planned_device(plan: Plan, name: str) -> Planned:
    found = next((each for each in plan.devices if each.name == name), None)
    if found is None:
        raise _nonsense(name)
    return found


def _is(builder: Builder | None, device: Builder) -> bool:
    """Whether an engine was built by a device, as far as anybody says: by its pinned host key, else by its name."""
    if builder is None or builder.host_key != device.host_key:
        return False
    return device.host_key is not None or builder.device == device.device


def _not_its_own(device: str) -> IntegrityError:
    return IntegrityError(
        f"{device}: the engine that came back for it was built on another device",
        hint="see who the worker is that had its task; its cache may be emptied: kedge cache gc --keep-mib 0, there",
    )


def _require_fit(device: str, engine: Passport, wanted: Passport, target: Target) -> None:
    """That an engine is for what was asked for, and for what the inventory says that the device is."""
    refusals = fit(engine, wanted).refusals
    if (engine.os, engine.arch) != (target.os, target.arch):
        refusals += (f"{target.name} is {target.os}/{target.arch}, the engine is for {engine.os}/{engine.arch}",)
    capability, known = target.compute_capability, engine.compute_capabilities
    if capability is not None and known and capability not in known:
        refusals += (f"{target.name} has compute capability {capability}, the engine is for {', '.join(known)}",)
    if refusals:
        raise IncompatibleError(
            f"{device}: its worker sent an engine that does not run there: {refusals[0]}",
            hint="see who the worker is that had its task",
        )


def _take_back(base: Release, told: _Told, source: str, cache: EngineCache, builder: Builder) -> None:
    """Keep an engine that came back by a URL, as one that its device built."""
    assert told.back is not None
    onnx, order = _planned(base)
    with tempfile.TemporaryDirectory(prefix="kedge-engine-") as folder:
        whole = pull_from(source, told.back, Path(folder) / "release")
        place = completed_artefact(base.manifest_bytes, whole.manifest_bytes)
        artefact = None if place is None else whole.manifest.artefacts[place]
        if artefact is None or artefact.passport is None:
            raise IntegrityError(
                f"{told.back[:12]} is not the rollout's release with an engine",
                hint="whoever may write to the URL put it there; see who that is",
            )
        passport = artefact.passport
        data = (whole.folder / artefact.file).read_bytes()
        cache.put(engine_key(onnx, order, passport), onnx, order, passport, data, {}, builder)


def _planned(base: Release) -> tuple[str, Order]:
    """What is to be compiled, by its sha256, and how."""
    artefact = needs_engine(base)
    if artefact is None:
        raise BadInputError("the rollout's release has nothing to compile", hint="begin the rollout anew")
    try:
        return base.manifest.file(artefact.file).sha256, parse_order(dict(artefact.build or {}))
    except EngineError as error:
        raise BadInputError(error.message, hint="build the release again") from error

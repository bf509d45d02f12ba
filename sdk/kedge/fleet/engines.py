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
from kedge_agent.formats.passport import PassportError, fit, parse_passport
from kedge_agent.formats.sshsig import split_signatures
from kedge_agent.formats.statements import completed_artefact

from ..build.attestation import HOST, attest
from ..build.cache import Builder, CachedEngine, EngineCache
from ..config import state_dir
from ..deploy.engines import Wanted, complete, needs_engine
from ..errors import BadInputError, IntegrityError
from ..release.bundle import Release
from ..release.remote import fetched, pull_from, push_to
from ..release.urls import is_url

if TYPE_CHECKING:
    from .rollout.plan import Plan

__all__ = ["built_engine", "choose_engine", "complete_for"]


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
        "passport": engine.passport.to_json(),
        "sha256": engine.sha256,
        "bytes": engine.size_bytes,
        "builder": None if builder is None else {"device": builder.device, "host_key": builder.host_key},
        "release": back,
    }


def complete_for(plan: Plan, answer: Mapping[str, Any], key: Path) -> dict[str, Any]:
    """Vouch for the engine that a device built, and complete the rollout's release with it for all of its passport.

    It runs on the host that has the key; ssh-keygen may ask ssh-agent, never the user.

    Args:
        answer: a task's, with state `built`.
        key: as `build.attestation.attest` takes it.

    Returns:
        `key` and `passport` of the engine; `release`: {"digest", "source"} of the completed release, which lies at the
        rollout's URL or beside its ledger; `attested`: fingerprint of the key.

    Raises:
        BadInputError: the engine is not in this host's cache; it could not be signed.
        IntegrityError: what came back is not the rollout's release with an engine.
        KedgeError: the URL cannot be read or written.
    """
    told, source = _read(str(answer["device"]), answer["engine"]), plan.release["source"]
    base, cache = fetched(plan.release), EngineCache()
    onnx, order = _planned(base)
    if told.back is not None:
        _take_back(base, told, source, cache)
    engine = next((each for each in cache.of_model(onnx, order) if each.sha256 == told.sha256), None)
    if engine is None:
        raise BadInputError(
            f"the engine that {answer['device']} built is not in this host's cache",
            hint="workers of another host or user send it back by a URL: kedge release push RELEASE --to URL",
        )
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


@dataclass(frozen=True)
class _Told:
    """What an answer says of an engine. back: digest of the release that it completes, at the rollout's URL."""

    key: str
    sha256: str
    builder: Builder | None
    back: str | None


def _read(device: str, told: Any) -> _Told:
    """As `built_engine` wrote it, on what may be another machine."""
    try:
        builder, back = told["builder"], told["release"]
        found = _Told(
            told["key"],
            told["sha256"],
            None if builder is None else Builder(str(builder["device"])[:256], _text(builder["host_key"])),
            None if back is None else back["digest"],
        )
    except (KeyError, TypeError) as error:
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


def _take_back(base: Release, told: _Told, source: str, cache: EngineCache) -> None:
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
        cache.put(engine_key(onnx, order, passport), onnx, order, passport, data, {}, told.builder)


def _planned(base: Release) -> tuple[str, Order]:
    """What is to be compiled, by its sha256, and how."""
    artefact = needs_engine(base)
    if artefact is None:
        raise BadInputError("the rollout's release has nothing to compile", hint="begin the rollout anew")
    try:
        return base.manifest.file(artefact.file).sha256, parse_order(dict(artefact.build or {}))
    except EngineError as error:
        raise BadInputError(error.message, hint="build the release again") from error

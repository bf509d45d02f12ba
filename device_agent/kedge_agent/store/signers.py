"""Who may put what on this device: signatures, the floor of versions, engines that another device built.

A release is judged when it is taken, and never again: loading it compares hashes with what was taken, and asks neither
the clock nor the file of signers. `docs/signing.md` has the rules for people.
"""

from __future__ import annotations

from dataclasses import replace

from ..engine.order import engine_key, parse_order
from ..engine.report import EngineError
from ..errors import AgentError
from ..formats.manifest import Manifest, ManifestError, parse_manifest
from ..formats.offer import AGENT, RELEASE, Offer, Signed
from ..formats.passport import Passport
from ..formats.sshsig import (
    AGENT_NAMESPACE,
    DOWNGRADE_NAMESPACE,
    ENGINE_NAMESPACE,
    RELEASE_NAMESPACE,
)
from ..formats.statements import Downgrade, completed_artefact, parse_downgrade, parse_engine_statement
from .engines import find_engine
from .layout import Layout
from .models import ModelState, read_state, way_back
from .rules import ReleaseRules
from .signatures import verify
from .verdict import Verdict

__all__ = [
    "AGENT_PRINCIPAL",
    "Verdict",
    "judge",
    "judge_agent",
]

AGENT_PRINCIPAL = "kedge-agent"


def judge(layout: Layout, rules: ReleaseRules, manifest_data: bytes, offer: Offer) -> Verdict:
    """Whether a release may be taken. Cheap: none of its files is read.

    Raises:
        AgentError: it may not (integrity), its manifest or a statement is malformed (bad_input), or signatures cannot
            be verified on this device (incompatible).
    """
    if offer.kind != RELEASE:
        raise AgentError(f"what is offered is no release but an {offer.kind}", hint="kedge device upgrade")
    manifest = _manifest(manifest_data)
    found = _downgraded(layout, rules, manifest, manifest_data, offer)
    if not rules.required:
        return found
    keys, attested, attestation_keys = _vouched(layout, rules, manifest, manifest_data, offer)
    return replace(
        found,
        signed=True,
        keys=keys,
        threshold=rules.needed(manifest.model),
        attested=attested,
        attestation_keys=attestation_keys,
    )


def judge_agent(rules: ReleaseRules, manifest_data: bytes, offer: Offer) -> Verdict:
    """Whether an agent may take this one's place. Raises as `judge`."""
    if offer.kind != AGENT:
        raise AgentError(f"what is offered is no agent but a {offer.kind}", hint="kedge deploy")
    if not rules.required:
        return Verdict(signed=False)
    keys = verify(rules, manifest_data, offer.signatures, AGENT_NAMESPACE, AGENT_PRINCIPAL)
    return Verdict(True, keys, rules.needed(AGENT_PRINCIPAL))


def _manifest(data: bytes) -> Manifest:
    try:
        return parse_manifest(data)
    except ManifestError as error:
        raise AgentError(f"refused: {error}", hint="build the release again") from error


def _vouched(
    layout: Layout, rules: ReleaseRules, manifest: Manifest, data: bytes, offer: Offer
) -> tuple[tuple[str, ...], str | None, tuple[str, ...]]:
    """Who signed a release, or the one that it completes; who vouches for its engine, and with which keys."""
    if offer.base is None or offer.signatures or all(each.passport is None for each in manifest.artefacts):
        return verify(rules, data, offer.signatures, RELEASE_NAMESPACE, manifest.model), None, ()
    base = _manifest(offer.base.document)
    keys = verify(rules, offer.base.document, offer.base.signatures, RELEASE_NAMESPACE, base.model)
    place = completed_artefact(offer.base.document, data)
    if place is None:
        raise AgentError(
            f"release {manifest.digest[:12]} differs from the signed {base.digest[:12]} in more than the engine",
            kind="integrity",
            hint="build it again, or sign it itself: kedge release sign",
        )
    engine = manifest.artefacts[place]
    assert engine.passport is not None
    sha256 = manifest.file(engine.file).sha256
    return keys, *_attested(layout, rules, base, place, sha256, engine.passport, offer.attestation)


def _attested(
    layout: Layout,
    rules: ReleaseRules,
    base: Manifest,
    place: int,
    engine: str,
    passport: Passport,
    attestation: Signed | None,
) -> tuple[str, tuple[str, ...]]:
    planned = base.artefacts[place]
    onnx = base.file(planned.file).sha256
    try:
        order = parse_order(dict(planned.build or {}))
    except EngineError as error:
        raise AgentError(error.message, hint="build the release again") from error
    # Where a machine tells three parts of its compiler's version, its engines tell four, and their key is of the three.
    three = Passport(**{**vars(passport), "runtime_version": ".".join(passport.runtime_version.split(".")[:3])})
    for here in (passport, three):
        stored = find_engine(layout, engine_key(onnx, order, here))
        if stored is not None and (stored.entry["sha256"], stored.entry.get("onnx_sha256")) == (engine, onnx):
            return "builder", ()
    if attestation is None:
        raise AgentError(
            f"the engine {engine[:12]} was built elsewhere, and nobody vouches for it",
            kind="integrity",
            hint="kedge release attest RELEASE --key KEY, or let this device build its own: kedge deploy",
        )
    try:
        stated = parse_engine_statement(attestation.document)
    except ManifestError as error:
        raise AgentError(f"refused: {error}", hint="attest the engine again: kedge release attest") from error
    keys = verify(rules, attestation.document, attestation.signatures, ENGINE_NAMESPACE, base.model)
    if (stated.release, stated.onnx, dict(stated.plan), stated.passport, stated.engine) != (
        base.digest,
        onnx,
        order.plan(),
        passport,
        engine,
    ):
        raise AgentError(
            f"the attestation is of another engine than {engine[:12]}, or of another release",
            kind="integrity",
            hint="kedge release attest",
        )
    return "attestation", keys


def _downgraded(layout: Layout, rules: ReleaseRules, manifest: Manifest, data: bytes, offer: Offer) -> Verdict:
    """A verdict with the floor that a downgrade asks for and may; nothing changes where none came or none is taken.

    Raises:
        AgentError: the release is older than the model has been, and may not go live (integrity).
    """
    state = _state(layout, manifest.model)
    why = ""
    if offer.downgrade is not None:
        stated = _stated(manifest, data, offer, offer.downgrade)
        if stated.serial <= state.downgrade:
            why = (
                f"; the downgrade that came with it was used before, or one after it: "
                f"its serial {stated.serial} is not higher than the last one's, {state.downgrade}"
            )
        elif stated.from_floor < state.floor:
            why = f"; the downgrade that came with it is from version {stated.from_floor} at most"
        else:
            document, signatures = offer.downgrade.document, offer.downgrade.signatures
            keys = verify(rules, document, signatures, DOWNGRADE_NAMESPACE, manifest.model) if rules.required else ()
            return Verdict(
                signed=False,
                downgrade_floor=stated.floor,
                downgrade_serial=stated.serial,
                downgrade_from=stated.from_floor,
                downgrade_keys=keys,
            )
    if manifest.version < state.floor and manifest.digest not in (state.current, state.previous):
        raise AgentError(
            f"{manifest.model} has been at version {state.floor} on this device; this is version "
            f"{manifest.version}{why}",
            kind="integrity",
            hint="build it with a higher --model-version, or take it as it is: kedge deploy --allow-downgrade",
        )
    return Verdict(signed=False)


def _stated(manifest: Manifest, data: bytes, offer: Offer, signed: Signed) -> Downgrade:
    """A downgrade as it came, which must be for this release; nobody has been asked who signed it."""
    digests = {manifest.digest}
    if offer.base is not None:
        base = _manifest(offer.base.document)
        if completed_artefact(offer.base.document, data) is not None:
            # With the engine in its place it is the same version still.
            digests.add(base.digest)
    try:
        found = parse_downgrade(signed.document)
    except ManifestError as error:
        raise AgentError(f"refused: {error}", hint="kedge deploy --allow-downgrade makes it") from error
    if found.model != manifest.model or found.release not in digests or found.floor > manifest.version:
        raise AgentError(
            f"the downgrade is for another release than {manifest.digest[:12]}",
            kind="integrity",
            hint="kedge deploy --allow-downgrade makes one for this release",
        )
    return found


def _state(layout: Layout, model: str) -> ModelState:
    """The model's state; one that is damaged must not keep the release that mends it away, so its way back counts."""
    for read in (read_state, way_back):
        try:
            state = read(layout, model)
        except AgentError:
            continue
        if state is not None:
            return state
    return ModelState("", None)

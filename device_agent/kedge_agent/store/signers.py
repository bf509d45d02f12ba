"""Who may put what on this device: signatures, the floor of versions, engines that another device built.

A release is judged when it is taken, and never again: loading it compares hashes with what was taken, and asks neither
the clock nor the file of signers. `docs/signing.md` has the rules for people.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..engine.order import engine_key, parse_order
from ..engine.report import EngineError
from ..errors import AgentError
from ..formats.manifest import Manifest, ManifestError, parse_manifest
from ..formats.offer import AGENT, RELEASE, Offer, Signed
from ..formats.passport import Passport
from ..formats.sshkeygen import Signers, keygen_problem, verify_signatures
from ..formats.sshsig import (
    AGENT_NAMESPACE,
    DOWNGRADE_NAMESPACE,
    ENGINE_NAMESPACE,
    RELEASE_NAMESPACE,
    SignatureError,
)
from ..formats.statements import Downgrade, completes, parse_downgrade, parse_engine_statement
from .engines import find_engine
from .layout import Layout
from .models import ModelState, read_state, way_back
from .rules import ReleaseRules

__all__ = [
    "AGENT_PRINCIPAL",
    "Verdict",
    "describe",
    "judge",
    "judge_agent",
    "signers_binding",
    "signing_problem",
    "verify",
]

AGENT_PRINCIPAL = "kedge-agent"

_GUIDE = "docs/signing.md"

_SIGNED_BY = {
    RELEASE_NAMESPACE: "kedge release sign RELEASE --key KEY",
    ENGINE_NAMESPACE: "kedge release attest RELEASE --key KEY",
    DOWNGRADE_NAMESPACE: "kedge deploy --allow-downgrade --key KEY",
    AGENT_NAMESPACE: "kedge device upgrade --key KEY",
}


@dataclass(frozen=True)
class Verdict:
    """What was found about something that may be taken, to be recorded with it.

    signed: it has the signatures that this device asks for, of its own or of the release that it completes.
    keys: fingerprints of the distinct keys; empty where none were asked for, for none are then verified. threshold: how
    many were asked for; 0: none. downgrade_floor, downgrade_serial: what is to stand in the model's state once the
    release has proven itself; None and 0: nothing changes. attested: who vouches for an engine that a device built:
    "builder" (this device built it), "attestation" (a signer), None (it has no such engine, or nobody was asked).
    """

    signed: bool
    keys: tuple[str, ...] = ()
    threshold: int = 0
    downgrade_floor: int | None = None
    downgrade_serial: int = 0
    attested: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self) | {"keys": list(self.keys)}


def judge(layout: Layout, rules: ReleaseRules, manifest_data: bytes, offer: Offer) -> Verdict:
    """Whether a release may be taken. Cheap: none of its files is read.

    Raises:
        AgentError: it may not (integrity), its manifest or a statement is malformed (bad_input), or signatures cannot
            be verified on this device (incompatible).
    """
    if offer.kind != RELEASE:
        raise AgentError(f"what is offered is no release but an {offer.kind}", hint="kedge device upgrade")
    manifest = _manifest(manifest_data)
    floor, serial = _downgrade(layout, rules, manifest, manifest_data, offer)
    if not rules.required:
        return Verdict(signed=False, downgrade_floor=floor, downgrade_serial=serial)
    keys, attested = _vouched(layout, rules, manifest, manifest_data, offer)
    return Verdict(True, keys, rules.needed(manifest.model), floor, serial, attested)


def judge_agent(rules: ReleaseRules, manifest_data: bytes, offer: Offer) -> Verdict:
    """Whether an agent may take this one's place. Raises as `judge`."""
    if offer.kind != AGENT:
        raise AgentError(f"what is offered is no agent but a {offer.kind}", hint="kedge deploy")
    if not rules.required:
        return Verdict(signed=False)
    keys = verify(rules, manifest_data, offer.signatures, AGENT_NAMESPACE, AGENT_PRINCIPAL)
    return Verdict(True, keys, rules.needed(AGENT_PRINCIPAL))


def verify(rules: ReleaseRules, document: bytes, signatures: bytes, namespace: str, principal: str) -> tuple[str, ...]:
    """Fingerprints of the distinct keys that have signed a document and may; as many as the rules ask for, at least.

    Args:
        principal: the model's name, or AGENT_PRINCIPAL.

    Raises:
        AgentError: they are too few (integrity); the message says what is wrong with the others. Signatures cannot be
            verified here (incompatible).
    """
    problem = signing_problem(rules)
    if problem is not None:
        raise AgentError(problem, kind="incompatible", hint=f"on the device; {_GUIDE} says how")
    needed = rules.needed(principal)
    try:
        found = verify_signatures(
            document, signatures, namespace, principal, Signers(rules.allowed_signers, rules.revoked_keys)
        )
    except SignatureError as error:
        raise AgentError(str(error), kind="integrity", hint=f"sign again: {_GUIDE}") from error
    good = tuple(sorted({each.fingerprint for each in found if each.problem is None}))
    if len(good) >= needed:
        return good
    what = f"{principal} ({namespace})"
    if not found:
        raise AgentError(
            f"no signature came with {what}; this device asks for {needed}",
            kind="integrity",
            hint=f"{_SIGNED_BY[namespace]}, with a key of {rules.allowed_signers} on the device",
        )
    bad = [each for each in found if each.problem is not None]
    if bad:
        short = "" if needed == 1 else f"; {what} has {len(good)} of {needed} good signatures"
        raise AgentError(f"{bad[0].problem}{short}", kind="integrity", hint=bad[0].hint)
    raise AgentError(
        f"{what} is signed by {len(good)} of the {needed} distinct keys that this device asks for",
        kind="integrity",
        hint="have somebody else sign it too; one key counts once, under however many names",
    )


def signing_problem(rules: ReleaseRules) -> str | None:
    """What keeps signatures from being verified here, in one line; None: nothing, or nobody asks for them."""
    if not rules.required:
        return None
    found = keygen_problem()
    if found is not None:
        return f"signatures cannot be verified: {found[0]}; {found[1]}"
    try:
        with rules.allowed_signers.open("rb") as file:
            file.read(1)
    except OSError as error:
        return f"signatures are required, and {rules.allowed_signers} cannot be read: {error.strerror}"
    return None


def signers_binding(rules: ReleaseRules) -> str | None:
    """Why signatures do not bind the user that runs the agent, in one line; None: they do, or nobody asks for them."""
    if not rules.required:
        return None
    if os.geteuid() == 0:
        return "the agent runs as root: whoever deploys as root could change the signers too"
    for path in (rules.allowed_signers, *rules.allowed_signers.parents):
        if os.access(path, os.W_OK) or _owns(path):
            return f"the user that runs the agent may write {path}, and so decide who may sign"
    return None


def describe(rules: ReleaseRules) -> dict[str, Any]:
    """What `status` tells about signatures, in plain JSON."""
    return {
        "required": rules.required,
        "file": str(rules.allowed_signers),
        "threshold": rules.threshold,
        "problem": signing_problem(rules),
        "binding": signers_binding(rules),
    }


def _owns(path: Path) -> bool:
    """Whose file it is may change its mode."""
    try:
        return path.stat().st_uid == os.geteuid()
    except OSError:
        return False


def _manifest(data: bytes) -> Manifest:
    try:
        return parse_manifest(data)
    except ManifestError as error:
        raise AgentError(f"refused: {error}", hint="build the release again") from error


def _vouched(
    layout: Layout, rules: ReleaseRules, manifest: Manifest, data: bytes, offer: Offer
) -> tuple[tuple[str, ...], str | None]:
    """Who signed a release, or the one that it completes; and who vouches for its engine."""
    engine = next((each for each in manifest.artefacts if each.passport is not None), None)
    if engine is None or engine.passport is None or offer.base is None or offer.signatures:
        return verify(rules, data, offer.signatures, RELEASE_NAMESPACE, manifest.model), None
    base = _manifest(offer.base.document)
    keys = verify(rules, offer.base.document, offer.base.signatures, RELEASE_NAMESPACE, base.model)
    if not completes(offer.base.document, data):
        raise AgentError(
            f"release {manifest.digest[:12]} differs from the signed {base.digest[:12]} in more than the engine",
            kind="integrity",
            hint="build it again, or sign it itself: kedge release sign",
        )
    return keys, _attested(layout, rules, base, manifest.file(engine.file).sha256, engine.passport, offer.attestation)


def _attested(
    layout: Layout,
    rules: ReleaseRules,
    base: Manifest,
    engine: str,
    passport: Passport,
    attestation: Signed | None,
) -> str:
    planned = next(each for each in base.artefacts if each.build is not None)
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
            return "builder"
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
    verify(rules, attestation.document, attestation.signatures, ENGINE_NAMESPACE, base.model)
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
    return "attestation"


def _downgrade(
    layout: Layout, rules: ReleaseRules, manifest: Manifest, data: bytes, offer: Offer
) -> tuple[int | None, int]:
    """The floor and the serial number that a downgrade asks for and may; None and 0 where nothing changes.

    Raises:
        AgentError: the release is older than the model has been, and may not go live (integrity).
    """
    state = _state(layout, manifest.model)
    wanted = None
    if offer.downgrade is not None:
        digests = {manifest.digest}
        if offer.base is not None:
            base = _manifest(offer.base.document)
            if completes(offer.base.document, data):
                # With the engine in its place it is the same version still.
                digests.add(base.digest)
        wanted = _wanted(rules, manifest, digests, offer.downgrade, state.downgrade)
    if wanted is not None:
        return wanted.floor, wanted.serial
    if manifest.version < state.floor and manifest.digest not in (state.current, state.previous):
        replayed = "; the downgrade that came with it was used before" if offer.downgrade is not None else ""
        raise AgentError(
            f"{manifest.model} has been at version {state.floor} on this device; this is version "
            f"{manifest.version}{replayed}",
            kind="integrity",
            hint="build it with a higher --model-version, or take it as it is: kedge deploy --allow-downgrade",
        )
    return None, 0


def _wanted(
    rules: ReleaseRules, manifest: Manifest, digests: set[str], signed: Signed, last_serial: int
) -> Downgrade | None:
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
    if found.serial <= last_serial:
        return None
    if rules.required:
        verify(rules, signed.document, signed.signatures, DOWNGRADE_NAMESPACE, manifest.model)
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

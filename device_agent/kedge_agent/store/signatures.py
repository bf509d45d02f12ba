"""Signatures on this device: whether they are asked for and can be verified, whom they bind, and which still stand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import AgentError
from ..formats.manifest import MANIFEST_NAME, Manifest
from ..formats.offer import Signed
from ..formats.sshkeygen import Signers, keygen_problem, listed, revocation, verify_signatures
from ..formats.sshsig import (
    AGENT_NAMESPACE,
    DOWNGRADE_NAMESPACE,
    ENGINE_NAMESPACE,
    RELEASE_NAMESPACE,
    SignatureError,
    split_signatures,
)
from ..wire import MAX_MANIFEST_BYTES
from .files import read_bounded, translate_os_error
from .layout import Layout
from .models import ModelState
from .releases import Acceptance, read_offer
from .rules import ReleaseRules

__all__ = ["describe", "require_standing", "signers_binding", "signing_problem", "verify"]

_GUIDE = "docs/signing.md"

_SIGNED_BY = {
    RELEASE_NAMESPACE: "kedge release sign RELEASE --key KEY",
    ENGINE_NAMESPACE: "kedge release attest RELEASE --key KEY",
    DOWNGRADE_NAMESPACE: "kedge deploy --allow-downgrade --key KEY",
    AGENT_NAMESPACE: "kedge device upgrade --key KEY",
}


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
    said_by = (rules.allowed_signers, rules.revoked_keys, *([] if rules.settings is None else [rules.settings]))
    for file in said_by:
        absolute = file.absolute()
        for path in (absolute, *absolute.parents):
            if os.access(path, os.W_OK) or _owns(path):
                return f"the user that runs the agent may write {path}, and so decide who may sign"
    return None


def require_standing(
    layout: Layout, rules: ReleaseRules, manifest: Manifest, acceptance: Acceptance, state: ModelState | None
) -> None:
    """Refuse to work on a release that was accepted by looser rules than today's, or by keys that are revoked since.

    The clock is not asked, and neither is the file of signers: who has expired since, or is not in it any more, has
    signed all the same.

    Raises:
        AgentError: it was accepted without signatures where they are required, or with too few that still stand
            (integrity); the list of revoked keys cannot be read.
    """
    if not rules.required:
        return
    name = f"release {manifest.digest[:12]}"
    if not acceptance.signed:
        raise AgentError(
            f"{name} was accepted without signatures, and this device requires them",
            kind="integrity",
            hint="sign it and deploy it again: kedge release sign",
        )
    offer = read_offer(layout, manifest.digest)
    own = offer.base
    if own is None or offer.signatures:
        try:
            data = read_bounded(layout.release(manifest.digest) / MANIFEST_NAME, MAX_MANIFEST_BYTES)
        except OSError as error:
            raise translate_os_error(error, f"reading the manifest of {name}") from error
        own = Signed(data, offer.signatures)
    _stand(rules, manifest.model, name, own, RELEASE_NAMESPACE, acceptance.keys)
    if acceptance.attested == "attestation":
        what = f"the attestation of the engine of {name}"
        _stand(rules, manifest.model, what, offer.attestation, ENGINE_NAMESPACE, acceptance.attestation_keys)
    if state is not None and acceptance.lowers(state.floor, state.downgrade):
        what = f"the downgrade to {name}"
        _stand(rules, manifest.model, what, offer.downgrade, DOWNGRADE_NAMESPACE, acceptance.downgrade_keys)


def _stand(
    rules: ReleaseRules, model: str, what: str, signed: Signed | None, namespace: str, counted: tuple[str, ...]
) -> None:
    """Of the keys that counted when something was accepted, as many must not be revoked as are asked for now."""
    standing, problem = set(counted), None
    try:
        if signed is not None and listed(rules.revoked_keys):
            found = {each.fingerprint: each for each in split_signatures(signed.signatures)}
            standing.clear()
            for key in counted:
                lost = revocation(signed.document, found[key], namespace, model, rules.revoked_keys)
                if lost is None:
                    standing.add(key)
                else:
                    problem = lost.problem
    except (SignatureError, KeyError) as error:
        raise AgentError(
            f"the signatures of {what} cannot be looked at again: {error}", kind="integrity", hint="deploy it again"
        ) from error
    needed = rules.needed(model)
    if len(standing) < needed:
        why = f": {problem}" if problem is not None else ""
        raise AgentError(
            f"{what} was accepted with {len(counted)} keys, {len(standing)} of which still count; "
            f"this device asks for {needed}{why}",
            kind="integrity",
            hint=f"sign it with other keys and deploy it again: {_SIGNED_BY[namespace]}",
        )


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

"""Vouch for engines that devices built: a signed statement lets others run them. No release changes by it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kedge_agent.engine.order import Order, parse_order
from kedge_agent.engine.report import EngineError
from kedge_agent.formats.manifest import Manifest, ManifestError, parse_manifest
from kedge_agent.formats.offer import Signed
from kedge_agent.formats.passport import Passport
from kedge_agent.formats.sshsig import ENGINE_NAMESPACE
from kedge_agent.formats.statements import EngineStatement, completed_artefact, statement_bytes

from ..errors import BadInputError, IntegrityError
from ..release.bundle import ATTESTATION, Release, write_side
from ..release.signing import sign_document
from .cache import Builder, CachedEngine, EngineCache

__all__ = ["HOST", "Attested", "attest"]

HOST = "HOST"
"""Who built an engine that no device did: names of devices have no capitals."""


@dataclass(frozen=True)
class Attested:
    """An engine that was vouched for. release: whose build plan it is the engine of.

    builder: None where this host built it, or where the cache does not know the engine.
    """

    release: str
    engine: str
    passport: Passport
    builder: Builder | None


def attest(
    release: Release, key: Path, cache: EngineCache | None = None, built_on: str | None = None
) -> list[Attested]:
    """Sign that engines are what a build plan asked for: the release's own one, or those that a device built by it.

    A statement on a release's engine lies beside the release; one on an engine of the cache goes with every release
    that is completed with it.

    Args:
        release: with an engine that a device built, or with a build plan.
        key: as `release.signing.sign_document` takes it.
        built_on: the device whose engines are meant, by its name, or HOST; None: whoever it is, where that is one.

    Raises:
        BadInputError: there is no such engine, or nobody said whose; ssh-keygen could not sign.
        IntegrityError: a file of the release or an engine of the cache is damaged.
    """
    kept = cache or EngineCache()
    if any(each.build is not None for each in release.manifest.artefacts):
        return _attest_cached(release, key, kept, built_on)
    if all(each.passport is None for each in release.manifest.artefacts):
        raise BadInputError(
            "the release has neither a build plan nor an engine: a device compiles nothing of it",
            hint="its signature is all it needs: kedge release sign",
        )
    release.verify()
    offer = release.offer()
    if offer.base is None:
        raise BadInputError(
            "the release does not say which release its engine completes",
            hint="what this host built needs no attestation: kedge release sign",
        )
    try:
        base = parse_manifest(offer.base.document)
    except ManifestError as error:
        raise IntegrityError(f"base.json: {error}", hint="build the release again") from error
    place = completed_artefact(offer.base.document, release.manifest_bytes)
    if place is None:
        raise IntegrityError("base.json is not the release that this one completes", hint="build the release again")
    artefact = release.manifest.artefacts[place]
    assert artefact.passport is not None
    engine = release.manifest.file(artefact.file).sha256
    known = next((each for each in kept.entries() if each.sha256 == engine), None)
    if built_on is not None and (known is None or known.builder is None or known.builder.device != built_on):
        raise BadInputError(
            f"the engine of this release was not built on {built_on}, as far as the cache knows",
            hint="attest what came from a device that you hold, and nothing else",
        )
    old = offer.attestation or Signed(b"")
    signed = _stated(base, engine, artefact.passport, key, old)
    write_side(release.folder, ATTESTATION, signed)
    if known is not None:
        kept.attest(known, base.digest, signed)
    return [Attested(base.digest, engine, artefact.passport, None if known is None else known.builder)]


def _attest_cached(release: Release, key: Path, cache: EngineCache, built_on: str | None) -> list[Attested]:
    onnx, order = _plan(release.manifest)
    candidates = cache.of_model(onnx, order)
    builders = sorted({_built_by(each) for each in candidates})
    if built_on is not None:
        candidates = [each for each in candidates if _built_by(each) == built_on]
    elif len(builders) > 1:
        raise BadInputError(
            f"the cache has engines of this plan from {', '.join(builders)}", hint="say whose: --built-on DEVICE"
        )
    out = []
    for each in candidates:
        found = cache.get(each.key)
        if found is not None:
            old = found.attestation(release.digest) or Signed(b"")
            cache.attest(found, release.digest, _stated(release.manifest, found.sha256, found.passport, key, old))
            out.append(Attested(release.digest, found.sha256, found.passport, found.builder))
    if not out:
        raise BadInputError(
            "the cache has no engine of this release's model and plan"
            + (f" that was built on {built_on}" if built_on is not None else ""),
            hint="have a device build one first: kedge build --on DEVICE, or kedge deploy",
        )
    return out


def _stated(base: Manifest, engine: str, passport: Passport, key: Path, old: Signed) -> Signed:
    onnx, order = _plan(base)
    document = statement_bytes(EngineStatement(base.digest, onnx, order.plan(), passport, engine))
    # Another key's signature of the same statement stays.
    signatures = old.signatures if old.document == document else b""
    return Signed(document, sign_document(document, key, ENGINE_NAMESPACE, signatures))


def _built_by(engine: CachedEngine) -> str:
    return HOST if engine.builder is None else engine.builder.device


def _plan(manifest: Manifest) -> tuple[str, Order]:
    artefact = next(each for each in manifest.artefacts if each.build is not None)
    try:
        return manifest.file(artefact.file).sha256, parse_order(dict(artefact.build or {}))
    except EngineError as error:
        raise BadInputError(error.message, hint="build the release again") from error

"""Which device may run an engine: the one that built it, and others when somebody vouches for it (docs/signing.md)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from kedge_agent.formats.manifest import ManifestError, parse_manifest

from ..build.cache import Builder, CachedEngine, EngineCache
from ..errors import BadInputError, IntegrityError
from ..release.bundle import Release
from ..transport.base import Transport
from ..transport.client import AgentClient
from ..transport.ssh import SshTransport

__all__ = ["as_builder", "has_engine", "may_run", "require_vouched"]


def as_builder(transport: Transport) -> Builder:
    """A device as the cache notes it."""
    pinned = transport.address.host_key if isinstance(transport, SshTransport) else None
    return Builder(transport.name, None if pinned is None else pinned.fingerprint)


def may_run(
    engine: CachedEngine, device: Builder, release: Release, signatures: bool, has: Callable[[CachedEngine], bool]
) -> bool:
    """Whether a device may be given an engine: one that somebody vouches for; this host's; its own.

    Args:
        signatures: whether the device asks for them. It then takes nobody's word but a signer's, and knows its own
            engine as long as it `has` it.
    """
    if engine.attestation(release.digest) is not None:
        return True
    if signatures:
        return device.is_same(engine.builder) and has(engine)
    return engine.builder is None or device.is_same(engine.builder)


def has_engine(client: AgentClient, key: str, engine: CachedEngine) -> bool:
    """Whether a device has this engine still, from when it built it."""
    try:
        answer = client.get(f"/kedge/v1/build/{key}?wait=0", expect=("state", "result"))
    except BadInputError:
        return False
    return isinstance(answer["result"], dict) and answer["result"].get("sha256") == engine.sha256


def require_vouched(transport: Transport, release: Release) -> None:
    """Refuse to carry an engine from the device that built it to another, unless somebody vouches for it.

    Where the device asks for signatures, it refuses that itself. What the cache does not know, it may have built.

    Raises:
        IntegrityError: nobody does.
    """
    offer = release.offer()
    if offer.base is None or offer.attestation is not None or offer.signatures:
        return
    engines = {release.manifest.file(each.file).sha256 for each in release.manifest.artefacts if each.passport}
    with contextlib.suppress(ManifestError):
        # What the release had before it was completed came with it.
        engines -= {each.sha256 for each in parse_manifest(offer.base.document).files}
    builders = [each.builder for each in EngineCache().entries() if each.sha256 in engines and each.builder is not None]
    if builders and not any(as_builder(transport).is_same(each) for each in builders):
        raise IntegrityError(
            f"the engine was built on {builders[0].device}, and nobody vouches for it on {transport.name}",
            hint="kedge release attest RELEASE --key KEY; or deploy the release with the build plan",
        )

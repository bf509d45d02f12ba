"""Accept a release: prove its files whole, move them into the store, and have its folder appear by one rename."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from ..errors import AgentError
from ..failpoints import reached
from ..formats.manifest import MANIFEST_NAME, FileEntry, Manifest, parse_manifest
from ..formats.offer import Offer, offer_bytes
from .files import fsync_directory, make_directory, write_atomic
from .layout import Layout
from .locks import deploying
from .models import read_state
from .objects import link_everywhere, link_names, store_files
from .parcel import Parcel
from .releases import (
    ACCEPTED_NAME,
    OFFER_NAME,
    Acceptance,
    acceptance_bytes,
    read_acceptance,
    read_offer,
    read_release,
    release_digests,
    releases_of,
)
from .rules import ReleaseRules
from .signers import Verdict, judge

__all__ = ["ReleaseParcel", "accept"]


def accept(
    layout: Layout,
    manifest: Manifest,
    manifest_data: bytes,
    offer: Offer,
    verdict: Verdict,
    staging: Path,
    proven: Collection[str] = frozenset(),
) -> None:
    """Make a release a part of the store; of one that is there already, mend the files and keep the better verdict.

    The caller holds `deploying` and `using_store`, and has judged the release.

    Args:
        staging: a folder on the store's file system. A file of the release lies there under its sha256, or the caller
            has found it in the store with every byte as it should be. The folder is gone afterwards.
        proven: `store_files` has it.

    Raises:
        AgentError: files are not what the manifest names (integrity).
        OSError: as the file system says. What was moved stays; the same call may be made again.
    """
    reached("accept.judged")
    # Until there is a release that names them, a collection finds here which objects are needed.
    write_atomic(staging / MANIFEST_NAME, manifest_data)
    store_files(layout, manifest.files, staging, proven)
    link_everywhere(layout, {entry.sha256 for entry in manifest.files})
    reached("accept.objects")
    release = layout.release(manifest.digest)
    if release.is_dir():
        _renew(layout, manifest, manifest_data, offer, verdict)
    else:
        _make(layout, manifest, manifest_data, offer, verdict)
    shutil.rmtree(staging, ignore_errors=True)
    reached("accept.cleaned")


def _make(layout: Layout, manifest: Manifest, manifest_data: bytes, offer: Offer, verdict: Verdict) -> None:
    release = layout.release(manifest.digest)
    make_directory(release.parent)
    partial = release.with_name(f".{manifest.digest}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    _write(partial / MANIFEST_NAME, manifest_data)
    _write(partial / OFFER_NAME, offer_bytes(offer))
    _write(partial / ACCEPTED_NAME, acceptance_bytes(manifest.digest, _acceptance(layout, verdict)))
    # The last of it, because its fsync of the folder makes all of these names durable.
    link_names(layout, partial, manifest.files)
    reached("accept.folder")
    with contextlib.suppress(FileNotFoundError):
        # No folder, whatever it is: it would be in the way.
        release.unlink()
    partial.rename(release)
    reached("accept.renamed")
    try:
        fsync_directory(release.parent)
    except OSError:
        # It may not be durable, and another fsync would not tell: the next acceptance renames it anew.
        release.rename(partial)
        raise


def _write(path: Path, data: bytes) -> None:
    """A file on disk, its name not yet, in a folder that nobody looks into before all of it is there."""
    with path.open("xb") as out:
        os.fchmod(out.fileno(), 0o444)
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def _renew(layout: Layout, manifest: Manifest, manifest_data: bytes, offer: Offer, verdict: Verdict) -> None:
    """Mend a release's folder where it lies, and record anew that it was accepted, by the better of both verdicts."""
    release = layout.release(manifest.digest)
    # Whoever renamed it there may have been killed before that was on disk.
    fsync_directory(release.parent)
    with contextlib.suppress(AgentError):
        read_release(layout, manifest.digest)
        manifest_data = b""
    if manifest_data:
        write_atomic(release / MANIFEST_NAME, manifest_data, mode=0o444)
    link_names(layout, release, manifest.files)
    acceptance = _acceptance(layout, verdict)
    with contextlib.suppress(AgentError):
        acceptance, offer = _better(layout, manifest.digest, acceptance, offer)
    write_atomic(release / OFFER_NAME, offer_bytes(offer), mode=0o444)
    write_atomic(release / ACCEPTED_NAME, acceptance_bytes(manifest.digest, acceptance), mode=0o444)


def _better(layout: Layout, digest: str, new: Acceptance, offer: Offer) -> tuple[Acceptance, Offer]:
    """What a release had once, it keeps: a device that asks for less today may ask for more tomorrow."""
    known, had = read_acceptance(layout, digest), read_offer(layout, digest)
    if known.signed and not new.signed:
        # Nobody was asked who signed what comes now, its downgrade included.
        return replace(known, sequence=new.sequence, at_s=new.at_s), had
    if set(known.keys) > set(new.keys):
        new = replace(
            new,
            keys=known.keys,
            threshold=known.threshold,
            attested=known.attested,
            attestation_keys=known.attestation_keys,
        )
        offer = replace(offer, signatures=had.signatures, base=had.base, attestation=had.attestation)
    # Nobody signed a downgrade that was taken in unsigned mode: it does not outlive a signed acceptance.
    if known.downgrade_serial > new.downgrade_serial and known.signed == new.signed:
        new = replace(
            new,
            downgrade_floor=known.downgrade_floor,
            downgrade_serial=known.downgrade_serial,
            downgrade_from=known.downgrade_from,
            downgrade_keys=known.downgrade_keys,
        )
        offer = replace(offer, downgrade=had.downgrade)
    return new, offer


def _acceptance(layout: Layout, verdict: Verdict) -> Acceptance:
    last = 0
    for digest in release_digests(layout):
        with contextlib.suppress(AgentError):
            last = max(last, read_acceptance(layout, digest).sequence)
    return Acceptance(**vars(verdict), sequence=last + 1, at_s=int(time.time()))


class ReleaseParcel(Parcel):
    """A release that is being pushed.

    Raises:
        ManifestError: `manifest_data` is no manifest of one.
    """

    def __init__(self, layout: Layout, rules: ReleaseRules, manifest_data: bytes, offer: Offer) -> None:
        self._manifest = parse_manifest(manifest_data)
        super().__init__("release", layout, rules, self._manifest, manifest_data, offer)

    def lock(self) -> AbstractContextManager[None]:
        """No other deploy of its model."""
        return deploying(self._layout, self._manifest.model)

    def judge(self) -> None:
        """By signatures, the floor of versions, and attestations: `signers.judge`."""
        judge(self._layout, self._rules, self._data, self._offer)

    def relatives(self) -> Sequence[tuple[FileEntry, ...]]:
        """The files of the live release of its model, of the one before, and of the others, the last accepted first."""
        digests = releases_of(self._layout, self._manifest.model)
        with contextlib.suppress(AgentError):
            state = read_state(self._layout, self._manifest.model)
            first = (state.current, state.previous) if state is not None else ()
            digests.sort(key=lambda digest: first.index(digest) if digest in first else len(first))
        return [read_release(self._layout, digest).files for digest in digests if digest != self.digest]

    def accept(self, staging: Path, proven: Collection[str] = frozenset()) -> None:
        """Judge it once more, with all of it here, and make it a part of the store: `accept`."""
        verdict = judge(self._layout, self._rules, self._data, self._offer)
        accept(self._layout, self._manifest, self._data, self._offer, verdict, staging, proven)

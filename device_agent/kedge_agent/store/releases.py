"""Accepted releases: reading one back, what was found at its acceptance, and proving that every byte is still there."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import AgentError
from ..formats.digests import sha256_hex
from ..formats.frames import frame_count
from ..formats.manifest import MANIFEST_NAME, FileEntry, Manifest, ManifestError, is_digest, parse_manifest
from ..formats.offer import Offer, parse_offer
from ..wire import MAX_JSON_BYTES, MAX_MANIFEST_BYTES, WireError, parse_json
from .files import read_bounded
from .layout import Layout
from .proof import good_frames, is_whole
from .verdict import Verdict

__all__ = [
    "ACCEPTED_NAME",
    "OFFER_NAME",
    "Acceptance",
    "DamagedError",
    "acceptance_bytes",
    "accepted_releases",
    "has_release",
    "read_acceptance",
    "read_offer",
    "read_release",
    "release_digests",
    "releases_of",
    "verify_release",
]

ACCEPTED_NAME = "accepted.json"
OFFER_NAME = "offer.json"
"""Beside the manifest in a release's folder: what was found when it was accepted, and what had come with it."""

_MAX_ACCEPTED_BYTES = 64 * 1024


class DamagedError(AgentError):
    """A release is not what its manifest names any more; of kind integrity.

    Args:
        release: its digest.
        damaged: frames without the right bytes, by file name; empty where a file is only too long.
        problems: what is wrong, a part of a line each.
    """

    def __init__(self, release: str, damaged: dict[str, list[int]], problems: list[str]) -> None:
        super().__init__(
            f"release {release[:12]}: {'; '.join(problems)}",
            kind="integrity",
            hint="deploy the release again: the damaged frames alone are sent; if this returns, suspect the storage",
        )
        self.damaged = damaged


@dataclass(frozen=True)
class Acceptance(Verdict):
    """What was found about a release when it was accepted, and when that was.

    sequence: counts acceptances of this store, whatever its clock says; 0 for one that an agent accepted which kept no
    record, and which therefore counts as not signed. at_s: seconds since 1970 by the device's clock, for people.
    """

    sequence: int = 0
    at_s: int = 0

    def lowers(self, floor: int, serial: int) -> bool:
        """Whether the downgrade that was accepted with it counts for a model with this floor and last serial."""
        return self.downgrade_floor is not None and self.downgrade_serial > serial and floor <= self.downgrade_from


def has_release(layout: Layout, digest: str) -> bool:
    """Whether a release of this name has been accepted."""
    return (layout.release(digest) / MANIFEST_NAME).is_file()


def read_release(layout: Layout, digest: str) -> Manifest:
    """The manifest of an accepted release, its own digest checked.

    Raises:
        AgentError: it is not here (not_found), or not what its name says (integrity).
    """
    path = layout.release(digest) / MANIFEST_NAME
    try:
        manifest = parse_manifest(read_bounded(path, MAX_MANIFEST_BYTES))
    except FileNotFoundError:
        raise AgentError(
            f"release {digest[:12]} is not on this device",
            kind="not_found",
            hint="push it: kedge release push RELEASE --to DEVICE",
        ) from None
    except (OSError, ManifestError) as error:
        raise AgentError(
            f"release {digest[:12]} is damaged: {error}", kind="integrity", hint="deploy it again"
        ) from error
    if manifest.digest != digest:
        raise AgentError(
            f"release {digest[:12]} is damaged: its manifest has the digest {manifest.digest[:12]}",
            kind="integrity",
            hint="deploy it again",
        )
    return manifest


def verify_release(layout: Layout, manifest: Manifest) -> None:
    """Hash every file of a release against its manifest.

    Raises:
        DamagedError: files are missing, cannot be read or have other bytes; it names all of them, and the frames.
    """
    damaged: dict[str, list[int]] = {}
    problems: list[str] = []
    for entry in manifest.files:
        path = layout.release(manifest.digest) / entry.name
        if is_whole(path, entry):
            continue
        good = good_frames(path, entry)
        damaged[entry.name] = [frame for frame in range(len(entry.frames)) if frame not in good]
        problems.append(_problem(layout, manifest.digest, entry, damaged[entry.name]))
    if damaged:
        raise DamagedError(manifest.digest, damaged, problems)


def _problem(layout: Layout, digest: str, entry: FileEntry, frames: list[int]) -> str:
    path = layout.release(digest) / entry.name
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"{entry.name} cannot be read: {error.strerror}"
    if size != entry.size_bytes:
        return f"{entry.name} has {size} bytes, and the manifest names {entry.size_bytes}"
    shown = ", ".join(map(str, frames[:8])) + (", …" if len(frames) > 8 else "")
    which = f" in frame{'s' if len(frames) > 1 else ''} {shown} of {frame_count(entry.size_bytes)}" if frames else ""
    return f"{entry.name} has other bytes than the manifest names{which}"


def read_acceptance(layout: Layout, digest: str) -> Acceptance:
    """What was found about a release when it was accepted.

    Raises:
        AgentError: it is not here (not_found), or its record is damaged and the release so not accepted (integrity).
    """
    if not has_release(layout, digest):
        raise AgentError(
            f"release {digest[:12]} is not on this device",
            kind="not_found",
            hint="push it: kedge release push RELEASE --to DEVICE",
        )
    try:
        body = parse_json(read_bounded(layout.release(digest) / ACCEPTED_NAME, _MAX_ACCEPTED_BYTES))
        if body.pop("sha256") != _checksum(body) or body.pop("release") != digest:
            raise WireError("its checksum is wrong")
        # Keys of later versions are passed over.
        known = {each.name: body[each.name] for each in fields(Acceptance)}
        lists = ("keys", "downgrade_keys", "attestation_keys")
        return Acceptance(**known | {name: tuple(body[name]) for name in lists})
    except FileNotFoundError:
        return Acceptance(signed=False)
    except (OSError, WireError, KeyError, TypeError, AttributeError) as error:
        raise AgentError(
            f"the record of the acceptance of release {digest[:12]} is damaged: {error}",
            kind="integrity",
            hint="deploy the release again",
        ) from error


def read_offer(layout: Layout, digest: str) -> Offer:
    """What had come with a release; nothing where it was accepted without.

    Raises:
        AgentError: it is damaged (integrity).
    """
    try:
        return parse_offer(read_bounded(layout.release(digest) / OFFER_NAME, MAX_JSON_BYTES))
    except FileNotFoundError:
        return Offer()
    except (OSError, ManifestError) as error:
        raise AgentError(
            f"the signatures of release {digest[:12]} are damaged: {error}",
            kind="integrity",
            hint="deploy the release again",
        ) from error


def acceptance_bytes(digest: str, acceptance: Acceptance) -> bytes:
    """The record as `read_acceptance` reads it."""
    body = {"release": digest, **asdict(acceptance)}
    return json.dumps(body | {"sha256": _checksum(body)}, indent=1).encode() + b"\n"


def _checksum(body: Mapping[str, Any]) -> str:
    return sha256_hex(json.dumps(dict(body), sort_keys=True).encode())


def release_digests(layout: Layout) -> list[str]:
    """Names of the folders of releases, sorted; whether each is whole, its reader finds."""
    try:
        return sorted(filter(is_digest, os.listdir(layout.root / "releases")))
    except (FileNotFoundError, NotADirectoryError):
        return []


def accepted_releases(layout: Layout) -> list[tuple[Manifest, Acceptance]]:
    """All accepted releases, the one accepted last first. One that is damaged is passed over."""
    found = []
    for digest in release_digests(layout):
        with contextlib.suppress(AgentError):
            found.append((read_release(layout, digest), read_acceptance(layout, digest)))
    return sorted(found, key=lambda each: (each[1].sequence, each[0].version), reverse=True)


def releases_of(layout: Layout, model: str) -> list[str]:
    """Digests of the accepted releases of a model, the one accepted last first."""
    return [manifest.digest for manifest, _ in accepted_releases(layout) if manifest.model == model]

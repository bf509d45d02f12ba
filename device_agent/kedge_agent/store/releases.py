"""Accepted releases: reading one back, and proving that every byte of it is still what was named."""

from __future__ import annotations

from ..errors import AgentError
from ..formats.frames import hash_file
from ..formats.manifest import MANIFEST_NAME, Manifest, ManifestError, parse_manifest
from ..wire import MAX_MANIFEST_BYTES
from .files import read_bounded
from .layout import Layout

__all__ = ["has_release", "read_release", "verify_release"]


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
            f"release {digest[:12]} is not on this device", kind="not_found", hint="deploy it: kedge deploy"
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
        AgentError: a file is missing or has other bytes (kind integrity).
    """
    for entry in manifest.files:
        path = layout.release(manifest.digest) / entry.name
        try:
            found = hash_file(path)
        except OSError as error:
            raise AgentError(
                f"release {manifest.digest[:12]}: {entry.name} cannot be read: {error}",
                kind="integrity",
                hint="deploy the release again",
            ) from error
        if found.sha256 != entry.sha256:
            raise AgentError(
                f"release {manifest.digest[:12]}: {entry.name} has other bytes than the manifest names",
                kind="integrity",
                hint="deploy the release again; if this returns, suspect the device's storage",
            )

"""Files of the store by their content, each once, and the hard links to them that releases hold."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable
from pathlib import Path

from ..errors import AgentError
from ..formats.manifest import FileEntry
from .files import fsync_directory, make_directory, move_aside
from .layout import Layout
from .proof import good_frames, is_whole
from .releases import read_release, release_digests

__all__ = ["intact_frames", "is_intact", "link_everywhere", "link_names", "place_object", "replace_object"]


def intact_frames(layout: Layout, entry: FileEntry) -> set[int]:
    """Frames of an object in the store whose hash holds; all that it has, where some cannot be read. None: empty."""
    return good_frames(layout.object(entry.sha256), entry)


def is_intact(layout: Layout, entry: FileEntry) -> bool:
    """Whether the store has an object, and every byte of it is still what its name says."""
    return is_whole(layout.object(entry.sha256), entry)


def replace_object(layout: Layout, entry: FileEntry, staged: Path) -> None:
    """Put a proven file in the place of an object, and of every link that releases hold to the one it replaces.

    Every name is replaced by one rename, so that none is missing at any instant. Where this is cut short, some releases
    still hold the old file: the next acceptance of any release that names this object goes on with it.

    Args:
        staged: a file on the store's file system, proven and on disk. It is gone afterwards.

    Raises:
        OSError: as the file system says.
    """
    fsync_directory(place_object(layout, entry, staged))
    link_everywhere(layout, {entry.sha256})


def place_object(layout: Layout, entry: FileEntry, staged: Path) -> Path:
    """Move a proven file to where an object lies; returns the folder, whose fsync is left to the caller.

    Raises:
        OSError: as the file system says.
    """
    final = layout.object(entry.sha256)
    make_directory(final.parent)
    move_aside(final)
    staged.chmod(0o444)
    staged.replace(final)
    return final.parent


def link_everywhere(layout: Layout, wanted: Collection[str]) -> None:
    """Have all releases hold these objects of the store, by their sha256, under the names that their manifests say.

    A release whose manifest cannot be read is passed over.

    Raises:
        OSError: as the file system says.
    """
    for digest in release_digests(layout):
        try:
            manifest = read_release(layout, digest)
        except AgentError:
            continue
        link_names(layout, layout.release(digest), [entry for entry in manifest.files if entry.sha256 in wanted])


def link_names(layout: Layout, folder: Path, entries: Iterable[FileEntry]) -> None:
    """Have a folder hold the store's objects under their names, each put there by one rename, durably.

    Raises:
        OSError: as the file system says.
    """
    changed = False
    for entry in entries:
        name, source = folder / entry.name, layout.object(entry.sha256)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(name.lstat(), source.lstat()):
                continue
        # No file of a release begins with a dot.
        fresh = folder / f".{entry.name}.fresh"
        fresh.unlink(missing_ok=True)
        os.link(source, fresh)
        move_aside(name)
        fresh.replace(name)
        changed = True
    if changed:
        fsync_directory(folder)

"""Files of the store by their content, each once, and the hard links to them that releases hold."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from ..errors import AgentError
from ..formats.manifest import FileEntry
from .files import fsync_directory, make_directory, move_aside
from .layout import Layout
from .proof import good_frames, is_whole
from .releases import read_release, release_digests

__all__ = ["is_intact", "link_everywhere", "link_names", "place_object", "store_files"]


def is_intact(layout: Layout, entry: FileEntry) -> bool:
    """Whether the store has an object, and every byte of it is still what its name says."""
    return is_whole(layout.object(entry.sha256), entry)


def place_object(layout: Layout, entry: FileEntry, staged: Path) -> None:
    """Move a proven file, that is on disk, to where its object lies, by one rename.

    The folder is there, and its fsync is left to the caller.

    Raises:
        OSError: as the file system says.
    """
    final = layout.object(entry.sha256)
    move_aside(final)
    staged.chmod(0o444)
    staged.replace(final)


def store_files(
    layout: Layout, files: Sequence[FileEntry], staging: Path, proven: Collection[str] = frozenset()
) -> None:
    """Move files that lie under their sha256 in a staging folder into the store, proven whole and on disk.

    One that is not there is in the store already, as the caller has found.

    Args:
        proven: sha256 of staged files that the caller has read whole, as `RunningProof.finish` tells, and synced. They
            are neither read nor synced again.

    Raises:
        AgentError: a file is not what the manifest names (integrity).
        OSError: as the file system says; a file that may not have reached the disk is gone then.
    """
    for entry in files:
        _prove(layout, entry, staging / entry.sha256, proven)
    arrived = {entry.sha256: entry for entry in files if (staging / entry.sha256).exists()}
    if not arrived:
        return
    folders = {layout.object(sha256).parent for sha256 in arrived}
    _make_folders(folders)
    for sha256, entry in arrived.items():
        place_object(layout, entry, staging / sha256)
    for folder in folders:
        fsync_directory(folder)


def _make_folders(folders: Collection[Path]) -> None:
    """Make folders of one parent, all durable by one fsync of it."""
    parent = next(iter(folders)).parent
    make_directory(parent)
    for folder in folders:
        folder.mkdir(mode=0o755, exist_ok=True)
    # Where all were there, too: whoever made them may have been killed before their names were on disk.
    fsync_directory(parent)


def _prove(layout: Layout, entry: FileEntry, staged: Path, proven: Collection[str]) -> None:
    if not staged.exists():
        if layout.object(entry.sha256).is_file():
            return
        if entry.size_bytes:
            raise AgentError(f"{entry.name} is neither here nor in the store", kind="integrity", hint="run it again")
        staged.touch()
    if entry.sha256 in proven and staged.stat().st_size == entry.size_bytes:
        return
    if not is_whole(staged, entry):
        bad = len(entry.frames) - len(good_frames(staged, entry))
        if bad:
            raise AgentError(
                f"{entry.name}: {bad} frames have other bytes on the device's disk than arrived",
                kind="integrity",
                hint="run it again, only these are sent; if this returns, suspect the device's storage",
            )
        raise AgentError(
            f"the frames of {entry.name} do not add up to its sha256", kind="integrity", hint="build the release again"
        )
    handle = os.open(staged, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError:
        # The kernel may have dropped what it could not write, and would call the file clean the next time.
        staged.unlink()
        raise
    finally:
        os.close(handle)


def link_everywhere(layout: Layout, wanted: Collection[str]) -> None:
    """Have all releases hold these objects of the store, by their sha256, under the names that their manifests say.

    A release whose manifest cannot be read is passed over. Where this is cut short, some releases still hold the file
    that was there before: the next acceptance of any release that names the object goes on with it.

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

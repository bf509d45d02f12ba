"""What a device has of a parcel before anything travels: whole files, frames of a push that broke off, frames that some
other object of the store has too, and objects that differences can be made against."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import AgentError
from ..failpoints import reached
from ..formats.digests import sha256_hex
from ..formats.frames import frame_length
from ..formats.manifest import FileEntry
from ..wire import FRAME_BYTES
from .layout import Layout
from .objects import is_intact
from .proof import good_frames
from .releases import read_release, release_digests

__all__ = [
    "Frames",
    "copy_frames",
    "find_bases",
    "find_joined",
    "find_missing",
    "missing_bytes",
    "reserved_bytes",
    "staged",
    "sync_staged",
]

Frames = dict[tuple[int, int], str]
"""Hashes of frames by file (as the manifest counts them) and frame."""

_MAX_BASES = 4
_MAX_PLACES = 4


@dataclass(frozen=True)
class _Place:
    """Where bytes lie that may be a frame's."""

    path: Path
    offset: int


def find_missing(layout: Layout, files: Sequence[FileEntry], staging: Path) -> Frames:
    """Frames that are neither in the store, in a whole file, nor in what an earlier push left; all of it is hashed."""
    missing: Frames = {}
    seen: set[str] = set()
    for index, entry in enumerate(files):
        if entry.sha256 in seen:
            continue
        seen.add(entry.sha256)
        path = staging / entry.sha256
        if is_intact(layout, entry):
            # Another release brought it meanwhile; what an interrupted push left of it is in the way.
            path.unlink(missing_ok=True)
            continue
        found = good_frames(path, entry)
        missing |= {(index, frame): sha for frame, sha in enumerate(entry.frames) if frame not in found}
    return missing


def missing_bytes(files: Sequence[FileEntry], missing: Mapping[tuple[int, int], str]) -> int:
    """How many bytes these frames have."""
    return sum(frame_length(files[file].size_bytes, frame) for file, frame in missing)


def reserved_bytes(files: Sequence[FileEntry], staging: Path, missing: Frames) -> int:
    """Bytes that an earlier, interrupted push has reserved already for the frames still missing."""
    reserved = 0
    for index, entry in enumerate(files):
        path = staging / entry.sha256
        absent = missing_bytes(files, {key: sha for key, sha in missing.items() if key[0] == index})
        if absent and path.is_file():
            allocated = min(path.stat().st_blocks * 512, entry.size_bytes)
            reserved += max(0, allocated - (entry.size_bytes - absent))
    return reserved


@contextlib.contextmanager
def staged(path: Path, entry: FileEntry) -> Iterator[int]:
    """A file that gathers frames, open, with all of its blocks reserved: a full disk is found before a byte travels.

    Raises:
        OSError: there is no room for it.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(handle, 0, entry.size_bytes)
        os.ftruncate(handle, entry.size_bytes)
        yield handle
    finally:
        os.close(handle)


def sync_staged(handle: int, path: Path) -> None:
    """Make what was written to a gathering file durable.

    Raises:
        OSError: it is not, and the file is gone: the kernel may have dropped what it could not write, and says so once.
    """
    try:
        os.fdatasync(handle)
        reached("receive.synced")
    except OSError:
        path.unlink(missing_ok=True)
        raise


def find_joined(files: Sequence[FileEntry], staging: Path, handles: Mapping[int, int], missing: Frames) -> None:
    """Take frames out of `missing` that a process which joined the push has brought: by their hashes, and on disk.

    Args:
        handles: open files that gather the frames, by the file's index.

    Raises:
        OSError: the disk does not take them.
    """
    for file in sorted({file for file, _ in missing}):
        path = staging / files[file].sha256
        found = good_frames(path, files[file], {frame for each, frame in missing if each == file})
        if found:
            # Whoever brought them may have been killed before they were on the disk.
            sync_staged(handles[file], path)
        for frame in found:
            del missing[file, frame]


def copy_frames(
    layout: Layout, files: Sequence[FileEntry], staging: Path, handles: Mapping[int, int], missing: Frames
) -> int:
    """Make missing frames of what objects of the store have under the same hash, and take them out of `missing`.

    An object that lost some bytes is such a source too: its other frames are good.

    Args:
        handles: open files that gather the frames, by the file's index.

    Returns:
        The bytes that were made. They are on disk.

    Raises:
        OSError: the disk does not take them.
    """
    if not missing:
        return 0
    places = _places(layout, files, missing)
    made = 0
    touched: set[int] = set()
    for (file, frame), sha in list(missing.items()):
        size = frame_length(files[file].size_bytes, frame)
        for place in places.get(sha, ()):
            data = _read(place, size)
            if data is not None and sha256_hex(data) == sha:
                _write(handles[file], data, frame * FRAME_BYTES)
                touched.add(file)
                del missing[file, frame]
                made += size
                break
    for file in sorted(touched):
        sync_staged(handles[file], staging / files[file].sha256)
    return made


def _places(layout: Layout, files: Sequence[FileEntry], missing: Frames) -> dict[str, list[_Place]]:
    out: dict[str, list[_Place]] = {sha: [] for sha in missing.values()}
    for (file, frame), sha in missing.items():
        out[sha].append(_Place(layout.object(files[file].sha256), frame * FRAME_BYTES))
    for entry in _stored(layout):
        for frame, sha in enumerate(entry.frames):
            if len(found := out.get(sha, [])) < _MAX_PLACES:
                found.append(_Place(layout.object(entry.sha256), frame * FRAME_BYTES))
    return out


def _stored(layout: Layout) -> Iterator[FileEntry]:
    """Files of all releases of the store whose manifests can be read."""
    for digest in release_digests(layout):
        with contextlib.suppress(AgentError):
            yield from read_release(layout, digest).files


def _read(place: _Place, size: int) -> bytes | None:
    # What cannot be read here is asked for instead.
    with contextlib.suppress(OSError), place.path.open("rb", buffering=0) as handle:
        data = os.pread(handle.fileno(), size, place.offset)
        return data if len(data) == size else None
    return None


def _write(handle: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written


def find_bases(
    layout: Layout, files: Sequence[FileEntry], missing: Frames, relatives: Sequence[tuple[FileEntry, ...]]
) -> dict[int, list[FileEntry]]:
    """Objects of the store that a file may be a variant of, the likest first: those of the same name, then large ones.

    Args:
        relatives: `Parcel.relatives`.
    """
    out: dict[int, list[FileEntry]] = {}
    for file in sorted({file for file, _ in missing}):
        own = files[file]
        candidates = [entry for entries in relatives for entry in entries if entry.sha256 != own.sha256]
        candidates.sort(key=lambda entry: (entry.name != own.name, abs(entry.size_bytes - own.size_bytes)))
        chosen: dict[str, FileEntry] = {}
        for entry in candidates:
            # A slice of it is to be worth something, and it is to be there.
            if 2 * entry.size_bytes >= own.size_bytes and layout.object(entry.sha256).is_file():
                chosen.setdefault(entry.sha256, entry)
            if len(chosen) == _MAX_BASES:
                break
        if chosen:
            out[file] = list(chosen.values())
    return out

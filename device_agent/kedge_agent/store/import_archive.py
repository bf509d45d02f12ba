"""Take a release from an archive on this device: by the rules of a push, without a host."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import BinaryIO

from ..errors import AgentError
from ..formats.archive import ArchiveError, ArchiveReader
from .accept import ReleaseParcel
from .files import exclusive_lock, fsync_directory, make_directory, translate_os_error
from .holdings import Frames, staged, sync_staged
from .layout import Layout
from .room import room_for
from .rules import ReleaseRules

__all__ = ["import_archive"]


def import_archive(layout: Layout, source: BinaryIO, rules: ReleaseRules) -> str:
    """Accept the release of an archive; returns its digest. Nothing is activated.

    Args:
        source: read once, from its beginning to its end; a pipe will do.

    Raises:
        AgentError: it is no archive, a damaged one, or has anything after its end (integrity); what a push would be
            refused for.
    """
    try:
        archive = ArchiveReader(source)
        parcel = ReleaseParcel(layout, rules, archive.manifest_data, archive.offer)
        # Before anything is locked, and before a byte of it is stored. `accept` judges again.
        parcel.judge()
        with parcel.lock():
            staging = layout.staging(parcel.digest)
            make_directory(staging)
            busy = f"{parcel.label} is being pushed by somebody else"
            with exclusive_lock(staging / ".lock", busy), room_for(layout, rules, parcel, staging) as missing:
                _gather(archive, parcel, staging, missing)
                parcel.accept(staging)
    except ArchiveError as error:
        raise AgentError(f"import refused: {error}", kind="integrity", hint="get the archive again") from error
    except OSError as error:
        raise translate_os_error(error, "importing the release") from error
    return parcel.digest


def _gather(archive: ArchiveReader, parcel: ReleaseParcel, staging: Path, missing: Frames) -> None:
    """Read the archive to its end; what the store lacks lies in the staging folder then, on disk."""
    wanted = {parcel.files[file].sha256 for file, _ in missing}
    with contextlib.ExitStack() as stack:
        # All of them are reserved before the first byte is read.
        handles = {
            entry.sha256: stack.enter_context(staged(staging / entry.sha256, entry))
            for entry in archive.files
            if entry.sha256 in wanted
        }
        fsync_directory(staging)
        for entry in archive.files:
            handle = handles.get(entry.sha256)
            if handle is None:
                # It is in the store; what the archive has of it is read all the same, to its last byte.
                archive.copy(len)
                continue
            with os.fdopen(os.dup(handle), "wb") as out:
                archive.copy(out.write)
            sync_staged(handle, staging / entry.sha256)
    archive.end()

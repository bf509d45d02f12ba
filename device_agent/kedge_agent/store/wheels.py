"""Unpack a wheel into a folder on `sys.path`, where there is no pip.

`kedge.deploy.bootstrap` does the same on a device that has no agent yet, and cannot share this code; a test holds both
to the same wheels.
"""

from __future__ import annotations

import shutil
import stat
from pathlib import Path, PurePosixPath
from struct import error as StructError  # noqa: N812
from typing import TYPE_CHECKING

from ..errors import AgentError

if TYPE_CHECKING:
    from zipfile import ZipInfo

__all__ = ["unpack_wheel", "unpacked_bytes"]

_CHUNK_BYTES = 1 << 20
_MAX_ENTRIES = 100_000
_MAX_NAME_BYTES = 255


def unpacked_bytes(wheel: Path) -> int:
    """Bytes that its files take.

    Raises:
        AgentError: it is no wheel (bad_input).
    """
    return sum(entry.file_size for entry in _entries(wheel))


def unpack_wheel(wheel: Path, site: Path) -> None:
    """Lay a wheel's modules down in `site`; scripts and headers are left out.

    Raises:
        AgentError: it is no wheel, or holds a path that leads elsewhere (bad_input).
        OSError: as the file system says.
    """
    from zipfile import ZipFile

    entries = _entries(wheel)
    try:
        with ZipFile(wheel) as archive:
            for entry in entries:
                parts = _parts(wheel, entry)
                if parts is None:
                    continue
                target = site.joinpath(*parts)
                if entry.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, target.open("wb") as out:
                    shutil.copyfileobj(source, out, _CHUNK_BYTES)
    except _broken() as error:
        raise AgentError(f"{wheel.name} cannot be unpacked: {error}") from error


def _entries(wheel: Path) -> list[ZipInfo]:
    from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

    try:
        with ZipFile(wheel) as archive:
            entries = archive.infolist()
    except _broken() as error:
        raise AgentError(f"{wheel.name} is no wheel: {error}") from error
    if len(entries) > _MAX_ENTRIES:
        raise AgentError(f"{wheel.name} holds more than {_MAX_ENTRIES} files")
    if any(entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED) for entry in entries):
        raise AgentError(f"{wheel.name} is compressed otherwise than wheels are")
    return entries


def _broken() -> tuple[type[Exception], ...]:
    """What reading and laying down raises of bytes that are no wheel's: RuntimeError where one is encrypted."""
    from zipfile import BadZipFile
    from zlib import error

    names = (FileExistsError, IsADirectoryError, NotADirectoryError)
    return (BadZipFile, RuntimeError, EOFError, ValueError, error, StructError, *names)


def _parts(wheel: Path, entry: ZipInfo) -> tuple[str, ...] | None:
    """Where an entry goes, below `site`; None: nowhere."""
    parts = PurePosixPath(entry.filename).parts
    too_long = any(len(part.encode()) > _MAX_NAME_BYTES for part in parts)
    if too_long or entry.filename.startswith("/") or ".." in parts or stat.S_ISLNK(entry.external_attr >> 16):
        raise AgentError(f"{wheel.name} holds the path {entry.filename[:200]!r}")
    if parts and parts[0].endswith(".data"):
        return parts[2:] if len(parts) > 2 and parts[1] in ("purelib", "platlib") else None
    return parts

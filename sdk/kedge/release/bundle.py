"""Write a release folder, open one, prove that every byte is what the manifest names."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kedge_agent.formats.frames import hash_file
from kedge_agent.formats.manifest import (
    MANIFEST_NAME,
    PACKED,
    Artefact,
    FileEntry,
    Manifest,
    ManifestError,
    manifest_bytes,
    parse_manifest,
)
from kedge_agent.formats.offer import MAX_SIGNATURES_BYTES, Offer, Signed
from kedge_agent.wire import MAX_JSON_BYTES, MAX_MANIFEST_BYTES

from ..errors import BadInputError, IntegrityError, KedgeError
from .offers import merged

__all__ = [
    "ATTESTATION",
    "BASE",
    "DOWNGRADE",
    "SIDE_FILES",
    "Release",
    "add_offer",
    "open_release",
    "write_offer",
    "write_release",
    "write_side",
]

BASE = "base.json"
ATTESTATION = "attestation.json"
DOWNGRADE = "downgrade.json"
_DOCUMENTS = (BASE, ATTESTATION, DOWNGRADE)
SIDE_FILES = frozenset(name + end for name in (MANIFEST_NAME, *_DOCUMENTS) for end in ("", ".sig")) - {MANIFEST_NAME}
"""What may lie beside a release's files and is none of them: signatures, and statements that are signed themselves."""
# One of those on its way, or left by a process that died meanwhile.
_PARTIAL = re.compile(r"\.(.+)\.[0-9a-f]{32}\.partial")


@dataclass(frozen=True)
class Release:
    """A release folder: its parsed manifest, and the manifest's very bytes."""

    folder: Path
    manifest: Manifest
    manifest_bytes: bytes

    @property
    def digest(self) -> str:
        """The release's name."""
        return self.manifest.digest

    def files(self) -> list[tuple[FileEntry, Path]]:
        """Entries in manifest order, each with its path here."""
        return [(entry, self.folder / entry.name) for entry in self.manifest.files]

    def verify(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Hash every file and compare with the manifest.

        Raises:
            IntegrityError: a file is missing, has other bytes, or does not belong here.
        """
        if stray := sorted(_stray(self)):
            raise IntegrityError(
                f"{self.folder} holds files the manifest does not name: {', '.join(stray[:5])}",
                hint="move them elsewhere",
            )
        done = 0
        for entry, path in self.files():
            try:
                found = hash_file(path)
            except OSError as error:
                raise IntegrityError(
                    f"{path} cannot be read: {error.strerror}", hint="build the release again"
                ) from error
            if (found.sha256, found.frames) != (entry.sha256, entry.frames):
                raise IntegrityError(f"{path} has other bytes than the manifest names", hint="build the release again")
            done += entry.size_bytes
            progress(done, self.manifest.total_bytes)

    @property
    def signatures(self) -> bytes:
        """Armoured signatures of the manifest, one after another; empty where there are none.

        Raises:
            IntegrityError: they cannot be read.
        """
        return _read_side(self.folder / f"{MANIFEST_NAME}.sig", MAX_SIGNATURES_BYTES) or b""

    def offer(self) -> Offer:
        """What goes with the release to a device: its signatures and the statements that lie beside it.

        Raises:
            IntegrityError: one of them cannot be read.
        """
        with _locked(self.folder, fcntl.LOCK_SH):
            return _read_offer(self.folder)

    def model_bytes(self, artefact: Artefact) -> int:
        """Size of an artefact as it is loaded; of a packed one its header says it.

        Raises:
            IntegrityError: the file is not what its artefact says.
        """
        if artefact.encoding != PACKED:
            return self.manifest.file(artefact.file).size_bytes
        from kedge_agent.formats.packed import PackedError, read_info

        path = self.folder / artefact.file
        try:
            return read_info(path).original_bytes
        except (OSError, PackedError) as error:
            raise _not_packed(path, error) from error

    def prove_unpacking(self) -> None:
        """Unpack every packed artefact, and throw the result away.

        Raises:
            IntegrityError: one does not rebuild what its header names.
        """
        from kedge_agent.formats.packed import PackedError, unpack_into

        for artefact in self.manifest.artefacts:
            if artefact.encoding == PACKED:
                path = self.folder / artefact.file
                try:
                    unpack_into(path.read_bytes(), len)
                except (OSError, PackedError) as error:
                    raise _not_packed(path, error) from error


@contextlib.contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    """What lies beside a release is several files: who reads them sees all that another has written, or nothing."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # there are network file systems that lock no folders
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, how)
        yield


def _read_offer(folder: Path) -> Offer:
    def signed(name: str) -> Signed | None:
        document = _read_side(folder / name, MAX_JSON_BYTES)
        if document is None:
            return None
        return Signed(document, _read_side(folder / f"{name}.sig", MAX_SIGNATURES_BYTES) or b"")

    return Offer(
        signatures=_read_side(folder / f"{MANIFEST_NAME}.sig", MAX_SIGNATURES_BYTES) or b"",
        base=signed(BASE),
        attestation=signed(ATTESTATION),
        downgrade=signed(DOWNGRADE),
    )


def _read_side(path: Path, limit: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
        data.decode("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}", hint="remove it, or make it again") from error
    if len(data) > limit:
        raise IntegrityError(f"{path} has more than {limit} bytes", hint="remove it, or make it again")
    if path.suffix == ".sig" and not data.isascii():
        raise IntegrityError(f"{path} holds no signatures", hint="remove it, and sign again: kedge release sign")
    return data


def write_side(folder: Path, name: str, signed: Signed) -> None:
    """Put a document and its signatures beside a release; what was there under this name is replaced.

    Args:
        name: one of BASE, ATTESTATION, DOWNGRADE; or the manifest's, of which the signatures alone are written.

    Raises:
        BadInputError: the folder cannot be written.
    """
    with _locked(folder, fcntl.LOCK_EX):
        _write_side(folder, name, signed)


def _write_side(folder: Path, name: str, signed: Signed) -> None:
    if name != MANIFEST_NAME:
        _replace(folder / name, signed.document)
    if signed.signatures:
        _replace(folder / f"{name}.sig", signed.signatures)
    else:
        (folder / f"{name}.sig").unlink(missing_ok=True)


def write_offer(folder: Path, offer: Offer) -> None:
    """Put all that came with a release beside it: the inverse of `Release.offer`. Raises as `write_side`."""
    with _locked(folder, fcntl.LOCK_EX):
        _write_offer(folder, offer)


def add_offer(folder: Path, offer: Offer) -> None:
    """Put what came with a release to what lies beside it; none of the signatures there is lost.

    Raises:
        IntegrityError: what lies there cannot be read. BadInputError: as `write_side`.
    """
    with _locked(folder, fcntl.LOCK_EX):
        there = _read_offer(folder)
        if (both := merged(there, offer)) != there:
            _write_offer(folder, both)


def _write_offer(folder: Path, offer: Offer) -> None:
    _write_side(folder, MANIFEST_NAME, Signed(b"", offer.signatures))
    for name, statement in ((BASE, offer.base), (ATTESTATION, offer.attestation), (DOWNGRADE, offer.downgrade)):
        if statement is not None:
            _write_side(folder, name, statement)


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise BadInputError(f"{path} cannot be written: {error.strerror}") from error


def _not_packed(path: Path, error: Exception) -> IntegrityError:
    return IntegrityError(f"{path} cannot be unpacked: {error}", hint="build the release again")


def open_release(folder: Path) -> Release:
    """Read a release folder's manifest; the files are not hashed yet.

    Raises:
        BadInputError: there is no release there.
        IntegrityError: its manifest is damaged, or a file has another size.
    """
    path = folder / MANIFEST_NAME
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise IntegrityError(f"{path} is too long for a manifest")
        data = path.read_bytes()
    except OSError as error:
        hint = "an archive is unpacked by kedge release import" if folder.is_file() else "make one: kedge build"
        raise BadInputError(f"{folder} is not a release: {MANIFEST_NAME}: {error.strerror}", hint=hint) from error
    try:
        release = Release(folder, parse_manifest(data), data)
    except ManifestError as error:
        raise IntegrityError(f"{path}: {error}", hint="build the release again") from error
    for entry, file in release.files():
        size = file.stat().st_size if file.is_file() else None
        if size != entry.size_bytes:
            found = "is missing" if size is None else f"has {size} bytes"
            raise IntegrityError(f"{file} {found}; the manifest names {entry.size_bytes} bytes", hint="build it again")
    return release


def _is_release(folder: Path) -> bool:
    """Whether a folder holds a release and nothing else, so that replacing it loses nothing."""
    try:
        release = open_release(folder)
    except KedgeError:
        return False
    return not _stray(release)


def _stray(release: Release) -> set[str]:
    """Names of what lies in its folder and is neither a file of the release nor beside it."""
    expected = {entry.name for entry in release.manifest.files} | {MANIFEST_NAME} | SIDE_FILES
    names = set(os.listdir(release.folder)) - expected
    return {name for name in names if not ((found := _PARTIAL.fullmatch(name)) and found[1] in SIDE_FILES)}


def write_release(folder: Path, sources: Mapping[str, Path | bytes], body: Mapping[str, Any]) -> Release:
    """Write a release folder in one step: it is there whole, or not at all.

    Args:
        folder: must not exist, or be a release (which is then replaced).
        sources: content of each file by its name in the release.
        body: the manifest without `files`, which is made from the sources.

    Raises:
        BadInputError: the folder exists and is no release, or the body is no valid manifest.
    """
    if folder.exists() and not _is_release(folder):
        raise BadInputError(f"{folder} exists and is not a whole release", hint="give another path with -o")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        entries = []
        for name, source in sources.items():
            path = partial / name
            if isinstance(source, bytes):
                path.write_bytes(source)
            else:
                shutil.copyfile(source, path)
            found = hash_file(path)
            entries.append(
                {"name": name, "bytes": found.size_bytes, "sha256": found.sha256, "frames": list(found.frames)}
            )
        try:
            data = manifest_bytes({**body, "files": entries})
        except ManifestError as error:
            raise BadInputError(f"the release cannot be described: {error}") from error
        (partial / MANIFEST_NAME).write_bytes(data)
        partial.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return open_release(folder)

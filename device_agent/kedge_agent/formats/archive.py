"""A release in one file, `.kedge`: what is offered with it, its manifest, and its files one after another.

    magic, 8 bytes "KEDGEREL" | version u32 | length of the offer u32 | length of the manifest u32   (big-endian)
    the manifest's sha256, 32 bytes
    offer, as a push sends it | manifest | files in the manifest's order, each content once

Nothing follows. The lengths of the files are the manifest's; there are no names beside the manifest's, no padding, no
compression, and nothing to seek for: an archive is read from a pipe as well as from a disk, in bounded memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ..wire import MAX_JSON_BYTES, MAX_MANIFEST_BYTES
from .digests import sha256, sha256_hex
from .manifest import FileEntry, Manifest, ManifestError, parse_manifest
from .offer import RELEASE, Offer, offer_bytes, parse_offer

__all__ = ["ARCHIVE_MAGIC", "ArchiveError", "ArchiveReader", "distinct_files", "write_archive"]

ARCHIVE_MAGIC = b"KEDGEREL"
_VERSION = 1
_HEADER = struct.Struct(">8sIII32s")
_PIECE_BYTES = 1 << 20


class ArchiveError(Exception):
    """This is no archive, or a damaged one; the message says where."""


def distinct_files(manifest: Manifest) -> tuple[FileEntry, ...]:
    """The files of a release whose bytes an archive holds, in its order: the first of each content."""
    first: dict[str, FileEntry] = {}
    for entry in manifest.files:
        first.setdefault(entry.sha256, entry)
    return tuple(first.values())


def write_archive(out: BinaryIO, offer: Offer, manifest_data: bytes, path_of: Callable[[FileEntry], Path]) -> int:
    """Write an archive; returns its size in bytes.

    Args:
        path_of: where the bytes of a file lie.

    Raises:
        ArchiveError: a file is not what the manifest names.
        ManifestError: the manifest is none.
        OSError: something cannot be read or written.
    """
    manifest = parse_manifest(manifest_data)
    head = offer_bytes(offer)
    digest = bytes.fromhex(manifest.digest)
    out.write(_HEADER.pack(ARCHIVE_MAGIC, _VERSION, len(head), len(manifest_data), digest) + head + manifest_data)
    size = _HEADER.size + len(head) + len(manifest_data)
    for entry in distinct_files(manifest):
        with path_of(entry).open("rb") as source:
            _copy(source, entry, out.write)
            if source.read(1):
                raise ArchiveError(f"{entry.name} is longer than the manifest names")
        size += entry.size_bytes
    return size


class ArchiveReader:
    """Reads an archive from its beginning to its end, once: `copy` for each of `files`, in their order, then `end`.

    offer, manifest, manifest_data: what it begins with; checked for their form, not for who signed them.
    """

    def __init__(self, source: BinaryIO) -> None:
        """Read the head.

        Raises:
            ArchiveError: it is no archive, or ends too early.
            OSError: it cannot be read.
        """
        self._source = source
        header = _HEADER.unpack(_exactly(source, _HEADER.size, "its header"))
        magic, version, offer_length, manifest_length, digest = header
        if magic != ARCHIVE_MAGIC:
            raise ArchiveError("this is no archive of a release")
        if version != _VERSION:
            raise ArchiveError(f"the archive has version {version}; this version reads {_VERSION}")
        if offer_length > MAX_JSON_BYTES or manifest_length > MAX_MANIFEST_BYTES:
            raise ArchiveError("the archive announces an offer or a manifest that is too long")
        offer = _exactly(source, offer_length, "its offer")
        self.manifest_data = _exactly(source, manifest_length, "its manifest")
        if sha256_hex(self.manifest_data) != digest.hex():
            raise ArchiveError("the archive's manifest is not the one that its header names")
        try:
            self.offer: Offer = parse_offer(offer)
            self.manifest: Manifest = parse_manifest(self.manifest_data)
        except ManifestError as error:
            raise ArchiveError(str(error)) from error
        if self.offer.kind != RELEASE:
            raise ArchiveError(f"the archive holds no release but an {self.offer.kind}")
        self.files = distinct_files(self.manifest)
        self._left = list(self.files)

    def copy(self, write: Callable[[memoryview], object]) -> FileEntry:
        """Pass on the bytes of the next of `files`, in pieces; when this returns, they are those that were named.

        Raises:
            ArchiveError: they are not, or the archive ends.
            OSError: it cannot be read, or `write` fails.
        """
        entry = self._left.pop(0)
        _copy(self._source, entry, write)
        return entry

    def end(self) -> None:
        """Make sure that nothing follows.

        Raises:
            ArchiveError: something does, or files are left.
        """
        if self._left:
            raise ArchiveError(f"{len(self._left)} files of the archive were not read")
        if self._source.read(1):
            raise ArchiveError("something follows the end of the archive")


def _exactly(source: BinaryIO, length: int, what: str) -> bytes:
    data = bytearray()
    while len(data) < length:
        piece = source.read(min(length - len(data), _PIECE_BYTES))
        if not piece:
            raise ArchiveError(f"the archive ends within {what}")
        data += piece
    return bytes(data)


def _copy(source: BinaryIO, entry: FileEntry, write: Callable[[memoryview], object]) -> None:
    whole = sha256()
    left = entry.size_bytes
    while left:
        piece = source.read(min(left, _PIECE_BYTES))
        if not piece:
            raise ArchiveError(f"{entry.name} ends {left} bytes too early")
        whole.update(piece)
        write(memoryview(piece))
        left -= len(piece)
    if whole.hexdigest() != entry.sha256:
        raise ArchiveError(f"{entry.name} has other bytes than the manifest names")

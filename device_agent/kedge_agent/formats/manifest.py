"""The release manifest: the one document that names every byte of a release.

Its own sha256 is the release's name, so the very bytes that were received are hashed, stored and
parsed; it is never re-serialised on the device. It holds no floating-point numbers (limits travel
as decimal strings), no duplicate keys and no unknown keys. `docs/release-format.md` states it
for people.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..wire import MAX_MANIFEST_BYTES, WireError, parse_json
from .artefact import (
    FILE_NAME,
    MAX_FILE_BYTES,
    MAX_TENSORS,
    MODEL_NAME,
    PACKED,
    RAW,
    Artefact,
    read_artefact,
    read_shape,
)
from .digests import sha256_hex
from .frames import frame_count
from .gates import Gates, read_gates
from .reader import ManifestError, Reader
from .tensor_spec import BYTES, ITEM_BYTES, tensor_bytes

__all__ = [
    "MANIFEST_NAME",
    "PACKED",
    "RAW",
    "RESERVED_NAMES",
    "SCHEMA",
    "Artefact",
    "FileEntry",
    "Golden",
    "GoldenTensor",
    "Manifest",
    "ManifestError",
    "is_digest",
    "is_model_name",
    "manifest_bytes",
    "parse_manifest",
    "read_file",
]

SCHEMA = 1
MANIFEST_NAME = "manifest.json"

_BESIDE = ("manifest.json", "base.json", "attestation.json", "downgrade.json", "accepted.json", "offer.json")
RESERVED_NAMES = frozenset(name + end for name in _BESIDE for end in ("", ".sig"))
"""What lies beside a release's files, on a host or a device: no file of it may be called so."""

_MAX_FILES = 4096
_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_digest(text: str) -> bool:
    """Whether text is a lower-case hexadecimal sha256."""
    return _DIGEST.fullmatch(text) is not None


def is_model_name(text: str) -> bool:
    """Whether text may name a model: it becomes a folder name and a URL segment."""
    return MODEL_NAME.fullmatch(text) is not None


@dataclass(frozen=True)
class FileEntry:
    """One file of the release: flat name, size, sha256 of the whole and of each 8 MiB frame."""

    name: str
    size_bytes: int
    sha256: str
    frames: tuple[str, ...]


@dataclass(frozen=True)
class GoldenTensor:
    """A recorded tensor: in `file`, raw little-endian bytes in C order; strings as `formats.strings` encodes them."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    file: str


@dataclass(frozen=True)
class Golden:
    """Inputs, and the outputs the host computed for them with this release's own artefact."""

    inputs: tuple[GoldenTensor, ...]
    outputs: tuple[GoldenTensor, ...]


@dataclass(frozen=True)
class Manifest:
    """A parsed manifest. `digest` is the release's name."""

    digest: str
    model: str
    version: int
    target: str
    platform_os: str
    platform_arch: str
    files: tuple[FileEntry, ...]
    artefacts: tuple[Artefact, ...]
    golden: Golden
    gates: Gates
    provenance: Mapping[str, Any]

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(entry.size_bytes for entry in self.files)

    def file(self, name: str) -> FileEntry:
        """The entry of a file by its name (the parser has checked that every reference exists)."""
        return next(entry for entry in self.files if entry.name == name)


def read_file(
    reader: Reader, names: re.Pattern[str] = FILE_NAME, least_bytes: int = 0, most_bytes: int = MAX_FILE_BYTES
) -> FileEntry:
    """The entry of a file whose name `names` allows.

    Raises:
        ManifestError: it is none.
    """
    name = reader.text("name", names.fullmatch)
    size = reader.integer("bytes", least_bytes, most_bytes)
    sha256 = reader.text("sha256", is_digest)
    frames = reader.items("frames", frame_count(size), least=frame_count(size))
    if not all(isinstance(frame, str) and is_digest(frame) for frame in frames):
        raise ManifestError(f"{reader.path}.frames holds something that is not a sha256")
    reader.done()
    return FileEntry(name, size, sha256, tuple(frames))


def _golden_tensor(reader: Reader, sizes: Mapping[str, int]) -> GoldenTensor:
    tensor = GoldenTensor(
        name=reader.text("name"),
        datatype=reader.text("datatype", (*ITEM_BYTES, BYTES).__contains__),
        shape=read_shape(reader, 0),
        file=reader.text("file", sizes.__contains__),
    )
    # How many bytes strings take, the shape does not tell: whoever decodes them checks it.
    expected = sizes[tensor.file] if tensor.datatype == BYTES else tensor_bytes(tensor.datatype, tensor.shape)
    if sizes[tensor.file] != expected:
        raise ManifestError(
            f"{reader.path}: {tensor.file} holds {sizes[tensor.file]} bytes, its shape needs {expected}"
        )
    reader.done()
    return tensor


def _golden(reader: Reader, sizes: Mapping[str, int]) -> Golden:
    golden = Golden(
        inputs=tuple(_golden_tensor(item, sizes) for item in reader.objects("inputs", MAX_TENSORS, least=1)),
        outputs=tuple(_golden_tensor(item, sizes) for item in reader.objects("outputs", MAX_TENSORS, least=1)),
    )
    reader.done()
    return golden


def _require_distinct(where: str, names: list[str]) -> None:
    if len(set(names)) != len(names):
        raise ManifestError(f"{where} names a tensor twice")


def parse_manifest(data: bytes | bytearray | memoryview) -> Manifest:
    """Parse and check a manifest; the digest is of exactly these bytes.

    Raises:
        ManifestError: anything about it is not as `docs/release-format.md` says.
    """
    try:
        body = parse_json(data, limit=MAX_MANIFEST_BYTES)
    except WireError as error:
        raise ManifestError(str(error)) from error
    root = Reader(body, "manifest")
    schema = root.integer("kedge", 0, 1 << 31)
    if schema != SCHEMA:
        raise ManifestError(f"manifest schema is {schema}, this version reads {SCHEMA}")
    files = tuple(read_file(item) for item in root.objects("files", _MAX_FILES, least=1))
    sizes = {entry.name: entry.size_bytes for entry in files}
    if len(sizes) != len(files) or RESERVED_NAMES & sizes.keys():
        raise ManifestError(f"manifest.files names a file twice, or one of: {', '.join(sorted(RESERVED_NAMES))}")
    if len({(entry.sha256, entry.size_bytes, entry.frames) for entry in files}) != len({f.sha256 for f in files}):
        raise ManifestError("manifest.files states one sha256 with different sizes or frames")
    platform = root.child("platform")
    manifest = Manifest(
        digest=sha256_hex(data),
        model=root.text("model", is_model_name),
        version=root.integer("version", 1, 1 << 53),
        target=root.text("target", FILE_NAME.fullmatch),
        platform_os=platform.text("os"),
        platform_arch=platform.text("arch"),
        files=files,
        artefacts=tuple(read_artefact(item) for item in root.objects("artefacts", 16, least=1)),
        golden=_golden(root.child("golden"), sizes),
        gates=read_gates(root.child("gates")),
        provenance=root.take("provenance", dict),
    )
    platform.done()
    root.done()
    for tensors in (manifest.golden.inputs, manifest.golden.outputs):
        _require_distinct("golden", [tensor.name for tensor in tensors])
    unknown = manifest.gates.parity.outputs.keys() - {tensor.name for tensor in manifest.golden.outputs}
    if unknown:
        raise ManifestError(f"manifest.gates.parity.outputs names no golden output: {', '.join(sorted(unknown))[:200]}")
    for artefact in manifest.artefacts:
        _require_distinct(artefact.runtime, [spec.name for spec in artefact.inputs])
        _require_distinct(artefact.runtime, [spec.name for spec in artefact.outputs])
        if artefact.file not in sizes:
            raise ManifestError(f"artefact for {artefact.runtime} names a missing file: {artefact.file}")
    return manifest


def manifest_bytes(body: Mapping[str, Any]) -> bytes:
    """Serialise a manifest body, deterministically, and prove that it parses.

    Raises:
        ManifestError: the body is not a valid manifest.
    """
    data = json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    parse_manifest(data)
    return data

"""The release manifest: the one document that names every byte of a release.

Its own sha256 is the release's name, so the very bytes that were received are hashed, stored and
parsed; it is never re-serialised on the device. It holds no floating-point numbers (limits travel
as decimal strings), no duplicate keys and no unknown keys. `docs/release-format.md` states it
for people.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar

from ..wire import MAX_MANIFEST_BYTES, WireError, parse_json
from .frames import frame_count
from .tensors import DATATYPES, TensorSpec, tensor_bytes

__all__ = [
    "MANIFEST_NAME",
    "PACKED",
    "RAW",
    "SCHEMA",
    "Artefact",
    "FileEntry",
    "Golden",
    "GoldenTensor",
    "Manifest",
    "ManifestError",
    "ParityGate",
    "is_digest",
    "is_model_name",
    "manifest_bytes",
    "parse_manifest",
]

SCHEMA = 1
MANIFEST_NAME = "manifest.json"

RAW = "raw"
PACKED = "packed"

_MAX_FILES = 4096
_MAX_FILE_BYTES = 1 << 40
_MAX_TENSORS = 256
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_FILE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")

T = TypeVar("T")


class ManifestError(Exception):
    """The manifest is malformed; the message says where."""


def is_digest(text: str) -> bool:
    """Whether text is a lower-case hexadecimal sha256."""
    return _DIGEST.fullmatch(text) is not None


def is_model_name(text: str) -> bool:
    """Whether text may name a model: it becomes a folder name and a URL segment."""
    return _MODEL_NAME.fullmatch(text) is not None


@dataclass(frozen=True)
class FileEntry:
    """One file of the release: flat name, size, sha256 of the whole and of each 8 MiB frame."""

    name: str
    size_bytes: int
    sha256: str
    frames: tuple[str, ...]


@dataclass(frozen=True)
class Artefact:
    """One runnable form of the model, for one runtime.

    encoding: RAW, the file is what is loaded; or PACKED, it must be unpacked first (`formats.packed`).
    """

    runtime: str
    file: str
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    encoding: str = RAW


@dataclass(frozen=True)
class GoldenTensor:
    """A recorded tensor: raw little-endian bytes in `file`, C order."""

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
class ParityGate:
    """Limits for the device's outputs against the golden ones.

    cosine_min: cosine similarity of each flattened output, at least.
    relative_error_max: max |device - golden| / max |golden| of each output, at most.
    """

    cosine_min: float
    relative_error_max: float


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
    parity: ParityGate
    provenance: Mapping[str, Any]

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(entry.size_bytes for entry in self.files)

    def file(self, name: str) -> FileEntry:
        """The entry of a file by its name (the parser has checked that every reference exists)."""
        return next(entry for entry in self.files if entry.name == name)


class _Reader:
    """A JSON object with a path for messages; every key must be taken, none may be left over."""

    def __init__(self, value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise ManifestError(f"{path} is not an object")
        self._left = dict(value)
        self.path = path

    def take(self, key: str, kind: type[T]) -> T:
        if key not in self._left:
            raise ManifestError(f"{self.path}.{key} is missing")
        value = self._left.pop(key)
        if type(value) is not kind:
            raise ManifestError(f"{self.path}.{key} is not {kind.__name__}")
        return value

    def text(self, key: str, allowed: Callable[[str], object] | None = None, limit: int = 256) -> str:
        value = self.take(key, str)
        if len(value) > limit or (allowed is not None and not allowed(value)):
            raise ManifestError(f"{self.path}.{key} is not acceptable: {value[:80]!r}")
        return value

    def option(self, key: str, absent: str, allowed: tuple[str, ...]) -> str:
        # What is absent may not be written too: one content, one manifest, one digest.
        return self.text(key, allowed.__contains__) if key in self._left else absent

    def integer(self, key: str, low: int, high: int) -> int:
        value = self.take(key, int)
        if not low <= value <= high:
            raise ManifestError(f"{self.path}.{key} is outside {low}..{high}: {value}")
        return value

    def decimal(self, key: str, low: float, high: float) -> float:
        value = self.text(key, limit=40)
        try:
            number = Decimal(value)
        except InvalidOperation:
            raise ManifestError(f"{self.path}.{key} is not a decimal number: {value!r}") from None
        if not number.is_finite() or not low <= float(number) <= high:
            raise ManifestError(f"{self.path}.{key} is outside {low:g}..{high:g}: {value}")
        return float(number)

    def items(self, key: str, limit: int, *, least: int = 0) -> list[Any]:
        value: list[Any] = self.take(key, list)
        if not least <= len(value) <= limit:
            raise ManifestError(f"{self.path}.{key} has {len(value)} entries, allowed {least}..{limit}")
        return value

    def objects(self, key: str, limit: int, *, least: int = 0) -> list[_Reader]:
        return [
            _Reader(value, f"{self.path}.{key}[{i}]") for i, value in enumerate(self.items(key, limit, least=least))
        ]

    def child(self, key: str) -> _Reader:
        return _Reader(self.take(key, dict), f"{self.path}.{key}")

    def done(self) -> None:
        if self._left:
            raise ManifestError(f"{self.path} has unknown keys: {', '.join(sorted(self._left))[:200]}")


def _file(reader: _Reader) -> FileEntry:
    name = reader.text("name", _FILE_NAME.fullmatch)
    size = reader.integer("bytes", 0, _MAX_FILE_BYTES)
    sha256 = reader.text("sha256", is_digest)
    frames = reader.items("frames", frame_count(size), least=frame_count(size))
    if not all(isinstance(frame, str) and is_digest(frame) for frame in frames):
        raise ManifestError(f"{reader.path}.frames holds something that is not a sha256")
    reader.done()
    return FileEntry(name, size, sha256, tuple(frames))


def _shape(reader: _Reader, low: int) -> tuple[int, ...]:
    shape = reader.items("shape", 16)
    if not all(type(dim) is int and low <= dim <= _MAX_FILE_BYTES for dim in shape):
        raise ManifestError(f"{reader.path}.shape is not a list of sizes")
    return tuple(shape)


def _tensor_spec(reader: _Reader) -> TensorSpec:
    name = reader.text("name")
    datatype = reader.text("datatype", DATATYPES.__contains__)
    spec = TensorSpec(name, datatype, _shape(reader, -1))
    reader.done()
    return spec


def _artefact(reader: _Reader) -> Artefact:
    artefact = Artefact(
        runtime=reader.text("runtime", _MODEL_NAME.fullmatch),
        file=reader.text("file", _FILE_NAME.fullmatch),
        precision=reader.text("precision", _MODEL_NAME.fullmatch),
        inputs=tuple(_tensor_spec(item) for item in reader.objects("inputs", _MAX_TENSORS, least=1)),
        outputs=tuple(_tensor_spec(item) for item in reader.objects("outputs", _MAX_TENSORS, least=1)),
        encoding=reader.option("encoding", RAW, (PACKED,)),
    )
    reader.done()
    return artefact


def _golden_tensor(reader: _Reader, sizes: Mapping[str, int]) -> GoldenTensor:
    tensor = GoldenTensor(
        name=reader.text("name"),
        datatype=reader.text("datatype", DATATYPES.__contains__),
        shape=_shape(reader, 0),
        file=reader.text("file", sizes.__contains__),
    )
    expected = tensor_bytes(tensor.datatype, tensor.shape)
    if sizes[tensor.file] != expected:
        raise ManifestError(
            f"{reader.path}: {tensor.file} holds {sizes[tensor.file]} bytes, its shape needs {expected}"
        )
    reader.done()
    return tensor


def _golden(reader: _Reader, sizes: Mapping[str, int]) -> Golden:
    golden = Golden(
        inputs=tuple(_golden_tensor(item, sizes) for item in reader.objects("inputs", _MAX_TENSORS, least=1)),
        outputs=tuple(_golden_tensor(item, sizes) for item in reader.objects("outputs", _MAX_TENSORS, least=1)),
    )
    reader.done()
    return golden


def _require_distinct(where: str, names: list[str]) -> None:
    if len(set(names)) != len(names):
        raise ManifestError(f"{where} names a tensor twice")


def _gates(reader: _Reader) -> ParityGate:
    parity = reader.child("parity")
    gate = ParityGate(parity.decimal("cosine_min", -1, 1), parity.decimal("relative_error_max", 0, 1e6))
    parity.done()
    reader.done()
    return gate


def parse_manifest(data: bytes | bytearray | memoryview) -> Manifest:
    """Parse and check a manifest; the digest is of exactly these bytes.

    Raises:
        ManifestError: anything about it is not as `docs/release-format.md` says.
    """
    try:
        body = parse_json(data, limit=MAX_MANIFEST_BYTES)
    except WireError as error:
        raise ManifestError(str(error)) from error
    root = _Reader(body, "manifest")
    schema = root.integer("kedge", 0, 1 << 31)
    if schema != SCHEMA:
        raise ManifestError(f"manifest schema is {schema}, this version reads {SCHEMA}")
    files = tuple(_file(item) for item in root.objects("files", _MAX_FILES, least=1))
    sizes = {entry.name: entry.size_bytes for entry in files}
    if len(sizes) != len(files) or MANIFEST_NAME in sizes:
        raise ManifestError("manifest.files names a file twice, or the manifest itself")
    platform = root.child("platform")
    manifest = Manifest(
        digest=hashlib.sha256(data).hexdigest(),
        model=root.text("model", is_model_name),
        version=root.integer("version", 1, 1 << 53),
        target=root.text("target", _FILE_NAME.fullmatch),
        platform_os=platform.text("os"),
        platform_arch=platform.text("arch"),
        files=files,
        artefacts=tuple(_artefact(item) for item in root.objects("artefacts", 16, least=1)),
        golden=_golden(root.child("golden"), sizes),
        parity=_gates(root.child("gates")),
        provenance=root.take("provenance", dict),
    )
    platform.done()
    root.done()
    for tensors in (manifest.golden.inputs, manifest.golden.outputs):
        _require_distinct("golden", [tensor.name for tensor in tensors])
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

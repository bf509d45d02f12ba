"""One runnable form of a model in a release: a file, the runtime that takes it, and what it takes and gives."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .passport import Passport, PassportError, parse_passport
from .reader import ManifestError, Reader
from .tensors import DATATYPES, TensorSpec

__all__ = [
    "COMPILED",
    "FILE_NAME",
    "MAX_FILE_BYTES",
    "MAX_TENSORS",
    "MODEL_NAME",
    "PACKED",
    "RAW",
    "Artefact",
    "read_artefact",
    "read_shape",
]

RAW = "raw"
PACKED = "packed"
COMPILED = ("tensorrt", "tensorrt-rtx")
"""Runtimes that take engines, not ONNX."""

MAX_FILE_BYTES = 1 << 40
MAX_TENSORS = 256
MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
FILE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Artefact:
    """One runnable form of the model, for one runtime.

    encoding: RAW, the file is what is loaded; or PACKED, it must be unpacked first (`formats.packed`).
    build: the file is ONNX that a device has yet to compile, by this order (`engine.order`); None: it is not.
    passport: the file is an engine, and this is where it runs; None: it is none.
    """

    runtime: str
    file: str
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    encoding: str = RAW
    build: Mapping[str, Any] | None = None
    passport: Passport | None = None


def read_shape(reader: Reader, low: int) -> tuple[int, ...]:
    """A list of sizes, each at least `low`.

    Raises:
        ManifestError: it is none.
    """
    shape = reader.items("shape", 16)
    if not all(type(dim) is int and low <= dim <= MAX_FILE_BYTES for dim in shape):
        raise ManifestError(f"{reader.path}.shape is not a list of sizes")
    return tuple(shape)


def _tensor_spec(reader: Reader) -> TensorSpec:
    name = reader.text("name")
    datatype = reader.text("datatype", DATATYPES.__contains__)
    spec = TensorSpec(name, datatype, read_shape(reader, -1))
    reader.done()
    return spec


def read_artefact(reader: Reader) -> Artefact:
    """An artefact from a manifest.

    Raises:
        ManifestError: it is none.
    """
    artefact = Artefact(
        runtime=reader.text("runtime", MODEL_NAME.fullmatch),
        file=reader.text("file", FILE_NAME.fullmatch),
        precision=reader.text("precision", MODEL_NAME.fullmatch),
        inputs=tuple(_tensor_spec(item) for item in reader.objects("inputs", MAX_TENSORS, least=1)),
        outputs=tuple(_tensor_spec(item) for item in reader.objects("outputs", MAX_TENSORS, least=1)),
        encoding=reader.option("encoding", RAW, (PACKED,)),
        build=reader.take("build", dict) if "build" in reader else None,
        passport=_passport(reader),
    )
    reader.done()
    compiled = artefact.runtime in COMPILED
    if compiled != ((artefact.build is None) != (artefact.passport is None)):
        raise ManifestError(
            f"{reader.path}: {artefact.runtime} takes {'either build or passport' if compiled else 'neither of them'}"
        )
    if artefact.passport is not None and (artefact.passport.runtime != artefact.runtime or artefact.encoding != RAW):
        raise ManifestError(f"{reader.path}: the passport is not one of this artefact")
    return artefact


def _passport(reader: Reader) -> Passport | None:
    if "passport" not in reader:
        return None
    try:
        return parse_passport(reader.take("passport", dict))
    except PassportError as error:
        raise ManifestError(f"{reader.path}.passport: {error}") from error

"""One runnable form of a model in a release: a file, its runtime, what it takes and gives, and how it is served."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .passport import Passport, PassportError, parse_passport
from .reader import ManifestError, Reader
from .tensor_spec import BYTES, ITEM_BYTES, TensorSpec

__all__ = [
    "CALIBRATION_DATA",
    "COMPILED",
    "FILE_NAME",
    "MAX_FILE_BYTES",
    "MAX_TENSORS",
    "MODEL_NAME",
    "PACKED",
    "QUANTIZER",
    "RAW",
    "Artefact",
    "CalibratedRange",
    "Serving",
    "read_artefact",
    "read_calibrated",
    "read_serving",
    "read_shape",
]

RAW = "raw"
PACKED = "packed"
COMPILED = ("tensorrt", "tensorrt-rtx")
"""Runtimes that take engines, not ONNX."""

CALIBRATION_DATA = "calibration data"
QUANTIZER = "quantizer"
"""Where a calibrated range comes from: values that were observed, or what the input's first QuantizeLinear can hold."""

MAX_FILE_BYTES = 1 << 40
MAX_TENSORS = 256
MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
FILE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")

_MAX_THREADS = 1024
_MAX_PROVIDERS = 8
_MAX_OPTIONS = 32
_DATATYPES = (*ITEM_BYTES, BYTES)
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
# Numbers, words, and the shapes of TensorRT. No path: providers load libraries and write caches where options say, and
# where that is, is for the device to say.
_OPTION = re.compile(r"[A-Za-z0-9_.,:+-]{1,256}")


@dataclass(frozen=True)
class CalibratedRange:
    """The values of an input, as the model takes it, for which its accuracy was looked at; both ends belong to it.

    min, max: in the input's own unit, rounded to double precision. source: CALIBRATION_DATA or QUANTIZER.
    """

    min: float
    max: float
    source: str


@dataclass(frozen=True)
class Serving:
    """How onnxruntime is to run an artefact.

    threads: intra-operator threads; None: the device decides.
    providers: execution providers in order of preference, each with its options; empty: the CPU's alone.
    """

    threads: int | None = None
    providers: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As the manifest states it: what is empty is left out."""
        providers = [
            {"name": name, **({"options": dict(options)} if options else {})} for name, options in self.providers
        ]
        return {
            **({} if self.threads is None else {"threads": self.threads}),
            **({"providers": providers} if providers else {}),
        }


@dataclass(frozen=True)
class Artefact:
    """One runnable form of the model, for one runtime.

    encoding: RAW, the file is what is loaded; or PACKED, it must be unpacked first (`formats.packed`).
    build: the file is ONNX that a device has yet to compile, by this order (`engine.order`); None: it is not.
    passport: the file is an engine, and this is where it runs; None: it is none.
    calibrated: ranges of inputs by their names, where one is known. serving: None: as the device serves any other.
    """

    runtime: str
    file: str
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    encoding: str = RAW
    build: Mapping[str, Any] | None = None
    passport: Passport | None = None
    calibrated: Mapping[str, CalibratedRange] = field(default_factory=dict)
    serving: Serving | None = None


def read_shape(reader: Reader, low: int) -> tuple[int, ...]:
    """A list of sizes, each at least `low`.

    Raises:
        ManifestError: it is none.
    """
    shape = reader.items("shape", 16)
    if not all(type(dim) is int and low <= dim <= MAX_FILE_BYTES for dim in shape):
        raise ManifestError(f"{reader.path}.shape is not a list of sizes")
    return tuple(shape)


def read_calibrated(reader: Reader) -> CalibratedRange:
    """The calibrated range of an input.

    Raises:
        ManifestError: it is none.
    """
    most = sys.float_info.max
    found = CalibratedRange(
        reader.decimal("min", -most, most),
        reader.decimal("max", -most, most),
        reader.text("source", (CALIBRATION_DATA, QUANTIZER).__contains__),
    )
    reader.done()
    if found.min > found.max:
        raise ManifestError(f"{reader.path} goes from {found.min:g} down to {found.max:g}")
    return found


def read_serving(reader: Reader) -> Serving:
    """How an artefact is to be served.

    Raises:
        ManifestError: it does not say, or says what it may not.
    """
    serving = Serving(
        threads=reader.integer("threads", 1, _MAX_THREADS) if "threads" in reader else None,
        providers=tuple(_provider(item) for item in reader.objects("providers", _MAX_PROVIDERS, least=1))
        if "providers" in reader
        else (),
    )
    reader.done()
    names = {name for name, _ in serving.providers}
    if len(names) != len(serving.providers):
        raise ManifestError(f"{reader.path}.providers names one twice")
    # What says nothing may not be written: one content, one manifest, one digest.
    if serving == Serving():
        raise ManifestError(f"{reader.path} is empty")
    return serving


def _provider(reader: Reader) -> tuple[str, tuple[tuple[str, str], ...]]:
    name = reader.text("name", _IDENTIFIER.fullmatch)
    options = reader.take("options", dict) if "options" in reader else None
    reader.done()
    if options is None:
        return name, ()
    if not 0 < len(options) <= _MAX_OPTIONS:
        raise ManifestError(f"{reader.path}.options has {len(options)} entries, allowed 1..{_MAX_OPTIONS}")
    for key, value in options.items():
        if not _IDENTIFIER.fullmatch(key) or not isinstance(value, str) or not _OPTION.fullmatch(value):
            raise ManifestError(f"{reader.path}.options: {key[:80]!r} cannot be {str(value)[:80]!r}")
    return name, tuple(sorted(options.items()))


def _tensor_spec(reader: Reader) -> TensorSpec:
    name = reader.text("name")
    datatype = reader.text("datatype", _DATATYPES.__contains__)
    return TensorSpec(name, datatype, read_shape(reader, -1))


def _inputs(reader: Reader) -> tuple[tuple[TensorSpec, ...], dict[str, CalibratedRange]]:
    specs, calibrated = [], {}
    for item in reader.objects("inputs", MAX_TENSORS, least=1):
        spec = _tensor_spec(item)
        if "calibrated" in item:
            if spec.datatype == BYTES:
                raise ManifestError(f"{item.path} is of {BYTES}, which have no range")
            calibrated[spec.name] = read_calibrated(item.child("calibrated"))
        item.done()
        specs.append(spec)
    return tuple(specs), calibrated


def _output(reader: Reader) -> TensorSpec:
    spec = _tensor_spec(reader)
    reader.done()
    return spec


def read_artefact(reader: Reader) -> Artefact:
    """An artefact from a manifest.

    Raises:
        ManifestError: it is none.
    """
    inputs, calibrated = _inputs(reader)
    artefact = Artefact(
        runtime=reader.text("runtime", MODEL_NAME.fullmatch),
        file=reader.text("file", FILE_NAME.fullmatch),
        precision=reader.text("precision", MODEL_NAME.fullmatch),
        inputs=inputs,
        outputs=tuple(_output(item) for item in reader.objects("outputs", MAX_TENSORS, least=1)),
        encoding=reader.option("encoding", RAW, (PACKED,)),
        build=reader.take("build", dict) if "build" in reader else None,
        passport=_passport(reader),
        calibrated=calibrated,
        serving=read_serving(reader.child("serving")) if "serving" in reader else None,
    )
    reader.done()
    compiled = artefact.runtime in COMPILED
    if compiled != ((artefact.build is None) != (artefact.passport is None)):
        raise ManifestError(
            f"{reader.path}: {artefact.runtime} takes {'either build or passport' if compiled else 'neither of them'}"
        )
    if artefact.passport is not None and (artefact.passport.runtime != artefact.runtime or artefact.encoding != RAW):
        raise ManifestError(f"{reader.path}: the passport is not one of this artefact")
    if compiled and artefact.serving is not None:
        raise ManifestError(f"{reader.path}: {artefact.runtime} takes no serving, which is onnxruntime's")
    return artefact


def _passport(reader: Reader) -> Passport | None:
    if "passport" not in reader:
        return None
    try:
        return parse_passport(reader.take("passport", dict))
    except PassportError as error:
        raise ManifestError(f"{reader.path}.passport: {error}") from error

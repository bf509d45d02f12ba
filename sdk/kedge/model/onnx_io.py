"""Read an ONNX file and say what it takes and gives. The one module that reads ONNX files."""

from __future__ import annotations

import math
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedge_agent.formats.tensors import DYNAMIC, TensorSpec, datatype_of

from ..errors import BadInputError, IncompatibleError, first_line
from .notes import read_notes

if TYPE_CHECKING:
    import onnx

__all__ = [
    "ModelSpec",
    "model_spec",
    "read_model",
    "read_proto",
    "read_with_files",
    "require_float",
    "to_standard_error",
]

_MAX_ONNX_BYTES = 2**31 - 1
_MAX_EXTERNAL_FILES = 1 << 12
_OTHER_KINDS = (
    (
        0,
        b"PK\3\4",
        "a zip archive, as PyTorch saves",
        "give a .pt2 program or package.module:factory, or export to ONNX",
    ),
    (0, b"\x89HDF", "an HDF5 file, as Keras saves", "convert it with tf2onnx"),
    (4, b"TFL3", "a TensorFlow Lite file", "convert it with tf2onnx"),
    (0, b"\x80\x02", "a pickle, as PyTorch used to save", "give package.module:factory, or export to ONNX"),
)


@dataclass(frozen=True)
class ModelSpec:
    """What a model takes and gives, and the versions it was written in.

    is_quantized: it already holds quantised operators. notes: what kedge noted in it (kedge.model.notes).
    weights: what most of its weights are stored as: fp32, fp16, bf16, fp8 or int4.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    ir_version: int
    is_quantized: bool
    notes: Mapping[str, Any] = field(default_factory=dict)
    weights: str = "fp32"

    @property
    def precision(self) -> str:
        """The precision its name should carry: int8 or fp8 when quantised, else that of its weights or inputs."""
        if self.is_quantized:
            return "fp8" if self.weights == "fp8" else "int8"
        if self.weights == "fp32" and any(spec.datatype == "FP16" for spec in self.inputs):
            return "fp16"
        return self.weights


def read_model(path: Path) -> ModelSpec:
    """Read and check an ONNX file.

    Raises:
        BadInputError: the file is missing, is not ONNX, is newer than the installed onnx, or its weights
            lie in another file.
        IncompatibleError: a tensor has a type that is not served.
    """
    return model_spec(read_proto(path))


def read_proto(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file, as one message.

    Raises:
        BadInputError: as of `read_model`.
    """
    return _read(path, accept_files=False)[0]


def read_with_files(path: Path) -> tuple[onnx.ModelProto, tuple[Path, ...]]:
    """Read and check an ONNX file whose weights may lie in other files beside it.

    Returns:
        The model as one message, and the other files.

    Raises:
        BadInputError: as of `read_model`, but weights in other files are refused only when they are missing,
            too short, lie outside of the model's folder, or pass 2 GiB.
    """
    return _read(path, accept_files=True)


def _read(path: Path, *, accept_files: bool) -> tuple[onnx.ModelProto, tuple[Path, ...]]:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        size = path.stat().st_size
        if size > _MAX_ONNX_BYTES:
            raise BadInputError(
                f"{path} has {size} bytes; one ONNX file holds less than 2 GiB", hint="kedge takes models below 2 GiB"
            )
        model = onnx.load_model(path, load_external_data=False)
        _require_known_versions(path, model)
        files = _read_files(path, model, size, accepted=accept_files)
        with to_standard_error():
            onnx.checker.check_model(model)
    except OSError as error:
        raise BadInputError(
            f"{path} cannot be read: {error.strerror}", hint="give the path of an .onnx file"
        ) from error
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        kind, hint = _other_kind(path)
        raise BadInputError(
            f"{path} is not a valid ONNX model: {kind or first_line(error)}", hint=hint or "export it again"
        ) from error
    return model, files


@contextmanager
def to_standard_error() -> Iterator[None]:
    """What native code prints goes to standard error: standard output holds a command's one document."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def model_spec(model: onnx.ModelProto) -> ModelSpec:
    """What a model that was read takes and gives.

    Raises:
        IncompatibleError: a tensor has a type that is not served.
    """
    initializers = {tensor.name for tensor in model.graph.initializer}
    return ModelSpec(
        inputs=tuple(_spec(value) for value in model.graph.input if value.name not in initializers),
        outputs=tuple(_spec(value) for value in model.graph.output),
        opset=max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0),
        ir_version=model.ir_version,
        # DequantizeLinear alone stores weights compactly; the arithmetic is still that of floats.
        is_quantized=any(
            node.op_type.startswith(("QuantizeLinear", "DynamicQuantize", "QLinear"))
            or node.op_type.endswith("Integer")
            for node in model.graph.node
        ),
        notes=read_notes(model),
        weights=_weights(model),
    )


def _weights(model: onnx.ModelProto) -> str:
    import onnx

    kinds = onnx.TensorProto
    names: dict[int, str] = {
        kinds.FLOAT: "fp32", kinds.FLOAT16: "fp16", kinds.BFLOAT16: "bf16", kinds.FLOAT8E4M3FN: "fp8",
        kinds.INT4: "int4", kinds.UINT4: "int4",
    }  # fmt: skip
    # onnxruntime's own operator keeps two weights a byte.
    nibbles = {name for node in model.graph.node if node.op_type == "MatMulNBits" for name in node.input[1:2]}
    counts: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        size = math.prod(tensor.dims)
        if tensor.name in nibbles:
            counts["int4"] += 2 * size
        elif tensor.data_type in names and len(tensor.dims) > 1:
            counts[names[tensor.data_type]] += size
    return max(counts, key=lambda name: counts[name]) if counts else "fp32"


def require_float(spec: ModelSpec, name: str) -> None:
    """Refuse a model that is quantised already.

    Raises:
        BadInputError: it is.
    """
    if spec.is_quantized:
        raise BadInputError(f"{name} is quantised already", hint="start from the FP32 model")


def _require_known_versions(path: Path, model: onnx.ModelProto) -> None:
    import onnx

    newest_ir, newest_opset = int(onnx.IR_VERSION), int(onnx.defs.onnx_opset_version())
    if model.ir_version > newest_ir:
        raise BadInputError(
            f"{path} is written in IR version {model.ir_version}; onnx {onnx.__version__} reads up to {newest_ir}",
            hint="update onnx, or export it with an older one",
        )
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version > newest_opset:
            raise BadInputError(
                f"{path} uses opset {entry.version}; onnx {onnx.__version__} knows up to {newest_opset}",
                hint=f"update onnx, or export it with opset {newest_opset} or older",
            )


def _read_files(path: Path, model: onnx.ModelProto, size: int, *, accepted: bool) -> tuple[Path, ...]:
    import onnx

    folder = path.parent.resolve()
    ranges: dict[str, list[tuple[int, int]]] = {}
    for tensor in _tensors(model.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        offset, length = (int(entries.get(key, "0") or 0) for key in ("offset", "length"))
        ranges.setdefault(entries.get("location", ""), []).append((offset, length))
    if not ranges:
        return ()
    if len(ranges) > _MAX_EXTERNAL_FILES:
        raise BadInputError(f"{path} keeps its weights in {len(ranges)} files", hint="export it as one file")
    for location, parts in ranges.items():
        beside = (folder / location).resolve()
        if not location or "\0" in location or folder not in beside.parents:
            raise BadInputError(
                f"{path} keeps its weights outside of its folder, in {location!r}", hint="export it again as one file"
            )
        if not beside.is_file():
            raise BadInputError(
                f"{path} keeps its weights in another file, {location}, which is missing", hint=f"put it in {folder}"
            )
        held = beside.stat().st_size
        if any(offset < 0 or length < 0 or offset + length > held for offset, length in parts):
            raise BadInputError(f"{location} is shorter than {path} says", hint="copy both files again")
        size += sum(length or held - offset for offset, length in parts)
    if size > _MAX_ONNX_BYTES:
        raise BadInputError(f"{path} has {size} bytes with its weights", hint="kedge takes models below 2 GiB")
    if not accepted:
        raise BadInputError(
            f"{path} keeps its weights in another file, {next(iter(ranges))}",
            hint='make one file: python -c "import onnx, sys; onnx.save(onnx.load(sys.argv[1]), sys.argv[2])" IN OUT',
        )
    onnx.load_external_data_for_model(model, str(folder))
    return tuple(path.parent / location for location in ranges)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _other_kind(path: Path) -> tuple[str, str]:
    with path.open("rb") as handle:
        head = handle.read(16)
    for offset, magic, kind, hint in _OTHER_KINDS:
        if head[offset:].startswith(magic):
            return f"it is {kind}", hint
    return "", ""


def _spec(value: Any) -> TensorSpec:
    import onnx

    kind = value.type.tensor_type
    try:
        datatype = datatype_of(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    except (KeyError, TypeError) as error:
        raise IncompatibleError(
            f"tensor {value.name!r} has a type that is not served",
            hint="tensors of numbers, booleans and strings are served",
        ) from error
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else DYNAMIC for dim in kind.shape.dim)
    try:
        return TensorSpec(value.name, datatype, shape, tuple(dim.dim_param for dim in kind.shape.dim))
    except ValueError as error:
        raise IncompatibleError(str(error)) from error

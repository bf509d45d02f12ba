"""Read an ONNX file and say what it takes and gives. The one module that imports onnx to read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kedge_agent.formats.tensors import DYNAMIC, TensorSpec, datatype_of

from ..errors import BadInputError, IncompatibleError, first_line

__all__ = ["ModelSpec", "read_model"]

_MAX_ONNX_BYTES = 2**31 - 1


@dataclass(frozen=True)
class ModelSpec:
    """What a model takes and gives, and the versions it was written in.

    is_quantized: it already holds quantised operators.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    ir_version: int
    is_quantized: bool

    @property
    def precision(self) -> str:
        """The precision its name should carry: int8 when quantised, else fp16 or fp32 by its inputs."""
        if self.is_quantized:
            return "int8"
        return "fp16" if any(spec.datatype == "FP16" for spec in self.inputs) else "fp32"


def read_model(path: Path) -> ModelSpec:
    """Read and check an ONNX file.

    Raises:
        BadInputError: the file is missing, is not ONNX, or its weights lie in another file.
        IncompatibleError: a tensor has a type that is not served.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        size = path.stat().st_size
        if size > _MAX_ONNX_BYTES:
            raise BadInputError(f"{path} has {size} bytes; one ONNX file holds less than 2 GiB")
        model = onnx.load_model(path, load_external_data=False)
        if any(onnx.external_data_helper.uses_external_data(tensor) for tensor in model.graph.initializer):
            raise BadInputError(
                f"{path} keeps its weights in another file", hint="export it as one file (external_data=False)"
            )
        onnx.checker.check_model(model)
    except OSError as error:
        raise BadInputError(
            f"{path} cannot be read: {error.strerror}", hint="give the path of an .onnx file"
        ) from error
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise BadInputError(f"{path} is not a valid ONNX model: {first_line(error)}", hint="export it again") from error
    initializers = {tensor.name for tensor in model.graph.initializer}
    return ModelSpec(
        inputs=tuple(_spec(value) for value in model.graph.input if value.name not in initializers),
        outputs=tuple(_spec(value) for value in model.graph.output),
        opset=max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0),
        ir_version=model.ir_version,
        is_quantized=any(
            node.op_type.startswith(("QuantizeLinear", "QLinear")) or node.op_type.endswith("Integer")
            for node in model.graph.node
        ),
    )


def _spec(value: Any) -> TensorSpec:
    import onnx

    kind = value.type.tensor_type
    try:
        datatype = datatype_of(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    except (KeyError, TypeError) as error:
        raise IncompatibleError(
            f"tensor {value.name!r} has a type that is not served", hint="numeric and boolean tensors are served"
        ) from error
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else DYNAMIC for dim in kind.shape.dim)
    try:
        return TensorSpec(value.name, datatype, shape, tuple(dim.dim_param for dim in kind.shape.dim))
    except ValueError as error:
        raise IncompatibleError(str(error)) from error

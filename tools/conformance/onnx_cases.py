"""The ONNX backend tests that ship with the `onnx` package: a model, inputs, and the outputs ONNX says it has."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

__all__ = ["KINDS", "Case", "Tensors", "cases", "unserved_type"]

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
"""Those whose data are in the package; the kind "real" is models to download."""

Tensors = Sequence[Any]

_SERVED = {
    onnx.TensorProto.BOOL, onnx.TensorProto.UINT8, onnx.TensorProto.UINT16, onnx.TensorProto.UINT32,
    onnx.TensorProto.UINT64, onnx.TensorProto.INT8, onnx.TensorProto.INT16, onnx.TensorProto.INT32,
    onnx.TensorProto.INT64, onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE,
    onnx.TensorProto.STRING,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One test. runs: inputs and expected outputs, each in the order of the graph's."""

    name: str
    model: onnx.ModelProto
    runs: Sequence[tuple[Tensors, Tensors]]
    rtol: float
    atol: float

    @property
    def inputs(self) -> list[str]:
        """Names of what has to be given."""
        initializers = {tensor.name for tensor in self.model.graph.initializer}
        return [value.name for value in self.model.graph.input if value.name not in initializers]


def cases() -> Iterator[Case]:
    """All of them, by kind and name."""
    from onnx.backend.test.loader import load_model_tests

    for kind in KINDS:
        with warnings.catch_warnings():
            # onnx computes the expected outputs of casts and logarithms as it imports its tests.
            warnings.simplefilter("ignore")
            found = load_model_tests(kind=kind)
        for test in sorted(found, key=lambda test: str(test.name)):
            if test.model_dir is None:
                runs = [(_arrays(inputs), _arrays(outputs)) for inputs, outputs in test.data_sets]
                yield Case(test.name, test.model, runs, test.rtol, test.atol)
            else:
                model = onnx.load(Path(test.model_dir) / "model.onnx")
                folders = sorted(Path(test.model_dir).glob("test_data_set_*"))
                yield Case(test.name, model, [_read(folder, model) for folder in folders], test.rtol, test.atol)


def unserved_type(model: onnx.ModelProto) -> str | None:
    """A type of its inputs or outputs that the Open Inference Protocol has no tensor for, or None."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    for value in (*(each for each in model.graph.input if each.name not in initializers), *model.graph.output):
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type":
            return str(kind).removesuffix("_type").removesuffix("_tensor")
        if value.type.tensor_type.elem_type not in _SERVED:
            return onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    return None


def _arrays(tensors: Sequence[Any]) -> Tensors:
    # Some scalars are numpy's scalars, and some tensors are messages.
    return [
        onnx.numpy_helper.to_array(each)
        if isinstance(each, onnx.TensorProto)
        else np.asarray(each)
        if isinstance(each, np.generic)
        else each
        for each in tensors
    ]


def _read(folder: Path, model: onnx.ModelProto) -> tuple[Tensors, Tensors]:
    if unserved_type(model) is not None:
        return [], []
    return _files(folder, "input"), _files(folder, "output")


def _files(folder: Path, prefix: str) -> list[np.ndarray]:
    count = len(list(folder.glob(f"{prefix}_*.pb")))
    tensors = []
    for index in range(count):
        tensor = onnx.TensorProto()
        tensor.ParseFromString((folder / f"{prefix}_{index}.pb").read_bytes())
        tensors.append(onnx.numpy_helper.to_array(tensor))
    return tensors

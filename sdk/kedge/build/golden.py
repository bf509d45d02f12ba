"""Golden tensors: recorded inputs, and the outputs the artefact itself gives for them on this host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kedge_agent.formats.tensors import DYNAMIC, TensorSpec, datatype_of

from ..errors import BadInputError
from ..model.onnx_io import ModelSpec

__all__ = ["GOLDEN_SAMPLES", "load_tensors", "made_up_inputs", "select_samples"]

GOLDEN_SAMPLES = 8
_MAX_FILE_BYTES = 1 << 32


def load_tensors(path: Path, inputs: tuple[TensorSpec, ...]) -> dict[str, NDArray[Any]]:
    """Tensors for a model's inputs from a file: `.npz` by name, or `.npy` for a model of one input.

    Raises:
        BadInputError: the file cannot be read, or does not fit the model.
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise BadInputError(f"{path} is larger than {_MAX_FILE_BYTES} bytes")
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            if len(inputs) != 1:
                raise BadInputError(
                    f"{path} holds one array, the model has {len(inputs)} inputs",
                    hint=f"save an .npz with {', '.join(spec.name for spec in inputs)}",
                )
            tensors = {inputs[0].name: loaded}
        else:
            with loaded:
                tensors = {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError) as error:
        raise BadInputError(f"{path} cannot be read as numpy data: {error}", hint="save it with numpy.save") from error
    missing = [spec.name for spec in inputs if spec.name not in tensors]
    if missing:
        raise BadInputError(f"{path} lacks the inputs {', '.join(missing)}", hint=f"it holds {', '.join(tensors)}")
    return {spec.name: _fitting(path, spec, tensors[spec.name]) for spec in inputs}


def _fitting(path: Path, spec: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
    try:
        datatype = datatype_of(array.dtype)
    except KeyError as error:
        raise BadInputError(f"{path}: {spec.name!r} has the dtype {array.dtype}, which no model takes") from error
    # A fixed batch may be given many samples: they are then run one batch at a time.
    shape = (spec.shape[0], *array.shape[1:]) if spec.shape and array.ndim == len(spec.shape) else array.shape
    mismatch = spec.mismatch(datatype, shape)
    if mismatch is not None:
        raise BadInputError(f"{path}: {mismatch}", hint="convert it with numpy's astype and reshape")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadInputError(f"{path}: {spec.name!r} holds NaN or infinity")
    return np.ascontiguousarray(array, dtype=spec.dtype)


def select_samples(tensors: Mapping[str, NDArray[Any]], model: ModelSpec) -> dict[str, NDArray[Any]]:
    """The first few samples: as many as a free batch dimension takes, or one fixed batch.

    Raises:
        BadInputError: there are fewer samples than a fixed batch needs.
    """
    out = {}
    for spec in model.inputs:
        array = tensors[spec.name]
        if not spec.shape:
            out[spec.name] = array
            continue
        count = GOLDEN_SAMPLES if spec.shape[0] == DYNAMIC else spec.shape[0]
        if array.shape[0] < min(count, 1) or (spec.shape[0] != DYNAMIC and array.shape[0] < count):
            raise BadInputError(f"input {spec.name!r} has {array.shape[0]} samples, a batch of {count} is needed")
        out[spec.name] = np.ascontiguousarray(array[:count])
    return out


def made_up_inputs(model: ModelSpec) -> dict[str, NDArray[Any]]:
    """Reproducible inputs where the user has none: normal noise, or zeros for integers.

    Free dimensions other than the batch become 1. They show that the device computes what the
    host computes; they say nothing about accuracy.
    """
    random = np.random.default_rng(0)
    out: dict[str, NDArray[Any]] = {}
    for spec in model.inputs:
        shape = tuple(1 if dim == DYNAMIC else dim for dim in spec.shape)
        # Integers may be indices into a table: 0 is the one value that is always inside.
        values = random.standard_normal(shape) if spec.dtype.kind == "f" else np.zeros(shape)
        out[spec.name] = values.astype(spec.dtype)
    return out

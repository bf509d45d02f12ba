"""A user's tensors from numpy files, checked against what a model takes."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kedge_agent.formats.tensors import TensorSpec, datatype_of

from ..errors import BadInputError

__all__ = ["load_tensors"]

_MAX_FILE_BYTES = 1 << 32


def load_tensors(path: Path, inputs: tuple[TensorSpec, ...]) -> dict[str, NDArray[Any]]:
    """Tensors for a model's inputs from a file: `.npz` by name, or `.npy` for a model of one input.

    Raises:
        BadInputError: the file cannot be read, or does not fit the model.
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise BadInputError(f"{path} is larger than {_MAX_FILE_BYTES} bytes")
        # Opened here, because numpy leaves a file open that turns out to be no archive.
        with path.open("rb") as handle:
            loaded = np.load(handle, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                tensors = {_only(path, inputs).name: loaded}
            else:
                tensors = {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise BadInputError(f"{path} cannot be read as numpy data: {error}", hint="save it with numpy.save") from error
    missing = [spec.name for spec in inputs if spec.name not in tensors]
    if missing:
        raise BadInputError(f"{path} lacks the inputs {', '.join(missing)}", hint=f"it holds {', '.join(tensors)}")
    return {spec.name: _fitting(path, spec, tensors[spec.name]) for spec in inputs}


def _only(path: Path, inputs: tuple[TensorSpec, ...]) -> TensorSpec:
    if len(inputs) != 1:
        raise BadInputError(
            f"{path} holds one array, the model has {len(inputs)} inputs",
            hint=f"save an .npz with {', '.join(spec.name for spec in inputs)}",
        )
    return inputs[0]


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

"""A user's tensors from numpy files, checked against what a model takes."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kedge_agent.formats.strings import as_text
from kedge_agent.formats.tensors import BYTES, TensorSpec, datatype_of
from kedge_agent.wire import WireError

from ..errors import BadInputError, first_line

__all__ = ["MAX_DATA_BYTES", "fitted", "load_tensors", "read_arrays"]

MAX_DATA_BYTES = 1 << 33
_MAX_FILE_BYTES = 1 << 32


def load_tensors(path: Path, inputs: tuple[TensorSpec, ...]) -> dict[str, NDArray[Any]]:
    """Tensors for a model's inputs from a file: `.npz` by name, or `.npy` for a model of one input.

    Raises:
        BadInputError: the file cannot be read, or does not fit the model.
    """
    tensors = read_arrays(path)
    if isinstance(tensors, np.ndarray):
        tensors = {_only(path, inputs).name: tensors}
    missing = [spec.name for spec in inputs if spec.name not in tensors]
    if missing:
        raise BadInputError(f"{path} lacks the inputs {', '.join(missing)}", hint=f"it holds {', '.join(tensors)}")
    return {spec.name: fitted(str(path), spec, tensors[spec.name]) for spec in inputs}


def read_arrays(path: Path) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """The array of an `.npy` file, or the arrays of an `.npz` file by name. Nothing is unpickled.

    Raises:
        BadInputError: the file cannot be read, or holds more than 8 GiB.
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise BadInputError(f"{path} is larger than {_MAX_FILE_BYTES} bytes", hint="give fewer samples")
        # Opened here, because numpy leaves a file open that turns out to be no archive.
        with path.open("rb") as handle:
            loaded = np.load(handle, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            if sum(entry.file_size for entry in loaded.zip.infolist()) > MAX_DATA_BYTES:
                raise BadInputError(f"{path} unpacks to more than {MAX_DATA_BYTES} bytes", hint="give fewer samples")
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        pickled = "allow_pickle" in str(error)
        raise BadInputError(
            f"{path} cannot be read as numpy data: {first_line(error)}",
            hint="save text as array.astype('U'), not as objects" if pickled else "save it with numpy.save",
        ) from error


def fitted(
    origin: str, spec: TensorSpec, array: NDArray[Any], *, hint: str = "convert it with numpy's astype and reshape"
) -> NDArray[Any]:
    """The array as the model takes it, C order; strings, of whatever dtype, as an object array of `str`.

    Args:
        origin: where it comes from, for messages.
        hint: what to do when type or shape do not fit.

    Raises:
        BadInputError: its type or shape do not fit, a float array holds NaN or infinity, or strings are not UTF-8.
    """
    try:
        datatype = datatype_of(array.dtype)
    except KeyError as error:
        raise BadInputError(
            f"{origin}: {spec.name!r} has the dtype {array.dtype}, which no model takes", hint=hint
        ) from error
    if datatype == BYTES != spec.datatype:
        raise BadInputError(
            f"{origin}: {spec.name!r} has the dtype {array.dtype}, which no model takes for {spec.datatype}", hint=hint
        )
    # A fixed batch may be given many samples: they are then run one batch at a time.
    shape = (spec.shape[0], *array.shape[1:]) if spec.shape and array.ndim == len(spec.shape) else array.shape
    mismatch = spec.mismatch(datatype, shape)
    if mismatch is not None:
        raise BadInputError(f"{origin}: {mismatch}", hint=hint)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadInputError(
            f"{origin}: {spec.name!r} holds NaN or infinity", hint="find those samples with numpy.isfinite"
        )
    if datatype == BYTES:
        try:
            return as_text(array)
        except WireError as error:
            raise BadInputError(f"{origin}: {spec.name!r}: {error}", hint="models take UTF-8 text") from error
    return np.ascontiguousarray(array, dtype=spec.dtype)


def _only(path: Path, inputs: tuple[TensorSpec, ...]) -> TensorSpec:
    if len(inputs) != 1:
        raise BadInputError(
            f"{path} holds one array, the model has {len(inputs)} inputs",
            hint=f"save an .npz with {', '.join(spec.name for spec in inputs)}",
        )
    return inputs[0]

"""The recorded inputs and outputs of a release, read from the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AgentError
from ..formats.manifest import GoldenTensor, Manifest
from ..formats.strings import decode_strings
from ..formats.tensors import BYTES, DATATYPES, DYNAMIC, TensorSpec
from ..store.layout import Layout
from ..wire import WireError

__all__ = ["golden_batch", "read_golden"]

_MAX_BATCH = 4096
_MAX_BYTES = 1 << 30


def read_golden(layout: Layout, manifest: Manifest, tensors: tuple[GoldenTensor, ...]) -> dict[str, NDArray[Any]]:
    """Recorded tensors by name, strings as `bytes`. The manifest's parser has checked the sizes of numeric ones.

    Raises:
        AgentError: a file cannot be read, or does not hold what its shape needs (kind integrity).
    """
    out: dict[str, NDArray[Any]] = {}
    for tensor in tensors:
        path = layout.release(manifest.digest) / tensor.file
        try:
            if tensor.datatype == BYTES:
                out[tensor.name] = decode_strings(path.read_bytes(), tensor.shape)
            else:
                out[tensor.name] = np.fromfile(path, dtype=DATATYPES[tensor.datatype]).reshape(tensor.shape)
        except (OSError, ValueError, WireError) as error:
            raise AgentError(
                f"release {manifest.digest[:12]}: {tensor.file} cannot be read: {error}",
                kind="integrity",
                hint="deploy the release again",
            ) from error
    return out


def golden_batch(
    layout: Layout, manifest: Manifest, specs: Sequence[TensorSpec], batch: int
) -> tuple[dict[str, NDArray[Any]], int]:
    """Recorded inputs cut or repeated to `batch` samples, where the model's first dimension is free.

    Returns:
        The inputs, and the batch they make: the model's own where that is fixed.

    Raises:
        AgentError: the model has a fixed batch of another size, batch is out of range (bad_input), or they would be
            more than one request may carry (too_large).
    """
    inputs = read_golden(layout, manifest, manifest.golden.inputs)
    by_name = {spec.name: spec for spec in specs}
    if not 1 <= batch <= _MAX_BATCH:
        raise AgentError(f"batch {batch} is outside 1..{_MAX_BATCH}", hint="leave --batch out")
    # A scalar, such as a sampling rate, has no samples to count.
    firsts = {spec.name: spec.shape[0] for spec in specs if spec.shape}
    free = [name for name, first in firsts.items() if first == DYNAMIC]
    needed = sum(inputs[name].nbytes // max(inputs[name].shape[0], 1) * batch for name in free)
    if needed > _MAX_BYTES:
        raise AgentError(
            f"{batch} samples are {needed} bytes of input, more than {_MAX_BYTES}",
            kind="too_large",
            hint="take a smaller --batch",
        )
    out = {}
    for name, array in inputs.items():
        spec = by_name[name]
        if name not in free:
            if batch not in (1, firsts.get(name, batch)):
                raise AgentError(
                    f"{manifest.model} takes {list(spec.shape)} for {name!r}; its batch cannot be {batch}",
                    hint="leave --batch out",
                )
            out[name] = array
        else:
            out[name] = np.ascontiguousarray(np.resize(array, (batch, *array.shape[1:])))
    return out, batch if free else max(firsts.values(), default=1)

"""Golden tensors: recorded inputs, and the outputs the artefact itself gives for them on this host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kedge_agent.formats.tensors import BYTES, DYNAMIC

from ..errors import BadInputError
from ..model.onnx_io import ModelSpec

__all__ = ["GOLDEN_SAMPLES", "made_up_inputs", "select_samples"]

GOLDEN_SAMPLES = 8

_TEXT = "kedge"


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
    """Reproducible inputs where the user has none: normal noise, zeros for integers, a word of text for strings.

    Free dimensions other than the batch become 1. They show that the device computes what the
    host computes; they say nothing about accuracy.
    """
    random = np.random.default_rng(0)
    out: dict[str, NDArray[Any]] = {}
    for spec in model.inputs:
        shape = tuple(1 if dim == DYNAMIC else dim for dim in spec.shape)
        if spec.datatype == BYTES:
            out[spec.name] = np.full(shape, _TEXT, dtype=object)
            continue
        # Integers may be indices into a table: 0 is the one value that is always inside.
        values = random.standard_normal(shape) if spec.dtype.kind == "f" else np.zeros(shape)
        out[spec.name] = values.astype(spec.dtype)
    return out

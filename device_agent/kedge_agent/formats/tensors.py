"""Tensor datatypes of the Open Inference Protocol v2, and specifications of model inputs and outputs.

Source of the names and sizes: KServe's Open Inference Protocol v2, "Tensor Data Types". An element of a BYTES tensor
(a string) has a length of its own: in memory it is an object array, and how it travels is `formats.strings`' matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .tensor_spec import BYTES, DYNAMIC, MAX_RANK, TensorSpec, element_count, tensor_bytes

__all__ = [
    "BYTES",
    "DATATYPES",
    "DYNAMIC",
    "MAX_RANK",
    "OBJECT",
    "TensorSpec",
    "counts_samples",
    "datatype_of",
    "element_count",
    "tensor_bytes",
]

DATATYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""Types whose elements all have one size."""

OBJECT = np.dtype(object)
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}


def counts_samples(specs: Iterable[TensorSpec]) -> bool:
    """Whether the first dimension of every tensor is free: it counts samples, in models as people make them."""
    return all(spec.shape[:1] == (DYNAMIC,) for spec in specs)


def datatype_of(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a numpy dtype; BYTES for text and objects.

    Raises:
        KeyError: the protocol has no such type.
    """
    if dtype.kind in "OSU":
        return BYTES
    return _NAMES[np.dtype(dtype).newbyteorder("<")]

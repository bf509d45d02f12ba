"""Tensor datatypes of the Open Inference Protocol v2, and specifications of model inputs and outputs.

Source of the names and sizes: KServe's Open Inference Protocol v2, "Tensor Data Types". An element of a BYTES tensor
(a string) has a length of its own: in memory it is an object array, and how it travels is `formats.strings`' matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["BYTES", "DATATYPES", "DYNAMIC", "MAX_RANK", "TensorSpec", "datatype_of", "element_count", "tensor_bytes"]

DYNAMIC = -1
MAX_RANK = 16

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

BYTES = "BYTES"

_OBJECT = np.dtype(object)
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}


def datatype_of(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a numpy dtype; BYTES for text and objects.

    Raises:
        KeyError: the protocol has no such type.
    """
    if dtype.kind in "OSU":
        return BYTES
    return _NAMES[np.dtype(dtype).newbyteorder("<")]


def element_count(shape: Sequence[int]) -> int:
    """Number of elements of a concrete shape (1 for a scalar)."""
    return math.prod(shape)


def tensor_bytes(datatype: str, shape: Sequence[int]) -> int:
    """Bytes of a concrete tensor.

    Raises:
        KeyError: of BYTES, whose size hangs on its elements.
    """
    return DATATYPES[datatype].itemsize * element_count(shape)


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: `shape` holds -1 where the size is free; `symbols` names those sizes.

    Two dimensions with the same symbol have the same size, which is how an output's shape is
    known from the inputs' before anything is run. An unnamed free dimension has the symbol "".
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    symbols: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.datatype not in DATATYPES and self.datatype != BYTES:
            raise ValueError(f"tensor {self.name!r}: datatype {self.datatype!r} is not supported")
        if len(self.shape) > MAX_RANK:
            raise ValueError(f"tensor {self.name!r}: rank {len(self.shape)} exceeds {MAX_RANK}")
        if any(dim < DYNAMIC for dim in self.shape):
            raise ValueError(f"tensor {self.name!r}: negative dimension in {list(self.shape)}")
        if self.symbols and len(self.symbols) != len(self.shape):
            raise ValueError(f"tensor {self.name!r}: {len(self.symbols)} symbols for {len(self.shape)} dimensions")

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype, little-endian; object for BYTES."""
        return _OBJECT if self.datatype == BYTES else DATATYPES[self.datatype]

    def mismatch(self, datatype: str, shape: Sequence[int]) -> str | None:
        """Why a concrete tensor does not fit this specification, or None when it does."""
        if datatype != self.datatype:
            return f"input {self.name!r} is {self.datatype}, got {datatype}"
        fits = len(shape) == len(self.shape) and all(
            want in (DYNAMIC, got) for want, got in zip(self.shape, shape, strict=True)
        )
        return None if fits else f"input {self.name!r} wants shape {list(self.shape)}, got {list(shape)}"

    def to_json(self) -> dict[str, Any]:
        """As the Open Inference Protocol's metadata states a tensor."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}

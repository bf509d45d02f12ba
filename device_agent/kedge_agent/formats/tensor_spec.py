"""Specifications of a model's inputs and outputs, as a manifest states them: nothing here needs numpy.

A process that receives a release computes with no tensor, and starts in half the time without numpy.
Source of the names and sizes: KServe's Open Inference Protocol v2, "Tensor Data Types".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["BYTES", "DYNAMIC", "ITEM_BYTES", "MAX_RANK", "TensorSpec", "element_count", "tensor_bytes"]

DYNAMIC = -1
MAX_RANK = 16
BYTES = "BYTES"

ITEM_BYTES: Mapping[str, int] = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "FP32": 4,
    "FP64": 8,
}
"""Types whose elements all have one size, and that size."""


def element_count(shape: Sequence[int]) -> int:
    """Number of elements of a concrete shape (1 for a scalar)."""
    return math.prod(shape)


def tensor_bytes(datatype: str, shape: Sequence[int]) -> int:
    """Bytes of a concrete tensor.

    Raises:
        KeyError: of BYTES, whose size hangs on its elements.
    """
    return ITEM_BYTES[datatype] * element_count(shape)


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
        if self.datatype not in ITEM_BYTES and self.datatype != BYTES:
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
        from .tensors import DATATYPES, OBJECT

        return OBJECT if self.datatype == BYTES else DATATYPES[self.datatype]

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

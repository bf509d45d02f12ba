"""Buffers that are allocated once and reused: aligned, grown rarely, never moved while bound."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..formats.tensors import element_count

__all__ = ["ALIGNMENT", "Arena", "aligned_bytes"]

ALIGNMENT = 256
"""Bytes. What TensorRT asks of tensor addresses; more than any CPU kernel wants."""


def aligned_bytes(size: int) -> NDArray[np.uint8]:
    """Zeroed memory whose first byte lies on an `ALIGNMENT` boundary."""
    raw = np.zeros(size + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]


class Arena:
    """One growing block of memory per tensor name.

    `generation` changes whenever a block moved: whoever bound an address must bind again.
    """

    def __init__(self) -> None:
        self._blocks: dict[str, NDArray[np.uint8]] = {}
        self.generation = 0

    def tensor(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """A C-contiguous view of this name's block, which grows when the shape needs more."""
        size = dtype.itemsize * element_count(shape)
        block = self._blocks.get(name)
        if block is None or block.size < size:
            self._blocks[name] = block = aligned_bytes(max(size, 1))
            self.generation += 1
        return block[:size].view(dtype).reshape(shape)

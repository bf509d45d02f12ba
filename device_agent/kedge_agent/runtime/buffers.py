"""Buffers that are allocated once and reused: aligned, grown rarely, never moved while bound.

Where they come from is the allocator's matter: plain memory on the CPU, page-locked or managed memory for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import AgentError
from ..formats.tensors import element_count

__all__ = ["ALIGNMENT", "Allocate", "Arena", "Block", "HostBlock", "aligned_bytes", "round_up"]

ALIGNMENT = 256
"""Bytes. What TensorRT asks of tensor addresses; more than any CPU kernel wants."""


class Block(Protocol):
    """A block of memory. size: bytes. address: where whoever computes sees it, a multiple of `ALIGNMENT`."""

    size: int
    address: int

    @property
    def array(self) -> NDArray[Any]:
        """The block as the host sees it, bytes."""
        ...

    def close(self) -> None:
        """Give it back; idempotent."""
        ...


Allocate = Callable[[int], Block]
"""Gives a block of so many bytes."""


def round_up(size: int) -> int:
    """The next multiple of `ALIGNMENT`; never 0, because memory of no size has no address."""
    return max(-(-size // ALIGNMENT), 1) * ALIGNMENT


def aligned_bytes(size: int) -> NDArray[np.uint8]:
    """Zeroed memory whose first byte lies on an `ALIGNMENT` boundary."""
    raw = np.zeros(size + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]


class HostBlock:
    """Plain memory; it goes when the last view of it does."""

    def __init__(self, size: int) -> None:
        self.array: NDArray[Any] = aligned_bytes(size)
        self.size = size
        self.address = int(self.array.ctypes.data)

    def close(self) -> None:
        """Nothing: a view that somebody still has stays good."""


class _Place:
    """Where a name's memory lies."""

    __slots__ = ("block", "capacity", "offset")

    def __init__(self, block: Block, offset: int, capacity: int) -> None:
        self.block, self.offset, self.capacity = block, offset, capacity


class Arena:
    """Memory by name. Names that are reserved together lie in one block; one that asks alone gets a block of its own.

    `generation` changes whenever a block moved: whoever bound an address must bind again. A block that no name lies in
    any more is given back at once.
    """

    def __init__(self, allocate: Allocate = HostBlock) -> None:
        self._allocate = allocate
        self._places: dict[str, _Place] = {}
        self._closed = False
        self.generation = 0

    @property
    def size(self) -> int:
        """Bytes in all blocks."""
        return sum(block.size for block in self._blocks().values())

    def reserve(self, sizes: Mapping[str, int]) -> None:
        """Have room for these names, in bytes. Where one has too little, all of them move to one new block.

        Raises:
            AgentError: there is no memory left; these names then have none (kind space).
        """
        if self._closed:
            raise AgentError("buffers were used after they were given back", kind="internal")
        had = {name: place.capacity for name in sizes if (place := self._places.get(name)) is not None}
        if all(size <= had.get(name, -1) for name, size in sizes.items()):
            return
        wanted = {name: max(round_up(size), had.get(name, 0)) for name, size in sizes.items()}
        # Old blocks go first: nothing in them is needed, and a device may not have room for both.
        self.generation += 1
        before = self._blocks()
        for name in wanted:
            self._places.pop(name, None)
        self._drop(before)
        block = self._allocate(sum(wanted.values()))
        if block.address % ALIGNMENT:
            block.close()
            raise AgentError(f"an allocator gave memory that is not aligned to {ALIGNMENT} bytes", kind="internal")
        offset = 0
        for name, capacity in wanted.items():
            self._places[name] = _Place(block, offset, capacity)
            offset += capacity

    def tensor(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """A C-contiguous view of this name's memory, which moves to a larger block when the shape needs more."""
        size = dtype.itemsize * element_count(shape)
        self.reserve({name: size})
        place = self._places[name]
        return place.block.array[place.offset : place.offset + size].view(dtype).reshape(shape)

    def address(self, name: str) -> int:
        """Where whoever computes sees this name's memory."""
        place = self._places[name]
        return place.block.address + place.offset

    def close(self) -> None:
        """Give everything back; idempotent. Nothing may be bound to it any more."""
        self._closed = True
        self.generation += 1
        before = self._blocks()
        self._places.clear()
        self._drop(before)

    def _blocks(self) -> dict[int, Block]:
        return {id(place.block): place.block for place in self._places.values()}

    def _drop(self, before: Mapping[int, Block]) -> None:
        kept = self._blocks()
        for key, block in before.items():
            if key not in kept:
                block.close()

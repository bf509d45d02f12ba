"""Labelled samples in memory: what calibration, training and evaluation run on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kedge_agent.formats.strings import tensor_data
from kedge_agent.formats.tensors import DYNAMIC, TensorSpec

from ..errors import BadInputError

__all__ = ["Samples", "fixed_batch"]


@dataclass(frozen=True)
class Samples:
    """Inputs by name, samples along the first axis, as the model takes them; labels [n] int64, or None.

    name: where they come from, for messages. classes: names of the labels, where known.
    """

    inputs: Mapping[str, NDArray[Any]]
    labels: NDArray[np.int64] | None = None
    name: str = "samples"
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        counts = {array.shape[0] if array.ndim else 0 for array in self.inputs.values()}
        if len(counts) != 1 or 0 in counts:
            raise BadInputError(f"{self.name} holds no samples, or not as many for each input")
        if self.labels is not None and self.labels.shape != (self.count,):
            raise BadInputError(f"{self.name} holds {self.count} samples and {self.labels.shape} labels")

    @property
    def count(self) -> int:
        """How many samples."""
        return int(next(iter(self.inputs.values())).shape[0])

    def take(self, indices: NDArray[Any] | slice) -> Samples:
        """Some of the samples."""
        labels = None if self.labels is None else self.labels[indices]
        return Samples({name: array[indices] for name, array in self.inputs.items()}, labels, self.name, self.classes)

    def first(self, count: int) -> Samples:
        """At most `count` samples from the front."""
        return self if count >= self.count else self.take(slice(0, count))

    def batches(self, size: int) -> Iterator[dict[str, NDArray[Any]]]:
        """Inputs in batches of `size`; the last may be smaller."""
        for start in range(0, self.count, size):
            yield {name: array[start : start + size] for name, array in self.inputs.items()}

    def digests(self) -> list[bytes]:
        """One sha256 a sample, over the bytes of its inputs: equal samples have equal digests."""
        ordered = [np.ascontiguousarray(self.inputs[name]) for name in sorted(self.inputs)]
        return [
            hashlib.sha256(b"".join(tensor_data(array[i : i + 1]) for array in ordered)).digest()
            for i in range(self.count)
        ]


def fixed_batch(inputs: tuple[TensorSpec, ...]) -> int | None:
    """The batch size a model insists on, or None when its first dimension is free."""
    sizes = {spec.shape[0] for spec in inputs if spec.shape}
    fixed = sizes - {DYNAMIC}
    return max(fixed) if fixed else None

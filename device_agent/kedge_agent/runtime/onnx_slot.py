"""The buffers of one request to onnxruntime, and the bindings made on them."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from ..errors import AgentError
from ..formats.tensors import BYTES, element_count, tensor_bytes
from .base import Binding, Shapes
from .buffers import Arena
from .onnx_binding import BoundBinding, Served, StringBinding
from .peak import Peak

__all__ = ["OnnxSlot"]

_MAX_BINDINGS = 8
_MAX_TENSOR_BYTES = 1 << 30


class OnnxSlot:
    """Buffers of one request in flight, and the bindings made on them. buffer_bytes: how large the buffers are."""

    def __init__(self, served: Served) -> None:
        self.buffer_bytes = 0
        self._served = served
        self._arena = Arena()
        self._peak = Peak()
        self._bindings: OrderedDict[tuple[tuple[int, ...], ...], tuple[tuple[int, int], BoundBinding]] = OrderedDict()

    def bind(self, shapes: Shapes) -> Binding:
        """A binding for these input shapes: cached, unless a buffer had to move since, or an output was misdeclared.

        Raises:
            AgentError: a tensor would exceed 1 GiB (kind too_large), or there is no memory for it (kind space).
        """
        key = tuple(shapes[spec.name] for spec in self._served.inputs)
        made_at, cached = self._bindings.get(key, (None, None))
        if cached is not None and made_at == self._state():
            if not self._peak.passed(cached.input_bytes):
                self._bindings.move_to_end(key)
                cached.forget()
                return cached
            # What the peak needed is given back, and less is taken.
            self._bindings.clear()
            self._arena.close()
            self._arena = Arena()
        outputs = self._served.output_shapes(shapes)
        # An output may bear an input's name: its memory must still be another.
        wanted = {f"in:{spec.name}": (spec, shapes[spec.name]) for spec in self._served.inputs}
        wanted |= {
            f"out:{spec.name}": (spec, outputs[spec.name]) for spec in self._served.outputs if spec.name in outputs
        }
        for spec, shape in wanted.values():
            if spec.dtype.itemsize * element_count(shape) > _MAX_TENSOR_BYTES:
                raise AgentError(f"tensor {spec.name!r} of shape {list(shape)} is too large", kind="too_large")
        numbers = {place: each for place, each in wanted.items() if each[0].datatype != BYTES}
        before = self._arena.generation
        try:
            self._arena.reserve({place: tensor_bytes(spec.datatype, shape) for place, (spec, shape) in numbers.items()})
        except MemoryError as error:
            raise AgentError(
                "there is no memory for tensors of these shapes", kind="space", hint="free memory on the device"
            ) from error
        self.buffer_bytes = self._arena.size
        arrays = {place: self._arena.tensor(place, spec.dtype, shape) for place, (spec, shape) in numbers.items()}
        ours = {
            # Empty, not filled: a shape that its sender has no strings for must cost nothing.
            spec.name: arrays[f"in:{spec.name}"]
            if spec.datatype != BYTES
            else np.empty(shapes[spec.name], dtype=object)
            for spec in self._served.inputs
        }
        results = {
            spec.name: arrays[f"out:{spec.name}"] for spec in self._served.outputs if f"out:{spec.name}" in arrays
        }
        if self._served.has_strings:
            # Not kept: with it go the strings of its request.
            return StringBinding(self._served, ours, results)
        binding = BoundBinding(self._served, ours, results)
        self._peak.passed(binding.input_bytes)
        if self._arena.generation != before:
            # Bindings to blocks that moved are of no use, and hold the old blocks in memory.
            self._bindings.clear()
        self._bindings[key] = (self._state(), binding)
        while len(self._bindings) > _MAX_BINDINGS:
            self._bindings.popitem(last=False)
        return binding

    def close(self) -> None:
        """Give the buffers back; idempotent."""
        self._bindings.clear()
        self._arena.close()
        self.buffer_bytes = 0

    def _state(self) -> tuple[int, int]:
        """What makes a binding stale when it changes."""
        return self._arena.generation, len(self._served.misdeclared)

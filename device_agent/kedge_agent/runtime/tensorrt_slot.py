"""Buffers of one request in flight on a GPU, and what is queued for it: copies in, the work, copies out.

    copy-in stream    in_begin  h2d …  in_end ─┐
    compute stream                             └▶ run_begin  inference  run_end ─┐
    copy-out stream                                                              └▶ out_begin  d2h …  out_end

`submit` queues all of that and returns; `wait` waits for the last event. Two requests on a lane overlap in everything
but the inference.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import AgentError
from ..formats.tensors import TensorSpec, element_count
from .base import Binding, Buffers, Shapes, Split
from .buffers import Arena
from .cuda import Cuda
from .tensorrt_engine import Profile
from .tensorrt_seats import Graphs, Seat, Seats, Setup
from .transfers import Mode

__all__ = ["Owner", "TensorRTSlot"]

_MAX_BINDINGS = 8


class Owner(Protocol):
    """What a slot needs of its model."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    seats: Seats
    graphs: Graphs
    cuda: Cuda

    def resolve(self, shapes: Shapes) -> tuple[Profile, Mapping[str, tuple[int, ...]]]:
        """The profile for shapes of inputs, and the shapes of outputs.

        Raises:
            AgentError: outside all profiles (kind bad_input).
        """
        ...

    def slot_closed(self, slot: TensorRTSlot) -> None:
        """A slot has given its memory back."""
        ...


class TensorRTSlot:
    """Buffers of one request in flight, and bindings to them; eight are kept.

    Args:
        modes: by tensor, how it is moved.
    """

    def __init__(self, model: Owner, modes: Mapping[str, Mode]) -> None:
        self._model = model
        self._modes = modes
        self.pinned = Arena(model.cuda.pinned)
        self.managed = Arena(model.cuda.managed)
        self.staging = Arena(model.cuda.memory)
        self._bindings: OrderedDict[tuple[tuple[int, ...], ...], TensorRTBinding] = OrderedDict()
        self._closed = False

    def bind(self, shapes: Shapes) -> Binding:
        """A binding for these input shapes: the one made before, unless a buffer had to move since.

        Raises:
            AgentError: outside the engine's profiles (kind bad_input), or no memory is left (kind space).
        """
        key = tuple(shapes[spec.name] for spec in self._model.inputs)
        known = self._bindings.get(key)
        if known is not None:
            self._bindings.move_to_end(key)
            return known
        with self._model.cuda.current():
            profile, outputs = self._model.resolve(shapes)
            before = self._generation()
            try:
                self._reserve({**shapes, **outputs})
            finally:
                if self._generation() != before:
                    self._forget(list(self._bindings))
            binding = self._made(profile, shapes, outputs)
            while len(self._bindings) >= _MAX_BINDINGS:
                self._forget([next(iter(self._bindings))])
        self._bindings[key] = binding
        return binding

    def close(self) -> None:
        """Give the memory back, after what is in flight; idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            with self._model.cuda.current():
                for binding in self._bindings.values():
                    binding.settle()
                self._forget(list(self._bindings))
                for arena in (self.pinned, self.managed, self.staging):
                    arena.close()
        finally:
            # After an error that sticks to the context every call fails, and the model must still go.
            self._model.slot_closed(self)

    def _generation(self) -> int:
        return self.pinned.generation + self.managed.generation + self.staging.generation

    def _forget(self, keys: list[tuple[tuple[int, ...], ...]]) -> None:
        self._model.seats.forget(self._bindings.pop(key).setup for key in keys)

    def _reserve(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        needs: dict[Mode, dict[str, int]] = {"copy": {}, "mapped": {}, "managed": {}}
        for spec in (*self._model.inputs, *self._model.outputs):
            needs[self._modes[spec.name]][spec.name] = spec.dtype.itemsize * element_count(shapes[spec.name])
        self.pinned.reserve({**needs["copy"], **needs["mapped"]})
        self.managed.reserve(needs["managed"])
        self.staging.reserve(needs["copy"])

    def _made(self, profile: Profile, shapes: Shapes, outputs: Mapping[str, tuple[int, ...]]) -> TensorRTBinding:
        def views(specs: tuple[TensorSpec, ...], sizes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
            return {
                spec.name: (self.managed if self._modes[spec.name] == "managed" else self.pinned).tensor(
                    spec.name, spec.dtype, sizes[spec.name]
                )
                for spec in specs
            }

        held = {"copy": self.staging, "mapped": self.pinned, "managed": self.managed}
        addresses = {name: held[mode].address(name) for name, mode in self._modes.items()}
        staged = {name: addresses[name] for name, mode in self._modes.items() if mode == "copy"}
        return TensorRTBinding(
            self._model,
            Setup(profile, {spec.name: shapes[spec.name] for spec in self._model.inputs}, addresses),
            views(self._model.inputs, shapes),
            views(self._model.outputs, outputs),
            staged,
        )


class TensorRTBinding:
    """Buffers bound to one set of input shapes.

    Args:
        staged: addresses on the device of those tensors that are copied there; the others are used where they lie.

    copied: none: the GPU reads from the slot's memory and writes to it, by copies of its own or in place.
    seat: with the events of the run that is in flight, or None.
    """

    copied: tuple[str, ...] = ()

    def __init__(
        self,
        model: Owner,
        setup: Setup,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Mapping[str, NDArray[Any]],
        staged: Mapping[str, int],
    ) -> None:
        self._model = model
        self.setup = setup
        self.inputs: Buffers = inputs
        self.outputs: Buffers = outputs
        self._copies_in = _copies(inputs, staged)
        self._copies_out = _copies(outputs, staged)
        self.seat: Seat | None = None

    def submit(self) -> None:
        """Queue the copies and the inference.

        Raises:
            AgentError: something could not be queued; what was is over, and nothing is to be waited for.
        """
        if self.seat is not None:
            raise AgentError("a binding was submitted again before it was waited for", kind="internal")
        seat = self._model.seats.take(self.setup)
        try:
            with self._model.cuda.current(), seat.lane.lock:
                try:
                    self._queue(seat)
                except BaseException:
                    # The first error is the one that tells. What is queued may use the graph: it ends first.
                    with suppress(AgentError):
                        seat.lane.drain()
                    with suppress(AgentError):
                        seat.forget()
                    raise
        except BaseException:
            self._model.seats.give(seat)
            raise
        self.seat = seat

    def wait(self) -> Split:
        """Wait for the results; times are those of the GPU's own clock.

        Raises:
            AgentError: the run failed (kind internal).
        """
        seat = self.seat
        if seat is None:
            raise AgentError("a binding was waited for that had not been submitted", kind="internal")
        try:
            with self._model.cuda.current():
                (seat.out_end if self._copies_out else seat.run_end).synchronise()
                return Split(
                    compute_ns=_ns(seat.run_end.elapsed_ms(seat.run_begin)),
                    h2d_ns=_ns(seat.in_end.elapsed_ms(seat.in_begin)) if self._copies_in else None,
                    d2h_ns=_ns(seat.out_end.elapsed_ms(seat.out_begin)) if self._copies_out else None,
                    by_events=True,
                )
        finally:
            self.seat = None
            self._model.seats.give(seat)

    def settle(self) -> None:
        """Wait for what is in flight, whatever comes of it."""
        if self.seat is not None:
            with suppress(AgentError):
                self.wait()

    def _queue(self, seat: Seat) -> None:
        lane = seat.lane
        if self._copies_in:
            seat.in_begin.record(lane.copy_in)
            for address, array in self._copies_in:
                lane.copy_in.h2d(address, array)
            seat.in_end.record(lane.copy_in)
            lane.compute.wait(seat.in_end)
        seat.run_begin.record(lane.compute)
        seat.run(self.setup, self._model.graphs)
        seat.run_end.record(lane.compute)
        if self._copies_out:
            lane.copy_out.wait(seat.run_end)
            seat.out_begin.record(lane.copy_out)
            for address, array in self._copies_out:
                lane.copy_out.d2h(array, address)
            seat.out_end.record(lane.copy_out)


def _copies(tensors: Mapping[str, NDArray[Any]], staged: Mapping[str, int]) -> tuple[tuple[int, NDArray[Any]], ...]:
    return tuple(
        (staged[name], array.reshape(-1).view(np.uint8))
        for name, array in tensors.items()
        if name in staged and array.size
    )


def _ns(milliseconds: float) -> int:
    return round(milliseconds * 1e6)

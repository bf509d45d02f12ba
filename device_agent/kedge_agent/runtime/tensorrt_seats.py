"""Execution contexts of a model, each with the events of one run: whoever runs takes one, and gives it back.

There are a few more slots than runs in flight, and in a burst many more. A context costs memory and time to make, so
there are as many as slots are kept (two a worker, and one), and a slot that returns gets the one it had: that one is
still set up for it, and has its CUDA graph.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from ..errors import AgentError
from .base import Shapes
from .cuda import Cuda, Event, Graph
from .cuda_lanes import Lane
from .tensorrt_engine import Engine, Profile
from .tensorrt_kernels import Kernels

__all__ = ["Seat", "Seats", "Setup", "set_shapes"]


@dataclass(frozen=True, eq=False)
class Setup:
    """What a context must know before it runs: a profile, shapes of inputs, addresses of all tensors."""

    profile: Profile
    shapes: Shapes
    addresses: Mapping[str, int]


class Seat:
    """A context on a lane, and six events: begin and end of the copies in, of the work, and of the copies out.

    Its methods are called by whoever took it, with the lane's lock held, within `Cuda.current`.
    """

    def __init__(self, cuda: Cuda, loaded: Engine, kernels: Kernels, lane: Lane) -> None:
        self._cuda = cuda
        self._loaded = loaded
        self._kernels = kernels
        self._context = kernels.context()
        self.lane = lane
        self.holder: Setup | None = None
        self.taken = False
        self._generation = -1
        self._runs = 0
        self._graph: Graph | None = None
        with ExitStack() as undo:
            events: list[Event] = []
            for _ in range(6):
                events.append(cuda.event())
                undo.callback(events[-1].close)
            undo.pop_all()
        self.in_begin, self.in_end, self.run_begin, self.run_end, self.out_begin, self.out_end = events
        self._events = events

    def run(self, setup: Setup, graphs: Graphs) -> None:
        """Queue the work in the lane's compute stream: the first time plainly, from the second on as a graph.

        Raises:
            AgentError: TensorRT refuses (kind internal, or bad_input where it is the shapes).
        """
        lane = self.lane
        if self.holder is not setup or self._generation != lane.generation:
            self._set_up(setup)
        if self._graph is None and self._runs > 0 and graphs.wanted:
            self._graph = graphs.capture(self, self._enqueue)
        if self._graph is not None:
            self._graph.launch(lane.compute)
        else:
            self._enqueue()
        self._runs += 1

    def profile_with(self, profiler: Any) -> None:
        """Have TensorRT tell a profiler of each layer, from the next run on; each run then waits for its end."""
        context = self._context
        context.profiler = profiler

    def forget(self) -> None:
        """Let go of buffers that are going away."""
        if self._graph is not None:
            self._graph.close()
        self._graph, self.holder, self._runs = None, None, 0

    def close(self) -> None:
        """Give everything back; idempotent. Nothing may be queued."""
        self.forget()
        for event in self._events:
            event.close()
        self._context = None

    def _enqueue(self) -> None:
        context = self._context
        if not context.execute_async_v3(self.lane.compute.handle):
            raise self._loaded.failed("the inference could not be queued")

    def _set_up(self, setup: Setup) -> None:
        self.forget()
        lane = self.lane
        if self._kernels.own_graphs and self._generation not in (-1, lane.generation):
            # TensorRT for RTX finds its graphs by tensors' addresses and shapes, which are the same; the scratch memory
            # that they work in is not.
            self._context = self._kernels.context()
        context = self._context
        set_shapes(self._loaded, context, setup.profile, setup.shapes, lane)
        context.set_device_memory(lane.scratch.address, lane.scratch.size)
        for name, address in setup.addresses.items():
            if not context.set_tensor_address(name, address):
                raise self._loaded.failed(f"the address of tensor {name!r} was refused")
        self.holder, self._generation = setup, lane.generation


# Another thread that synchronises the device, as loading an engine may, spoils a capture that is no fault of the model.
_FAILURES = 3


class Graphs:
    """Whether runs are captured as CUDA graphs: until a few could not be, then never again, and why."""

    def __init__(self, cuda: Cuda, why_not: str | None) -> None:
        self._cuda = cuda
        self.why_not = why_not if why_not is not None or cuda.graphs else f"{cuda.binding} has none"
        self.captured = 0
        self.failed = 0

    @property
    def wanted(self) -> bool:
        """Whether to try."""
        return self.why_not is None

    def capture(self, seat: Seat, enqueue: Any) -> Graph | None:
        """A graph of what `enqueue` queues, or None where that cannot be captured."""
        try:
            graph = self._cuda.capture(seat.lane.compute, enqueue)
        except AgentError as error:
            self.failed += 1
            if self.failed >= _FAILURES:
                self.why_not = f"{self.failed} runs could not be captured, the last: {error.message}"
            return None
        self.captured += 1
        return graph


class Seats:
    """All seats of a model.

    A seat on the lane with the fewest runs is given, and of those the one that is set up already.
    """

    def __init__(self, seats: Sequence[Seat]) -> None:
        self._seats = tuple(seats)
        self._guard = threading.Lock()

    def take(self, setup: Setup) -> Seat:
        """A free seat.

        Raises:
            AgentError: none is free, because more runs were begun than may be in flight (kind busy).
        """
        with self._guard:
            free = [seat for seat in self._seats if not seat.taken]
            if not free:
                raise AgentError("more runs were begun than this model has contexts for", kind="busy", hint="try again")
            busy = {id(seat.lane): 0 for seat in self._seats}
            for seat in self._seats:
                busy[id(seat.lane)] += seat.taken
            best = min(free, key=lambda seat: (busy[id(seat.lane)], seat.holder is not setup, seat.holder is not None))
            best.taken = True
            return best

    def give(self, seat: Seat) -> None:
        """Give a seat back, when nothing of its run is queued any more."""
        with self._guard:
            seat.taken = False

    def forget(self, setups: Iterable[Setup]) -> None:
        """Buffers go away: no seat may remember them. None of them is in flight."""
        gone = {id(setup) for setup in setups}
        with self._guard:
            for seat in self._seats:
                if seat.holder is not None and id(seat.holder) in gone and not seat.taken:
                    with seat.lane.lock:
                        seat.forget()

    def profile_with(self, profiler: Any) -> None:
        """As `Seat.profile_with`, of all."""
        for seat in self._seats:
            seat.profile_with(profiler)

    def close(self) -> None:
        """Give all contexts back; idempotent."""
        for seat in self._seats:
            seat.close()


def set_shapes(loaded: Engine, context: Any, profile: Profile, shapes: Shapes, lane: Lane) -> None:
    """Tell a context its profile and the shapes of its inputs. With the lane's lock held, within `Cuda.current`.

    A change of profile is queued in the lane's compute stream, where the next run is too: so it comes before it.

    Raises:
        AgentError: TensorRT refuses (kind internal or bad_input).
    """
    if context.active_optimization_profile != profile.index and not context.set_optimization_profile_async(
        profile.index, lane.compute.handle
    ):
        raise loaded.failed(f"optimisation profile {profile.index} was refused")
    for name, shape in shapes.items():
        if not context.set_input_shape(name, shape):
            raise AgentError(
                f"input {name!r} cannot be {list(shape)}: {loaded.heard.last_error('TensorRT does not say why')}"
            )

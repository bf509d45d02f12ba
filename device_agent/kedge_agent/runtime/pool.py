"""Slots of a loaded model: how many requests are inside, who waits, and for how long.

A request has a slot from before its body is received until its answer is sent, so that the bytes of the next one arrive
while the current one computes. Slots are made when they are first needed and kept for reuse; those that only a burst
needed are given back after it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from ..errors import AgentError
from .base import Binding, LoadedModel, Shapes, Slot, Split
from .batching import Batcher
from .turns import Turns

__all__ = ["Marker", "ModelPool", "PoolRetiredError", "PoolRules", "Timing"]


# A slot that so many requests did not need is given back.
_COLD_REQUESTS = 1000


@dataclass
class Timing:
    """Where one request's time went, in nanoseconds of the monotonic clock.

    compute_ns is all of the run, as its caller sees it. h2d_ns, kernel_ns and d2h_ns are the parts of it that a GPU's
    events tell; None where there are none. joined: requests that the run served; led: samples of a run of several, told
    to one of them.
    """

    queue_ns: int = 0
    input_ns: int = 0
    compute_ns: int = 0
    output_ns: int = 0
    h2d_ns: int | None = None
    kernel_ns: int | None = None
    d2h_ns: int | None = None
    joined: int = 1
    led: int = 0

    def split(self, split: Split) -> None:
        """Take over what a run tells of itself."""
        if split.by_events:
            self.h2d_ns, self.kernel_ns, self.d2h_ns = split.h2d_ns, split.compute_ns, split.d2h_ns


@dataclass(frozen=True)
class PoolRules:
    """How a model is served.

    workers: requests that compute at a time. queue: requests that may be inside besides those; one more is refused.
    deadline_ms: how long a request may wait for its turn when it does not say.
    drop_stale: a newer request takes the place of those that wait.
    max_batch, max_delay_us: requests are joined up to so many samples, the first of them waiting so long for others,
        and none may have more; 1: they are not, and may. Only for models whose first dimension counts samples.
    """

    workers: int = 1
    queue: int = 32
    deadline_ms: int = 60_000
    drop_stale: bool = False
    max_batch: int = 1
    max_delay_us: int = 500

    def __post_init__(self) -> None:
        bounds = {
            "workers": (self.workers, 1, 64),
            "queue": (self.queue, 1, 1024),
            "deadline_ms": (self.deadline_ms, 1, 3_600_000),
            "max_batch": (self.max_batch, 1, 4096),
            "max_delay_us": (self.max_delay_us, 0, 10_000_000),
        }
        for name, (value, least, most) in bounds.items():
            if not least <= value <= most:
                raise AgentError(f"{name} is {value}; it goes from {least} to {most}")

    @property
    def most_samples(self) -> int | None:
        """Samples of a run, where the first dimension counts them; None: any number, and none are joined."""
        return self.max_batch if self.max_batch > 1 else None


class Marker(Protocol):
    """Marks for whoever starts this agent again that a run is going on: native code may end the process within it."""

    def enter(self) -> int:
        """A run begins; the seat to give back."""
        ...

    def leave(self, seat: int) -> None:
        """It ended."""
        ...

    def close(self) -> None:
        """There are no more."""
        ...


class _Unmarked:
    def enter(self) -> int:
        return 0

    def leave(self, seat: int) -> None:
        pass

    def close(self) -> None:
        pass


class PoolRetiredError(AgentError):
    """This pool takes no more requests: its model has been replaced or unloaded."""


class ModelPool:
    """A loaded model with its slots; closes when it is retired and the last request has left.

    Args:
        model: the loaded model, which the pool owns from now on.
        rules: how it is served.
        marker: told of every run; the pool closes it.
    """

    def __init__(self, model: LoadedModel, rules: PoolRules | None = None, marker: Marker | None = None) -> None:
        self.model = model
        self._marker: Marker = marker or _Unmarked()
        self._closed = threading.Event()
        self.rules = rules or PoolRules()
        self._turns = Turns(model.in_flight, drop_stale=self.rules.drop_stale)
        self._most = model.in_flight + self.rules.queue
        self._kept = model.in_flight + 1
        self._batcher = (
            Batcher(model, self.rules.max_batch, self.rules.max_delay_us, self._turn)
            if self.rules.most_samples is not None
            else None
        )
        self._guard = threading.Lock()
        self._idle: list[tuple[int, Slot]] = []
        self._requests = 0
        self._running: dict[int, float] = {}
        self._inside = 0
        self._retired = False

    def borrow(self, shapes: Shapes, timing: Timing, stack: contextlib.ExitStack) -> Binding:
        """A slot bound to these shapes for one request, given back when `stack` closes.

        Raises:
            AgentError: the pool has been retired, or too many requests are inside (kind busy), or the model cannot
                take the shapes (kind bad_input).
        """
        start = time.perf_counter_ns()
        slot = self._enter()
        timing.queue_ns += time.perf_counter_ns() - start
        try:
            if slot is None:
                slot = self.model.slot()
            binding = slot.bind(shapes)
        except BaseException:
            self._leave(slot)
            raise
        stack.callback(self._leave, slot)
        return binding

    @contextlib.contextmanager
    def request(self, shapes: Shapes, timing: Timing) -> Iterator[Binding]:
        """As `borrow`, for as long as the context lasts."""
        with contextlib.ExitStack() as stack:
            yield self.borrow(shapes, timing, stack)

    def run(self, binding: Binding, timing: Timing, deadline: float | None = None) -> None:
        """Run a binding when its turn comes, until `deadline` (of `time.monotonic`; None: as the rules have it).

        Raises:
            AgentError: the turn did not come in time (kind busy), or the runtime failed.
        """
        start = time.perf_counter_ns()
        until = time.monotonic() + self.rules.deadline_ms / 1e3 if deadline is None else deadline
        if self._batcher is not None:
            joined = self._batcher.run(binding, until)
            if joined is not None:
                timing.queue_ns += joined.begin_ns - start
                timing.compute_ns += joined.end_ns - joined.begin_ns
                timing.joined, timing.led = joined.members, joined.led
                timing.split(joined.split)
                return
        # As `_turn` does it; a generator would cost as much as all of this.
        self._turns.take(until)
        thread = threading.get_ident()
        self._running[thread] = time.monotonic()
        seat = self._marker.enter()
        try:
            begin = time.perf_counter_ns()
            binding.submit()
            split = binding.wait()
            end = time.perf_counter_ns()
        finally:
            self._marker.leave(seat)
            del self._running[thread]
            self._turns.give()
        timing.queue_ns += begin - start
        timing.compute_ns += end - begin
        timing.split(split)

    @contextlib.contextmanager
    def _turn(self, until: float) -> Iterator[None]:
        self._turns.take(until)
        thread = threading.get_ident()
        self._running[thread] = time.monotonic()
        seat = self._marker.enter()
        try:
            yield
        finally:
            self._marker.leave(seat)
            self._running.pop(thread, None)
            self._turns.give()

    def retire(self) -> None:
        """Take no more requests; close the model when the last one has left."""
        with self._guard:
            # Where requests are inside, the last one closes it; where it was retired before, that has been seen to.
            idle = not self._retired and self._inside == 0
            self._retired = True
        if idle:
            self._close()

    def wait_closed(self, timeout_s: float) -> bool:
        """Wait until a retired model has been closed; False when requests are inside still."""
        return self._closed.wait(timeout_s)

    @property
    def inside(self) -> int:
        """Requests that have a slot now."""
        return self._inside

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn now."""
        return self._turns.waiting()

    def stuck_s(self) -> float:
        """For how many seconds the request that computes longest has done so; 0 when none computes."""
        return max((time.monotonic() - begin for begin in list(self._running.values())), default=0.0)

    def _enter(self) -> Slot | None:
        with self._guard:
            if self._retired:
                raise PoolRetiredError("the model is being replaced", kind="busy", hint="try again")
            if self._inside >= self._most:
                raise AgentError(
                    f"{self._inside} requests are with this model already",
                    kind="busy",
                    hint="send fewer requests at a time, or give the model a longer queue",
                )
            self._inside += 1
            self._requests += 1
            # The last one that was used: its memory is in the caches.
            return self._idle.pop()[1] if self._idle else None

    def _leave(self, slot: Slot | None) -> None:
        spare: Slot | None = None
        with self._guard:
            self._inside -= 1
            finished = self._retired and self._inside == 0
            if slot is not None and not self._retired and len(self._idle) < self._kept:
                if self._idle and self._requests - self._idle[0][0] > _COLD_REQUESTS:
                    # A burst's: what it holds may be as large as that burst's largest request.
                    _, spare = self._idle.pop(0)
                self._idle.append((self._requests, slot))
            else:
                spare = slot
        if spare is not None:
            spare.close()
        if finished:
            self._close()

    def _close(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()
        if self._batcher is not None:
            self._batcher.close()
        self.model.close()
        self._marker.close()
        self._closed.set()

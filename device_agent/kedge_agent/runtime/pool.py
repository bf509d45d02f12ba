"""Slots of a loaded model: how many requests are in flight, who waits, and for how long.

There is one slot more than runs at a time, so that the next request's bytes are received while
the current one computes.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import AgentError
from .base import Binding, LoadedModel, Shapes, Slot

__all__ = ["ModelPool", "PoolRetiredError", "Timing"]


@dataclass
class Timing:
    """Where one request's time went, in nanoseconds of the monotonic clock."""

    queue_ns: int = 0
    input_ns: int = 0
    compute_ns: int = 0
    output_ns: int = 0


class PoolRetiredError(AgentError):
    """This pool takes no more requests: its model has been replaced or unloaded."""


class ModelPool:
    """A loaded model with its slots; closes when it is retired and the last request has left.

    Args:
        model: the loaded model, which the pool owns from now on.
        concurrency: how many requests may compute at a time.
        wait_s: how long a request may wait for a slot, or for its turn to compute.
    """

    def __init__(self, model: LoadedModel, *, concurrency: int = 1, wait_s: float = 60.0) -> None:
        self.model = model
        self._slots: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        self._compute = threading.BoundedSemaphore(concurrency)
        self._wait_s = wait_s
        self._guard = threading.Lock()
        self._in_flight = 0
        self._retired = False
        for _ in range(concurrency + 1):
            self._slots.put(model.slot())

    @contextlib.contextmanager
    def request(self, shapes: Shapes, timing: Timing) -> Iterator[Binding]:
        """Borrow a slot bound to these shapes for one request.

        Raises:
            AgentError: the pool has been retired, or nothing came free in time (kind busy), or
                the model cannot take the shapes (kind bad_input).
        """
        with self._guard:
            if self._retired:
                raise PoolRetiredError("the model is being replaced", kind="busy", hint="try again")
            self._in_flight += 1
        try:
            start = time.perf_counter_ns()
            try:
                slot = self._slots.get(timeout=self._wait_s)
            except queue.Empty:
                raise AgentError(
                    f"no buffer came free within {self._wait_s:g} s", kind="busy", hint="send fewer requests at a time"
                ) from None
            timing.queue_ns += time.perf_counter_ns() - start
            try:
                yield slot.bind(shapes)
            finally:
                self._slots.put(slot)
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._guard:
            self._in_flight -= 1
            finished = self._retired and self._in_flight == 0
        if finished:
            self.model.close()

    def run(self, binding: Binding, timing: Timing) -> None:
        """Run a binding when its turn comes.

        Raises:
            AgentError: the turn did not come in time (kind busy), or the runtime failed.
        """
        start = time.perf_counter_ns()
        if not self._compute.acquire(timeout=self._wait_s):
            raise AgentError(f"the model did not come free within {self._wait_s:g} s", kind="busy")
        try:
            begin = time.perf_counter_ns()
            binding.run()
            end = time.perf_counter_ns()
        finally:
            self._compute.release()
        timing.queue_ns += begin - start
        timing.compute_ns += end - begin

    def retire(self) -> None:
        """Take no more requests; close the model when the last one has left."""
        with self._guard:
            self._retired = True
            idle = self._in_flight == 0
        if idle:
            self.model.close()

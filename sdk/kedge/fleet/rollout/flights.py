"""The tasks that workers have: how many at once, and until when each may be answered.

A task's time is the worker's own, from when it begins there. A host that only submits them must not count what they
wait in a cluster's queue: it hands out no more than run at once, and where workers went away since, each task has the
time of as many turns as the workers that are left need for all: it may wait for others there, or begin anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from .machine import Rollout

__all__ = ["Flight", "Flights", "Threads"]

Threads = Callable[[], int | None]
"""How many tasks run at a time now; None: as many as are handed out (`fleet.executor.Workers.threads`)."""


@dataclass
class Flight:
    """A task that a worker has, or waits for one. until: when it is given up, by the monotonic clock."""

    device: str
    kind: str
    submitted: float
    until: float
    begun: bool = False


class Flights:
    """Of one rollout; its devices' steps tell which have begun.

    Args:
        patience_s: a task's deadline, and how long after it a worker may still answer.
    """

    def __init__(self, rollout: Rollout, threads: Threads, patience_s: float) -> None:
        self._rollout = rollout
        self._ask = threads
        self._patience_s = patience_s
        self._flights: dict[Future[Any], Flight] = {}
        self._threads: int | None = None
        self._none_since: float | None = None

    def __len__(self) -> int:
        return len(self._flights)

    def __iter__(self) -> Iterator[Future[Any]]:
        return iter(self._flights)

    def look(self) -> None:
        """See how many threads there are now, which tasks have begun, and what time each has."""
        now = time.monotonic()
        self._threads = self._ask()
        if self._threads != 0:
            self._none_since = None
        elif self._none_since is None:
            self._none_since = now
        turns = -(-len(self._flights) // self._threads) if self._threads else 1
        for flight in self._flights.values():
            until = flight.submitted + turns * self._patience_s
            if not flight.begun and self._rollout.device(flight.device).step is not None:
                flight.begun, until = True, now + self._patience_s
            flight.until = max(flight.until, until)

    def has_room(self, beside: int) -> bool:
        """Whether one more would run at once, `beside` so many that are about to begin."""
        return self._threads is None or len(self._flights) + beside < self._threads

    @property
    def queued(self) -> bool:
        """Whether tasks may wait in a queue of the workers."""
        return self._threads is not None

    @property
    def deserted_s(self) -> float:
        """For how long there has been no worker at all."""
        return 0.0 if self._none_since is None else time.monotonic() - self._none_since

    def add(self, future: Future[Any], device: str, kind: str) -> None:
        """A task was submitted."""
        now = time.monotonic()
        self._flights[future] = Flight(device, kind, now, now + self._patience_s)

    def left_s(self) -> list[float]:
        """How long each is waited for yet."""
        now = time.monotonic()
        return [flight.until - now for flight in self._flights.values()]

    def landed(self, done: Collection[Future[Any]]) -> list[tuple[Future[Any], Flight]]:
        """Those that are done, in the order in which they were submitted; they are none of these any more."""
        # What is written down must not depend on the order of a set.
        return [(future, self._flights.pop(future)) for future in list(self._flights) if future in done]

    def overdue(self) -> list[tuple[Future[Any], Flight]]:
        """Those that have had their time; they are none of these any more."""
        now = time.monotonic()
        return self.landed({future for future, flight in self._flights.items() if flight.until <= now})

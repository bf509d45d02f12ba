"""Whose turn it is to compute: first come, first served, each with a deadline."""

from __future__ import annotations

import threading
import time
from collections import deque

from ..errors import AgentError

__all__ = ["Turns", "late_error"]


def late_error() -> AgentError:
    """What a request is told whose turn did not come."""
    return AgentError(
        "the model did not come free before the request's deadline",
        kind="busy",
        hint="send fewer requests at a time, or give them longer",
    )


class _Waiter:
    """One who waits; `woken` is held until somebody wakes it."""

    __slots__ = ("granted", "woken")

    def __init__(self) -> None:
        self.granted = False
        self.woken = threading.Lock()
        self.woken.acquire()


class Turns:
    """A counting semaphore that is fair.

    Args:
        count: how many may have a turn at a time.
        drop_stale: whoever comes to wait makes those that wait already give up. A camera's frame is of no use once the
            next one is there.
    """

    def __init__(self, count: int, *, drop_stale: bool = False) -> None:
        self._guard = threading.Lock()
        self._free = count
        self._drop_stale = drop_stale
        self._waiting: deque[_Waiter] = deque()

    def take(self, deadline: float) -> None:
        """Wait for a turn until `deadline` (of `time.monotonic`).

        Raises:
            AgentError: it did not come in time, or a newer request took its place (kind busy).
        """
        with self._guard:
            if self._free and not self._waiting:
                self._free -= 1
                return
            waiter = _Waiter()
            if self._drop_stale:
                while self._waiting:
                    self._waiting.popleft().woken.release()
            self._waiting.append(waiter)
        woken = waiter.woken.acquire(timeout=max(0.0, deadline - time.monotonic()))
        with self._guard:
            if waiter.granted:
                return
            if not woken and waiter in self._waiting:
                self._waiting.remove(waiter)
                raise late_error()
        raise AgentError("a newer request took this one's place (drop_stale)", kind="busy", hint="send the next one")

    def give(self) -> None:
        """End a turn."""
        with self._guard:
            if self._waiting:
                waiter = self._waiting.popleft()
                waiter.granted = True
                waiter.woken.release()
            else:
                self._free += 1

    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

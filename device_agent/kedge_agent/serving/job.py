"""One build of an engine: what happened so far, and how it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import AgentError
from ..formats.passport import Passport
from ..store.engines import StoredEngine

__all__ = ["Job"]

_MAX_EVENTS = 5000
_MAX_EVENTS_AT_ONCE = 500


@dataclass
class Job:
    """key: of the engine. stored: the engine, once it is there. compiler: a pidfd of it, while it runs.

    state: "running", "built", "failed" or "cancelled".
    """

    key: str
    passport: Passport
    stored: StoredEngine | None = None
    state: str = "running"
    error: AgentError | None = None
    cancelled: bool = False
    compiler: int | None = None
    thread: threading.Thread | None = None
    _events: list[dict[str, Any]] = field(default_factory=list)
    _forgotten: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        if self.stored is not None:
            self.state = "built"

    @contextlib.contextmanager
    def watching(self, pid: int) -> Iterator[None]:
        """Hold a handle on the compiler's process: unlike its number, it never means another one."""
        try:
            handle = os.pidfd_open(pid)
        except OSError:  # a kernel before 5.3: the compiler then ends at its next step
            yield
            return
        with self._changed:
            self.compiler = handle
        try:
            yield
        finally:
            with self._changed:
                self.compiler = None
            os.close(handle)

    def stop(self) -> None:
        """End the compiler at once: it may be in a phase in which it says nothing."""
        with self._changed:
            self.cancelled = True
            if self.compiler is not None:
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(self.compiler, signal.SIGKILL)

    def tell(self, event: dict[str, Any]) -> None:
        """Something happened. The last 5,000 events are kept."""
        with self._changed:
            self._events.append(event)
            if len(self._events) > _MAX_EVENTS:
                gone = len(self._events) - _MAX_EVENTS
                del self._events[:gone]
                self._forgotten += gone
            self._changed.notify_all()

    def end(self, state: str) -> None:
        """It ended."""
        with self._changed:
            self.state = state
            self._changed.notify_all()

    def fail(self, error: AgentError, *, cancelled: bool = False) -> None:
        """It ended without an engine."""
        self.error = error
        self.end("cancelled" if cancelled else "failed")

    def watch(self, after: int, wait_s: float) -> dict[str, Any]:
        """What happened after the event number `after`; waits up to `wait_s` seconds for something to happen.

        Raises:
            AgentError: what the build failed of, once all events were seen.
        """
        end = time.monotonic() + wait_s
        with self._changed:
            while self._forgotten + len(self._events) <= after and self.state == "running":
                left = end - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            first = max(after, self._forgotten)
            events = self._events[first - self._forgotten :][:_MAX_EVENTS_AT_ONCE]
            following = first + len(events)
            done = self.state != "running" and following >= self._forgotten + len(self._events)
        if done and self.error is not None:
            raise self.error
        result = dict(self.stored.entry) if done and self.stored is not None else None
        return {"state": self.state if done else "running", "events": events, "next": following, "result": result}

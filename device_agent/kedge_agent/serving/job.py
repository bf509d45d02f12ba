"""What goes on in the background and is followed from the host: its events, and how it ended. Builds of engines."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from ..errors import AgentError
from ..formats.passport import Passport
from ..store.engines import StoredEngine

__all__ = ["RUNNING", "Job", "Progress"]

RUNNING = "running"

_MAX_EVENTS = 5000
_MAX_EVENTS_AT_ONCE = 500


class Progress:
    """What happened so far, numbered from 0, and how it ended. state: RUNNING, or the word for its end."""

    def __init__(self) -> None:
        self.state = RUNNING
        self._events: list[dict[str, Any]] = []
        self._forgotten = 0
        self._changed = threading.Condition()

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

    def events(self, after: int, wait_s: float) -> tuple[list[dict[str, Any]], int, bool]:
        """What happened after the event number `after`; waits up to `wait_s` seconds for something to happen.

        Returns:
            The events, the number to ask for next, and whether it has ended and nothing is left to be told.
        """
        end = time.monotonic() + wait_s
        with self._changed:
            while self._forgotten + len(self._events) <= after and self.state == RUNNING:
                left = end - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            first = max(after, self._forgotten)
            events = self._events[first - self._forgotten :][:_MAX_EVENTS_AT_ONCE]
            following = first + len(events)
            told = following >= self._forgotten + len(self._events)
            return events, following, told and self.state != RUNNING


class Job(Progress):
    """One build of an engine. It ends as "built", "failed" or "cancelled".

    key: of the engine. stored: the engine, once it is there. compiler: a pidfd of it, while it runs.
    """

    def __init__(self, key: str, passport: Passport, stored: StoredEngine | None = None) -> None:
        super().__init__()
        self.key = key
        self.passport = passport
        self.stored = stored
        self.error: AgentError | None = None
        self.cancelled = False
        self.compiler: int | None = None
        self.thread: threading.Thread | None = None
        if stored is not None:
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

    def fail(self, error: AgentError, *, cancelled: bool = False) -> None:
        """It ended without an engine."""
        self.error = error
        self.end("cancelled" if cancelled else "failed")

    def watch(self, after: int, wait_s: float) -> dict[str, Any]:
        """As `events`, for the host.

        Raises:
            AgentError: what the build failed of, once all events were seen.
        """
        events, following, ended = self.events(after, wait_s)
        if ended and self.error is not None:
            raise self.error
        result = dict(self.stored.entry) if ended and self.stored is not None else None
        return {"state": self.state if ended else RUNNING, "events": events, "next": following, "result": result}

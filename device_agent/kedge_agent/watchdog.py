"""Feeds systemd's watchdog, as long as the agent does what it is there for.

A thread that says "alive" while nobody is served any more is worse than none. So each time, a request must have been
answered through the socket that clients use, the threads that accept connections must have gone round, no request may
have been computing for ever, and the GPU, where models are on one, must do what it is asked. Else systemd hears
nothing; after WatchdogSec it ends the agent, and starts it again.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from .systemd import Notifier

__all__ = ["Ticking", "Watchdog", "ask_health"]

_LOG = logging.getLogger("kedge.watchdog")

_TICK_S = 5.0
_HEAD_BYTES = 4096


class Ticking(Protocol):
    """Something that goes round and round."""

    @property
    def last_tick(self) -> float:
        """When it last did, of `time.monotonic`."""
        ...


class Watchdog:
    """A thread that looks twice within each period, and tells systemd when all is well.

    Args:
        notifier: who is told.
        period_s: within which systemd must hear of us.
        ask: makes one request as a client would, within so many seconds; returns what is wrong, or None.
        loops: the accepting threads there are now.
        stuck_s: how long the request that computes longest has done so; 0 when none computes.
        limit_s: how long that may be.
        lost: why no model can compute any more, or None.
    """

    def __init__(
        self,
        notifier: Notifier,
        period_s: float,
        ask: Callable[[float], str | None],
        loops: Callable[[], Iterable[Ticking]],
        stuck_s: Callable[[], float],
        limit_s: Callable[[], float],
        lost: Callable[[], str | None],
    ) -> None:
        self._notifier = notifier
        self._period_s = period_s
        self._ask = ask
        self._loops = loops
        self._stuck_s = stuck_s
        self._limit_s = limit_s
        self._lost = lost
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """Stop watching; idempotent."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def problem(self) -> str | None:
        """What keeps the agent from serving, or None."""
        late = max((time.monotonic() - loop.last_tick for loop in self._loops()), default=0.0)
        if late > _TICK_S:
            return f"no connection has been accepted for {late:.0f} s: the accepting thread is stuck"
        stuck, limit = self._stuck_s(), self._limit_s()
        if stuck > limit:
            return f"a request has been computing for {stuck:.0f} s, more than the {limit:g} s of stuck_s"
        lost = self._lost()
        if lost is not None:
            return f"the GPU is lost to this process: {lost}"
        # With half a period to the next look, the next word is in time even where the answer takes all of this.
        return self._ask(self._period_s / 4)

    def _watch(self) -> None:
        before: str | None = None
        while not self._end.wait(self._period_s / 2):
            try:
                problem = self.problem()
            except Exception as error:  # what cannot be checked is not known to be well
                _LOG.exception("the agent cannot be checked")
                problem = f"{type(error).__name__}: {error}"
            if problem is None:
                self._notifier.alive()
                if before is not None:
                    _LOG.warning("all is well again")
                    self._notifier.status("serving")
            elif before is None:
                _LOG.error("the watchdog is not fed: %s", problem)
                self._notifier.status(f"not well: {problem}")
            before = problem


def ask_health(path: Path, timeout_s: float) -> str | None:
    """GET /v2/health/live through a Unix socket; what is wrong, or None when an answer came.

    A door that is full answers too: "503, close some" is the work of a thread that accepts.
    """
    deadline = time.monotonic() + timeout_s
    head = b""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(timeout_s)
            client.connect(str(path))
            # A door that is full has answered and hung up before it read anything.
            with contextlib.suppress(BrokenPipeError):
                client.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")
            while b"\r\n" not in head and len(head) < _HEAD_BYTES:
                client.settimeout(max(deadline - time.monotonic(), 0.001))
                got = client.recv(_HEAD_BYTES)
                if not got:
                    break
                head += got
    except OSError as error:
        return f"{path.name} does not answer within {timeout_s:g} s: {error}"
    status = head.split(b"\r\n", 1)[0].decode("latin-1")
    if status.split(" ")[1:2] not in (["200"], ["503"]):
        return f"{path.name} answers {status[:80]!r}"
    return None

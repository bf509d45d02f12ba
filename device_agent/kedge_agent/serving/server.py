"""Listeners, the threads behind them, and how they end: a connection a thread, bounded, drained before the last."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ..errors import AgentError
from ..wire import DOOR_BUFFER_BYTES
from .connection import Connection, refuse, tell_crowded
from .http import Handler
from .limits import Limits

__all__ = ["HTTPServer", "tcp_listener", "unix_listener"]

_LOG = logging.getLogger("kedge.http")

_BACKLOG = 128
_TICK_MS = 500
_REST_S = 0.05
# Connections beyond the limit that are heard out at a time; the others are told and hung up on.
_REFUSALS = 16
_PEERCRED = struct.Struct("3i")


def unix_listener(path: Path) -> socket.socket:
    """A listening Unix socket of mode 0660; one that lies there already is replaced."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o660)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def tcp_listener(port: int) -> socket.socket:
    """A listening TCP socket on 127.0.0.1, and on nothing else.

    Raises:
        AgentError: the port is taken (busy), or not ours to take (forbidden).
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        kind = "forbidden" if isinstance(error, PermissionError) else "busy"
        raise AgentError(
            f"port {port} of localhost cannot be listened on: {error.strerror}",
            kind=kind,
            hint="name another tcp_port in the agent's settings",
        ) from error
    return listener


class HTTPServer:
    """Serves `handler` on a listener, a thread a connection.

    Args:
        listener: which the server owns from now on.
        handler: called for every request.
        limits: may be replaced while it serves; connections that are open keep to the new ones from their next request.
        allowed: called with a peer's process id, user id and group id; False closes the connection. Unix sockets only.
        door: what requests say they came in by.

    last_tick: when the accepting thread last went round, of `time.monotonic`.
    """

    def __init__(
        self,
        listener: socket.socket,
        handler: Handler,
        limits: Limits | None = None,
        allowed: Callable[[int, int, int], bool] | None = None,
        door: str = "infer",
    ) -> None:
        self.limits = limits or Limits()
        self.last_tick = time.monotonic()
        self._listener = listener
        self._handler = handler
        self._allowed = allowed
        self._door = door
        self._guard = threading.Condition()
        self._busy: dict[socket.socket, bool] = {}
        self._draining = False
        self._refusing = threading.BoundedSemaphore(_REFUSALS)
        self._ending = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._accept, name=f"accept-{door}", daemon=True)

    def start(self) -> None:
        """Begin to accept."""
        self._thread.start()

    def drain(self, timeout_s: float) -> bool:
        """Accept nothing more, end idle connections, and wait for the requests inside; True when all have ended."""
        self._stop_accepting()
        deadline = time.monotonic() + timeout_s
        with self._guard:
            for connection, busy in self._busy.items():
                if not busy:
                    # What has arrived already can still be read, and is served; then the end is seen.
                    with contextlib.suppress(OSError):
                        connection.shutdown(socket.SHUT_RD)
            return self._guard.wait_for(lambda: not self._busy, max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """Accept nothing more and cut what is left; idempotent."""
        self._stop_accepting()
        with self._guard:
            for connection in self._busy:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._guard.wait_for(lambda: not self._busy, 5.0)

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._busy)

    def _stop_accepting(self) -> None:
        with self._ending:
            self._draining = True
            if self._thread.is_alive():
                os.eventfd_write(self._wake, 1)
                self._thread.join()
            if self._wake >= 0:
                os.close(self._wake)
                self._wake = -1
            self._listener.close()

    def _accept(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        self._listener.setblocking(False)
        while True:
            ending = self._draining
            # Also when it is to end: whoever has connected was not refused, and may have asked. A backlog's worth a
            # round, for who connects without end must not keep this from ending, and the watchdog from being fed.
            for _ in range(_BACKLOG):
                if not self._accept_one():
                    break
            if ending:
                return
            poll.poll(_TICK_MS)
            self.last_tick = time.monotonic()

    def _accept_one(self) -> bool:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            # Out of descriptors, mostly: what is open goes on, and may end.
            _LOG.error("%s: no connection can be accepted: %s", self._door, error)
            time.sleep(_REST_S)
            return False
        self._admit(connection)
        return True

    def _admit(self, connection: socket.socket) -> None:
        if not self._may_enter(connection):
            connection.close()
            return
        with self._guard:
            entered = len(self._busy) < self.limits.connections
            if entered:
                self._busy[connection] = False
        if not entered and not self._refusing.acquire(blocking=False):
            tell_crowded(connection, self.limits.connections)
            connection.close()
            return
        try:
            serve = self._serve if entered else self._refuse
            threading.Thread(target=serve, args=(connection,), daemon=True).start()
        except RuntimeError as error:  # no thread can be started
            _LOG.error("%s: %s", self._door, error)
            if not entered:
                self._refusing.release()
            self._forget(connection)

    def _refuse(self, connection: socket.socket) -> None:
        # In a thread: an answer is lost when its connection is closed before the question was read.
        try:
            refuse(connection, self.limits.connections)
        finally:
            connection.close()
            self._refusing.release()

    def _may_enter(self, connection: socket.socket) -> bool:
        if self._allowed is None:
            return True
        try:
            raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
            return self._allowed(*_PEERCRED.unpack(raw))
        except Exception:  # an exception here would end the thread that accepts connections
            _LOG.exception("a peer could not be checked, and is refused")
            return False

    def _serve(self, connection: socket.socket) -> None:
        try:
            if connection.family == socket.AF_INET:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            else:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, DOOR_BUFFER_BYTES)
            Connection(
                connection,
                self._door,
                self._handler,
                lambda: self.limits,
                lambda: self._draining,
                lambda busy: self._mark(connection, busy),
            ).serve()
        except Exception:  # the thread must end by giving its place back
            _LOG.exception("%s: connection failed", self._door)
        finally:
            self._forget(connection)

    def _mark(self, connection: socket.socket, busy: bool) -> None:
        self._busy[connection] = busy
        if self._draining and not busy:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RD)

    def _forget(self, connection: socket.socket) -> None:
        with self._guard:
            self._busy.pop(connection, None)
            self._guard.notify_all()
        connection.close()

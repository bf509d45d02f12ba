"""What two agents say to each other while one takes the other's place: lines of JSON through a pair of sockets."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from collections.abc import Mapping
from typing import Any

from .wire import WireError, parse_json

__all__ = ["Link"]

_MAX_LINE = 256 * 1024


class Link:
    """One end; the other is in another process. Both sides know that the other has gone when its messages end."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = b""

    def tell(self, **message: Any) -> None:
        """Say something; nobody may be there to hear it."""
        with contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def hear(self, timeout_s: float | None, also: int | None = None) -> Mapping[str, Any] | None:
        """The next message; None when the other side has gone.

        Args:
            timeout_s: how long to wait for it; None: for ever.
            also: a file descriptor; when there is something to read from it, the wait ends.

        Raises:
            TimeoutError: it did not come in time.
            InterruptedError: `also` has something to read.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left = None if end is None else max(0.0, end - time.monotonic())
            watched = [self._socket.fileno(), *([also] if also is not None else [])]
            readable, _, _ = select.select(watched, [], [], left)
            if not readable:
                raise TimeoutError
            if self._socket.fileno() not in readable:
                raise InterruptedError
            try:
                data = self._socket.recv(65536)
            except ConnectionResetError:
                return None
            if not data or len(self._buffer) > _MAX_LINE:
                return None
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        try:
            message = parse_json(line, floats=True)
        except WireError:
            return None
        return message if isinstance(message, dict) else None

    def close(self) -> None:
        """Hang up; idempotent."""
        self._socket.close()

"""A socket under deadlines: the kernel is asked once where once will do, and nobody waits beyond their time.

The socket never blocks. Python's own timeouts would do the same with three calls of the system for each operation.
"""

from __future__ import annotations

import math
import select
import socket
import time
from collections.abc import Sequence

from .http import Buffer

__all__ = ["Link"]

_MAX_BUFFERS = 16


class Link:
    """One end of a connection. Deadlines are moments of `time.monotonic`; past one, TimeoutError is raised."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._in, self._out = select.poll(), select.poll()
        self._in.register(connection, select.POLLIN)
        self._out.register(connection, select.POLLOUT)

    def peek(self, size: int, deadline: float) -> bytes:
        """The next bytes, at most `size`, which stay where they are; none at the end."""
        while True:
            # As a rule nothing has come yet: to wait first spares a call.
            _wait(self._in, deadline)
            try:
                return self._socket.recv(size, socket.MSG_PEEK)
            except BlockingIOError:
                continue

    def take(self, size: int) -> bytes:
        """Bytes that were peeked at."""
        data = self._socket.recv(size)
        while len(data) < size:
            data += self._socket.recv(size - len(data))
        return data

    def fill(self, view: memoryview, deadline: float) -> int:
        """Receive into the front of `view`; how many bytes, 0 at the end."""
        while True:
            try:
                return self._socket.recv_into(view)
            except BlockingIOError:
                _wait(self._in, deadline)

    def send(self, buffers: Sequence[Buffer], deadline: float) -> None:
        """Send buffers from where they lie."""
        views = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        while views:
            try:
                sent = self._socket.sendmsg(views[:_MAX_BUFFERS])
            except BlockingIOError:
                _wait(self._out, deadline)
                continue
            while views and sent >= len(views[0]):
                sent -= len(views.pop(0))
            if sent:
                views[0] = views[0][sent:]

    def linger(self, deadline: float, scratch: memoryview) -> None:
        """Say that nothing more comes, and drop what the peer still sends until it hangs up."""
        self._socket.shutdown(socket.SHUT_WR)
        while self.fill(scratch, deadline):
            if time.monotonic() >= deadline:
                return


def _wait(poll: select.poll, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0 or not poll.poll(math.ceil(left * 1e3)):
        raise TimeoutError

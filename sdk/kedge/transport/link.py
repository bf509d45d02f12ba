"""How messages of a push go out: no faster than they may, and with their rate known."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from kedge_agent.wire import MESSAGE_HEADER, Message

from .base import Channel, Deadline

__all__ = ["Link", "Pace"]

# The least that a limited push sends at once: more often would cost more than it evens out.
_PORTION_S = 0.05
# What fills the window of a channel goes as fast as it is given.
_BUFFERED_BYTES = 2 << 20
_TELLING_BYTES = 4 << 20
_MOST_AT_ONCE_BYTES = 1 << 20


class Pace:
    """A limit of bytes a second, of all channels of a push together.

    Args:
        limit_bytes_per_s: None: there is none.
        deadline: after which no more is sent; None: there is none.
    """

    def __init__(self, limit_bytes_per_s: int | None, deadline: Deadline | None = None) -> None:
        self.limit_bytes_per_s = limit_bytes_per_s
        self._deadline = deadline
        self._guard = threading.Lock()
        self._allowed = 0.0

    def portion_bytes(self, size: int) -> int:
        """How much of so many bytes may be sent at once."""
        limit = math.inf if self.limit_bytes_per_s is None else self.limit_bytes_per_s * _PORTION_S
        return max(1, int(min(size, limit, _MOST_AT_ONCE_BYTES)))

    def wait(self, size: int) -> None:
        """Until so many bytes may be sent.

        Raises:
            UnreachableError: the deadline has passed.
        """
        if self._deadline is not None:
            self._deadline.remaining()
        if self.limit_bytes_per_s is None:
            return
        with self._guard:
            # What was not used yet may be used later, but no more than a portion of it at once.
            now = time.monotonic()
            self._allowed = max(self._allowed, now - _PORTION_S)
            pause_s = max(0.0, self._allowed - now)
            self._allowed += size / self.limit_bytes_per_s
        time.sleep(pause_s)


class Link:
    """Sends messages through a channel, and knows how fast that went.

    Args:
        told: called each time that a part of a frame was sent.
    """

    def __init__(self, channel: Channel, pace: Pace, told: Callable[[], None] = lambda: None) -> None:
        self._channel = channel
        self._pace = pace
        self._told = told
        self._sent = 0
        self._bytes = 0
        self._seconds = 0.0

    def send(self, kind: Message, header: bytes = b"", data: bytes | memoryview = b"") -> None:
        """Send a message, whose payload is the header and the data.

        Raises:
            OSError: the link broke. UnreachableError: the deadline has passed.
        """
        self._all(MESSAGE_HEADER.pack(kind, len(header) + len(data)) + header)
        portion = self._pace.portion_bytes(len(data))
        for start in range(0, len(data), portion):
            begin = time.monotonic()
            part = data[start : start + portion]
            self._all(part)
            if kind is Message.FRAME:
                self._sent += len(part)
                if self._sent > _BUFFERED_BYTES:
                    self._bytes += len(part)
                    self._seconds += time.monotonic() - begin
                self._told()

    def rate(self) -> float | None:
        """Bytes a second that the link took while it was given some; None while they tell of buffers alone."""
        return self._bytes / max(self._seconds, 1e-6) if self._sent >= _TELLING_BYTES else None

    def _all(self, data: bytes | memoryview) -> None:
        self._pace.wait(len(data))
        self._channel.sendall(data)

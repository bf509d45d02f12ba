"""A channel in memory to something that answers at once, on the thread that sends to it."""

from __future__ import annotations

import io
import math
import threading
import time
from collections.abc import Callable
from typing import BinaryIO, Literal

__all__ = ["MemoryChannel"]


class MemoryChannel:
    """See `kedge.transport.base.Channel`. What is sent is taken at once; what that makes the other end say can be read.

    An OSError of the taker's is the other end hanging up: what it had said before can still be read.
    """

    window_bytes_per_s = math.inf

    def __init__(self) -> None:
        self._take: Callable[[memoryview], None] = lambda data: None
        self._changed = threading.Condition()
        self._said = bytearray()
        self._closed = False
        self._timeout_s: float | None = None

    def attach(self, take: Callable[[memoryview], None]) -> None:
        """Who takes what is sent."""
        self._take = take

    def say(self, data: bytes) -> None:
        """The other end says something."""
        with self._changed:
            self._said += data
            self._changed.notify_all()

    def sendall(self, data: bytes | memoryview, /) -> None:
        """See `Channel.sendall`."""
        if self._closed:
            raise BrokenPipeError("the channel is closed")
        try:
            self._take(memoryview(data))
        except OSError:
            self.close()
            raise

    def recv(self, size: int, /) -> bytes:
        """See `Channel.recv`."""
        until = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        with self._changed:
            while not self._said and not self._closed:
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError("nothing came in time")
                self._changed.wait(left)
            data = bytes(self._said[:size])
            del self._said[:size]
            return data

    def makefile(self, mode: Literal["rb"], /) -> BinaryIO:
        """See `Channel.makefile`."""
        return io.BufferedReader(_Raw(self))

    def settimeout(self, seconds: float | None, /) -> None:
        """See `Channel.settimeout`."""
        self._timeout_s = seconds

    def close(self) -> None:
        """See `Channel.close`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def end(self, timeout_s: float) -> tuple[int | None, str]:
        """See `Channel.end`."""
        return 0, ""


class _Raw(io.RawIOBase):
    def __init__(self, channel: MemoryChannel) -> None:
        super().__init__()
        self._channel = channel

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._channel.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)

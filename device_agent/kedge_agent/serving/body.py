"""Bodies of requests: as they come through a socket, and compressed ones inflated.

A body goes from the kernel to the memory that the handler names. The first of its bytes were seen when the head was
looked at; what is text is taken from there, and what is to be in a place of its own is received once more.
"""

from __future__ import annotations

import contextlib
import threading
import time
import zlib
from typing import Protocol

from ..errors import AgentError
from .head import Head
from .link import Link

__all__ = ["InflatedBody", "SocketBody", "Terms"]

_INFLATE_STEP_BYTES = 64 * 1024
# A megabyte may inflate to a thousand, and compressing tensors pays on no link that is slower than this one.
_MAX_INFLATED_BYTES = 64 * 1024 * 1024
# Inflated bodies are in memory until their requests end.
_INFLATING = threading.BoundedSemaphore(4)
_SHORT = "the request's body is shorter than its header says"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Terms(Protocol):
    """What a connection asks its server for."""

    @property
    def header_bytes(self) -> int:
        """The longest head."""
        ...

    @property
    def body_bytes(self) -> int:
        """The longest body, as it travels and inflated."""
        ...

    @property
    def idle_s(self) -> float:
        """How long a connection may be silent between requests."""
        ...

    @property
    def slowest_bytes_per_s(self) -> int:
        """A body must arrive, and a response be taken, at this rate at least."""
        ...

    @property
    def grace_s(self) -> float:
        """And it may take so much longer; a head has no more than this."""
        ...


class SocketBody:
    """A body as it comes.

    Args:
        ahead: the first of its bytes, which were peeked at with the head, and are in the socket still.
        owed: bytes before them that are in the socket still.
    """

    def __init__(self, link: Link, terms: Terms, head: Head, ahead: bytes, owed: int) -> None:
        self._link = link
        self._slowest = terms.slowest_bytes_per_s
        self._grace_s = terms.grace_s
        self._owes_continue = head.expects_continue
        self._deadline: float | None = None
        self._ahead = ahead
        self._owed = owed
        self.left = head.content_length
        self.broken = False

    @property
    def unasked(self) -> bool:
        """The client waits to be told to send."""
        return self._owes_continue and self.left > 0

    def text(self, size: int, /) -> bytes:
        """See `http.Body`."""
        if size <= len(self._ahead) and size <= self.left:
            data, self._ahead = self._ahead[:size], self._ahead[size:]
            self._owed += size
            self.left -= size
            return data
        buffer = bytearray(size)
        self.into(memoryview(buffer))
        return bytes(buffer)

    def into(self, view: memoryview, /) -> None:
        """See `http.Body`."""
        size = len(view)
        if size > self.left:
            raise AgentError(_SHORT)
        self.settle()
        # One deadline for all of the body: who sends a byte now and then would hold a slot for ever.
        if self._deadline is None:
            self._deadline = time.monotonic() + self._grace_s + self.left / self._slowest
        deadline = self._deadline
        try:
            if self._owes_continue:
                self._owes_continue = False
                self._link.send([_CONTINUE], deadline)
            done = 0
            while done < size:
                got = self._link.fill(view[done:] if done else view, deadline)
                if not got:
                    raise ConnectionError
                done += got
                self.left -= got
        except TimeoutError:
            self.broken = True
            raise AgentError("the request's body did not arrive in time") from None
        except OSError:
            self.broken = True
            raise AgentError("the connection closed within the request's body") from None

    def settle(self) -> None:
        """Take what has been read already out of the socket."""
        if self._owed:
            owed, self._owed, self._ahead = self._owed, 0, b""
            self._link.take(owed)


class InflatedBody:
    """A compressed body. All of it is inflated into memory when it is first asked for: only then is its size known."""

    def __init__(self, source: SocketBody, encoding: str, limit_bytes: int, stack: contextlib.ExitStack) -> None:
        self._source = source
        self._stack = stack
        self._encoding = encoding
        self._limit_bytes = min(limit_bytes, _MAX_INFLATED_BYTES)
        self._data: memoryview | None = None
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes, inflated."""
        return len(self._inflated()) - self._at

    def text(self, size: int, /) -> bytes:
        """See `http.Body`."""
        data = self._inflated()[self._at : self._at + size]
        if len(data) < size:
            raise AgentError(_SHORT)
        self._at += size
        return bytes(data)

    def into(self, view: memoryview, /) -> None:
        """See `http.Body`."""
        data, end = self._inflated(), self._at + len(view)
        if end > len(data):
            raise AgentError(_SHORT)
        view[:] = data[self._at : end]
        self._at = end

    def _inflated(self) -> memoryview:
        if self._data is None:
            if not _INFLATING.acquire(blocking=False):
                raise AgentError(
                    "too many compressed bodies are being taken at a time",
                    kind="busy",
                    hint="try again, or send it as it is",
                )
            self._stack.callback(_INFLATING.release)
            self._data = memoryview(self._inflate())
        return self._data

    def _inflate(self) -> bytearray:
        source, encoding, limit_bytes = self._source, self._encoding, self._limit_bytes
        # 47: gzip or zlib, as the data say. Some senders of "deflate" leave zlib's header out; RFC 9110 does not.
        inflater = zlib.decompressobj(47 if encoding == "gzip" else 15)
        data = bytearray()
        step = memoryview(bytearray(_INFLATE_STEP_BYTES))
        try:
            while source.left:
                part = step[: min(len(step), source.left)]
                source.into(part)
                pending: bytes | memoryview = part
                while pending:
                    data += inflater.decompress(pending, limit_bytes + 1 - len(data))
                    if len(data) > limit_bytes:
                        raise AgentError(f"the body inflates to more than {limit_bytes} bytes", kind="too_large")
                    pending = inflater.unconsumed_tail
                if inflater.unused_data:
                    raise AgentError(f"the body goes on after its {encoding} data")
            data += inflater.flush()
        except zlib.error as error:
            raise AgentError(f"the body is not {encoding}: {error}") from None
        if not inflater.eof:
            raise AgentError(f"the {encoding} data of the body end early")
        return data

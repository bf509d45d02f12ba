"""One HTTP/1.1 connection: heads are read no further than they go, bodies into memory that the handler names.

The first bytes of a request are looked at (MSG_PEEK) before they are taken, so that none of a body ends up in a buffer
of ours: what follows the head goes from the kernel to where the runtime reads it.
"""

from __future__ import annotations

import contextlib
import http
import json
import logging
import socket
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Protocol

from .. import __version__
from ..errors import AgentError
from ..wire import FAULTS
from .head import Head, HeadError, parse_head
from .http import Buffer, Handler, Request, Response, json_response

__all__ = ["Connection", "Terms", "refuse", "tell_crowded"]

_LOG = logging.getLogger("kedge.http")

_PEEK_BYTES = 4096
_GRACE_S = 20.0
_DRAIN_LIMIT_BYTES = 1024 * 1024
_INFLATE_STEP_BYTES = 64 * 1024
# A megabyte may inflate to a thousand, and compressing tensors pays on no link that is slower than this one.
_MAX_INFLATED_BYTES = 64 * 1024 * 1024
_LINGER_S = 0.2
# Inflated bodies are in memory until their requests end.
_INFLATING = threading.BoundedSemaphore(4)
_SHORT = "the request's body is shorter than its header says"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_REASONS = {status.value: status.phrase for status in http.HTTPStatus}


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


class _SocketBody:
    """A body as it comes."""

    def __init__(self, connection: socket.socket, terms: Terms, head: Head) -> None:
        self._connection = connection
        self._slowest = terms.slowest_bytes_per_s
        self._owes_continue = head.expects_continue
        self._deadline: float | None = None
        self.left = head.content_length
        self.broken = False

    @property
    def unasked(self) -> bool:
        """The client waits to be told to send."""
        return self._owes_continue and self.left > 0

    def into(self, view: memoryview, /) -> None:
        size = len(view)
        if size > self.left:
            raise AgentError(_SHORT)
        # One deadline for all of the body: who sends a byte now and then would hold a slot for ever.
        if self._deadline is None:
            self._deadline = time.monotonic() + _GRACE_S + self.left / self._slowest
        deadline = self._deadline
        connection = self._connection
        try:
            if self._owes_continue:
                self._owes_continue = False
                _send_all(connection, [_CONTINUE], self._slowest)
            done = 0
            while done < size:
                _limit(connection, deadline)
                got = connection.recv_into(view[done:] if done else view)
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


class _InflatedBody:
    """A compressed body. All of it is inflated into memory when it is first asked for: only then is its size known."""

    def __init__(self, source: _SocketBody, encoding: str, limit_bytes: int, stack: contextlib.ExitStack) -> None:
        self._source = source
        self._stack = stack
        self._encoding = encoding
        self._limit_bytes = min(limit_bytes, _MAX_INFLATED_BYTES)
        self._data: memoryview | None = None
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._inflated()) - self._at

    def into(self, view: memoryview, /) -> None:
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


class Connection:
    """Serves requests on a socket until either side has had enough.

    Args:
        handler: called for every request.
        terms: asked anew for every request.
        draining: whether this connection is to end after the request in hand.
        busy: told True when a request begins, and False when its response is sent.
    """

    def __init__(
        self,
        connection: socket.socket,
        door: str,
        handler: Handler,
        terms: Callable[[], Terms],
        draining: Callable[[], bool],
        busy: Callable[[bool], None],
    ) -> None:
        self._connection = connection
        self._door = door
        self._handler = handler
        self._ask_terms = terms
        self._draining = draining
        self._busy = busy
        self._keep = True

    def serve(self) -> None:
        """Serve until the connection ends. Raises nothing that the peer can cause."""
        with contextlib.suppress(OSError):
            while self._keep:
                terms = self._ask_terms()
                try:
                    raw = self._read_head(terms)
                    if raw is None:
                        return
                    self._busy(True)
                    head = parse_head(raw)
                    if head.content_length > terms.body_bytes:
                        raise HeadError(f"a body of {head.content_length} bytes is over the limit", 413)
                except HeadError as error:
                    self._keep = False
                    kind = "too_large" if error.status == 413 else "bad_input"
                    body = {"error": str(error), "hint": error.hint, "kind": kind}
                    self._send(json_response(body, error.status), terms)
                    _linger(self._connection)
                    return
                self._serve_one(head, terms)
                self._busy(False)

    def _read_head(self, terms: Terms) -> bytearray | None:
        """A head without its last empty line; None when the connection ended before one began."""
        connection = self._connection
        head = bytearray()
        deadline = time.monotonic() + terms.idle_s
        while True:
            _limit(connection, deadline)
            seen = connection.recv(_PEEK_BYTES, socket.MSG_PEEK)
            if not seen:
                return None
            if not head:
                deadline = time.monotonic() + _GRACE_S
            known = len(head)
            # The end may straddle what came before and what comes now.
            tail = bytes(head[-3:]) + seen
            end = tail.find(b"\r\n\r\n")
            take = len(seen) if end < 0 else end + 4 - min(3, known)
            head += connection.recv(take)
            if len(head) > terms.header_bytes:
                raise HeadError(f"the head is longer than {terms.header_bytes} bytes", 431)
            if end >= 0:
                # RFC 9112, 2.2: an empty line before the request line is to be passed over.
                while head.startswith(b"\r\n"):
                    del head[:2]
                if len(head) < 4:
                    head.clear()
                    continue
                del head[-4:]
                return head

    def _serve_one(self, head: Head, terms: Terms) -> None:
        raw = _SocketBody(self._connection, terms, head)
        self._keep = head.keep_alive
        with contextlib.ExitStack() as stack:
            response = self._answer(head, raw, terms, stack)
            if raw.left:
                self._finish_body(raw)
            if self._draining():
                self._keep = False
            self._send(response, terms)
        if not self._keep:
            _linger(self._connection)

    def _answer(self, head: Head, raw: _SocketBody, terms: Terms, stack: contextlib.ExitStack) -> Response:
        try:
            body = raw if head.encoding == "identity" else _InflatedBody(raw, head.encoding, terms.body_bytes, stack)
            return self._handler(Request(head.method, head.path, head.query, head.headers, body, self._door, stack))
        except AgentError as error:
            if error.kind == "internal":
                _LOG.error("%s %s: %s", head.method, head.path, error)
            return json_response(error.to_json(), FAULTS[error.kind].status)
        except Exception as error:  # the server must outlive any handler
            _LOG.exception("%s %s", head.method, head.path)
            name = type(error).__name__
            return json_response(
                {"error": f"internal error: {name}", "hint": "see the agent's log", "kind": "internal"}, 500
            )

    def _finish_body(self, body: _SocketBody) -> None:
        # A short rest is read so that the connection can go on; a long one, or one not yet sent, is not worth it.
        if body.broken or body.unasked or body.left > _DRAIN_LIMIT_BYTES:
            self._keep = False
            return
        try:
            body.into(memoryview(bytearray(body.left)))
        except (AgentError, OSError):
            self._keep = False

    def _send(self, response: Response, terms: Terms) -> None:
        size = sum(len(buffer) for buffer in response.buffers)
        lines = [
            f"HTTP/1.1 {response.status} {_REASONS.get(response.status, '')}",
            f"Server: kedge-agent/{__version__}",
            f"Content-Type: {response.content_type}",
            f"Content-Length: {size}",
            *(f"{name}: {value}" for name, value in response.headers),
        ]
        if not self._keep:
            lines.append("Connection: close")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        _send_all(self._connection, [head, *response.buffers], terms.slowest_bytes_per_s)


def refuse(connection: socket.socket, most: int) -> None:
    """Answer a connection that is one too many, and hear it out; the caller closes it."""
    tell_crowded(connection, most)
    _linger(connection)


def tell_crowded(connection: socket.socket, most: int) -> None:
    """Answer a connection that is one too many, whatever it asks, without waiting for it."""
    error = AgentError(f"{most} connections are open already", kind="busy", hint="close some, then try again")
    body = json.dumps(error.to_json()).encode()
    head = (
        f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode()
    with contextlib.suppress(OSError):
        # Into an empty send buffer: it takes as much at once.
        connection.setblocking(False)
        connection.send(head + body)


def _linger(connection: socket.socket) -> None:
    # Closing with bytes unread resets the connection, and the peer may lose the answer that is on its way to it.
    deadline = time.monotonic() + _LINGER_S
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        spent = memoryview(bytearray(_INFLATE_STEP_BYTES))
        while True:
            _limit(connection, deadline)
            if not connection.recv_into(spent):
                return


def _limit(connection: socket.socket, deadline: float) -> None:
    """Have the next operation end by `deadline` (of `time.monotonic`).

    Raises:
        TimeoutError: it has passed.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)


def _send_all(connection: socket.socket, buffers: Sequence[Buffer], slowest_bytes_per_s: int) -> None:
    """Send buffers from where they lie.

    Raises:
        OSError: the peer is gone, or does not take them in time.
    """
    views = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
    deadline = time.monotonic() + _GRACE_S + sum(map(len, views)) / slowest_bytes_per_s
    while views:
        _limit(connection, deadline)
        sent = connection.sendmsg(views[:16])
        while views and sent >= len(views[0]):
            sent -= len(views.pop(0))
        if sent:
            views[0] = views[0][sent:]

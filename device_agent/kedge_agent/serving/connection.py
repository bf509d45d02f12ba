"""One HTTP/1.1 connection: heads are read no further than they go, bodies into memory that the handler names.

The first bytes of a request are looked at (MSG_PEEK) before they are taken, so that a body need not be copied: what
follows head and JSON goes from the kernel to where the runtime reads it.
"""

from __future__ import annotations

import contextlib
import http
import json
import logging
import socket
import time
from collections.abc import Callable

from .. import __version__
from ..errors import AgentError
from ..wire import FAULTS
from .body import InflatedBody, SocketBody, Terms
from .head import NO_HEAD, Head, HeadError, parse_head
from .http import Handler, Request, Response, json_response
from .link import Link

__all__ = ["Connection", "refuse", "tell_crowded"]

_LOG = logging.getLogger("kedge.http")

_PEEK_BYTES = 4096
_DRAIN_LIMIT_BYTES = 1024 * 1024
_DRAIN_STEP_BYTES = 64 * 1024
_LINGER_S = 0.2
_REASONS = {status.value: status.phrase for status in http.HTTPStatus}


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
        self._link = Link(connection)
        self._door = door
        self._handler = handler
        self._ask_terms = terms
        self._draining = draining
        self._busy = busy
        self._keep = True
        self._last_raw = bytearray()
        self._last_head = NO_HEAD

    def serve(self) -> None:
        """Serve until the connection ends. Raises nothing that the peer can cause."""
        with contextlib.suppress(OSError):
            while self._keep:
                terms = self._ask_terms()
                try:
                    found = self._read_head(terms)
                    if found is None:
                        return
                    raw, ahead, owed = found
                    self._busy(True)
                    if raw != self._last_raw:
                        # A client that streams sends the same head again and again.
                        self._last_head, self._last_raw = parse_head(raw), raw
                    head = self._last_head
                    if head.content_length > terms.body_bytes:
                        raise HeadError(f"a body of {head.content_length} bytes is over the limit", 413)
                except HeadError as error:
                    self._keep = False
                    kind = "too_large" if error.status == 413 else "bad_input"
                    body = {"error": str(error), "hint": error.hint, "kind": kind}
                    self._send(json_response(body, error.status), terms)
                    _linger(self._link)
                    return
                self._serve_one(head, SocketBody(self._link, terms, head, ahead, owed), terms)
                self._busy(False)

    def _read_head(self, terms: Terms) -> tuple[bytearray, bytes, int] | None:
        """A head without its last empty line; what was seen beyond it; and how many bytes before that are to be taken.

        None when the connection ended before a head began.
        """
        link = self._link
        head = bytearray()
        deadline = time.monotonic() + terms.idle_s
        while True:
            seen = link.peek(_PEEK_BYTES, deadline)
            if not seen:
                return None
            if not head:
                deadline = time.monotonic() + terms.grace_s
            known = len(head)
            # The end may straddle what came before and what comes now.
            tail = bytes(head[-3:]) + seen
            end = tail.find(b"\r\n\r\n")
            owed = len(seen) if end < 0 else end + 4 - min(3, known)
            head += seen[:owed]
            if len(head) > terms.header_bytes:
                raise HeadError(f"the head is longer than {terms.header_bytes} bytes", 431)
            if end >= 0:
                # RFC 9112, 2.2: an empty line before the request line is to be passed over.
                while head.startswith(b"\r\n"):
                    del head[:2]
                if len(head) >= 4:
                    del head[-4:]
                    return head, seen[owed:], owed
                head.clear()
            link.take(owed)

    def _serve_one(self, head: Head, raw: SocketBody, terms: Terms) -> None:
        self._keep = head.keep_alive
        with contextlib.ExitStack() as stack:
            response = self._answer(head, raw, terms, stack)
            raw.settle()
            if raw.left:
                self._finish_body(raw)
            if self._draining():
                self._keep = False
            self._send(response, terms)
        if not self._keep:
            _linger(self._link)

    def _answer(self, head: Head, raw: SocketBody, terms: Terms, stack: contextlib.ExitStack) -> Response:
        try:
            body = raw if head.encoding == "identity" else InflatedBody(raw, head.encoding, terms.body_bytes, stack)
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

    def _finish_body(self, body: SocketBody) -> None:
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
        deadline = time.monotonic() + terms.grace_s + size / terms.slowest_bytes_per_s
        self._link.send([head, *response.buffers], deadline)


def refuse(connection: socket.socket, most: int) -> None:
    """Answer a connection that is one too many, and hear it out; the caller closes it."""
    tell_crowded(connection, most)
    _linger(Link(connection))


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


def _linger(link: Link) -> None:
    # Closing with bytes unread resets the connection, and the peer may lose the answer that is on its way to it.
    with contextlib.suppress(OSError):
        link.linger(time.monotonic() + _LINGER_S, memoryview(bytearray(_DRAIN_STEP_BYTES)))

"""A threaded HTTP/1.1 server on Unix sockets, on the standard library's parser.

A handler reads the request's body straight into memory it names (`Request.read_into`), and returns
buffers that are sent from where they lie. Everything it opened for the request (a slot of a model)
is given back once the response is sent.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, cast

from .. import __version__
from ..errors import AgentError
from ..wire import FAULTS, MAX_JSON_BYTES, WireError, parse_json

__all__ = ["Handler", "Request", "Response", "UnixHTTPServer", "json_response"]

_LOG = logging.getLogger("kedge.http")

_MAX_CONNECTIONS = 128
_IDLE_S = 300.0
_BODY_S = 20.0
_SLOWEST_BYTES_PER_S = 1_000_000
_DRAIN_LIMIT_BYTES = 1024 * 1024
_PEERCRED = struct.Struct("3i")

Buffer = bytes | bytearray | memoryview


_CROWDED_BODY = json.dumps(
    AgentError(
        f"{_MAX_CONNECTIONS} connections are open already", kind="busy", hint="close some, then try again"
    ).to_json()
).encode()
_CROWDED = (
    f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
    f"Content-Length: {len(_CROWDED_BODY)}\r\nConnection: close\r\n\r\n"
).encode() + _CROWDED_BODY


class _BodyReader:
    """What is left of a request's body."""

    def __init__(self, source: Any, connection: socket.socket, length: int) -> None:
        self._source = source
        self._connection = connection
        self.left = length

    def into(self, view: memoryview) -> None:
        if len(view) > self.left:
            raise AgentError("the request's body is shorter than its header says")
        # One deadline for all of it: who sends a byte now and then would hold a slot for ever.
        deadline = time.monotonic() + _BODY_S + len(view) / _SLOWEST_BYTES_PER_S
        while len(view):
            try:
                _limit(self._connection, deadline)
                got = self._source.readinto1(view)
            except TimeoutError:
                raise AgentError("the request's body did not arrive in time") from None
            if not got:
                raise AgentError("the connection closed within the request's body")
            view = view[got:]
            self.left -= got


@dataclass
class Request:
    """One request: `body` is not read until the handler asks for it."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    content_length: int
    body: _BodyReader
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def read_into(self, view: memoryview) -> None:
        """Receive the next `len(view)` bytes of the body into memory the caller names.

        Raises:
            AgentError: the body is shorter, or stops arriving.
        """
        self.body.into(view)

    def read_json(self, length: int | None = None) -> Any:
        """The next `length` bytes of the body (all, when None) as JSON; None when there are none.

        Raises:
            AgentError: too long (too_large), or not JSON (bad_input).
        """
        size = self.body.left if length is None else length
        if size > MAX_JSON_BYTES:
            raise AgentError(
                f"JSON of {size} bytes exceeds the limit of {MAX_JSON_BYTES}",
                kind="too_large",
                hint="send tensors as binary data",
            )
        data = bytearray(size)
        self.read_into(memoryview(data))
        if not data:
            return None
        try:
            return parse_json(data, floats=True)
        except WireError as error:
            raise AgentError(str(error)) from error


@dataclass
class Response:
    """Status, headers and the buffers of the body, sent in order."""

    status: int
    buffers: Sequence[Buffer]
    headers: Sequence[tuple[str, str]] = ()
    content_type: str = "application/json"


Handler = Callable[[Request], Response]


Route = tuple[str, re.Pattern[str], Callable[..., Response]]


def route(method: str, pattern: str, function: Callable[..., Response]) -> Route:
    """A route: requests of this method whose whole path matches; named groups become the function's arguments."""
    return method, re.compile(pattern), function


def json_response(body: Any, status: int = 200) -> Response:
    """A response of one JSON document."""
    return Response(status, [json.dumps(body).encode()])


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = f"kedge-agent/{__version__}"
    sys_version = ""
    timeout = _IDLE_S
    server: UnixHTTPServer

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path, _, query = self.path.partition("?")
        with contextlib.ExitStack() as stack:
            try:
                length = self._content_length()
            except AgentError as error:
                self.close_connection = True
                self._send(json_response(error.to_json(), FAULTS[error.kind].status))
                return
            body = _BodyReader(self.rfile, self.connection, length)
            request = Request(self.command, path, query, cast("Mapping[str, str]", self.headers), length, body, stack)
            response = self._handle(request)
            self._finish_body(body)
            self._send(response)
            self.connection.settimeout(_IDLE_S)

    def _handle(self, request: Request) -> Response:
        try:
            return self.server.handler(request)
        except AgentError as error:
            if error.kind == "internal":
                _LOG.error("%s %s: %s", request.method, request.path, error)
            return json_response(error.to_json(), FAULTS[error.kind].status)
        except Exception as error:  # the server must outlive any handler
            _LOG.exception("%s %s", request.method, request.path)
            body = {
                "error": f"internal error: {type(error).__name__}",
                "hint": "see the agent's log",
                "kind": "internal",
            }
            return json_response(body, 500)

    def _content_length(self) -> int:
        if self.headers.get("Transfer-Encoding") is not None:
            raise AgentError("Transfer-Encoding is not supported", hint="send Content-Length")
        text = self.headers.get("Content-Length", "0")
        if not (text.isascii() and text.isdigit() and len(text) <= 15):
            raise AgentError(f"bad Content-Length: {text[:40]!r}")
        return int(text)

    def _finish_body(self, body: _BodyReader) -> None:
        # A short rest is read so that the connection can go on; a long one is not worth it.
        if body.left > _DRAIN_LIMIT_BYTES:
            self.close_connection = True
        elif body.left:
            try:
                body.into(memoryview(bytearray(body.left)))
            except (AgentError, OSError):
                self.close_connection = True

    def _send(self, response: Response) -> None:
        size = sum(len(buffer) for buffer in response.buffers)
        reason = self.responses.get(response.status, ("", ""))[0]
        lines = [
            f"HTTP/1.1 {response.status} {reason}",
            f"Server: {self.server_version}",
            f"Content-Type: {response.content_type}",
            f"Content-Length: {size}",
            *(f"{name}: {value}" for name, value in response.headers),
            *(["Connection: close"] if self.close_connection else []),
        ]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        try:
            _send_all(self.connection, [head, *response.buffers])
        except OSError:
            self.close_connection = True

    def handle_one_request(self) -> None:
        # A peer that resets or stalls ends its own connection and nothing else.
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self.close_connection = True
        reason = message or explain or "bad request"
        self._send(json_response({"error": reason, "hint": "", "kind": "bad_input"}, code))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class names it so)
        _LOG.debug(format, *args)


def _limit(connection: socket.socket, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)


def _send_all(connection: socket.socket, buffers: Sequence[Buffer]) -> None:
    views = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
    deadline = time.monotonic() + _BODY_S + sum(map(len, views)) / _SLOWEST_BYTES_PER_S
    while views:
        _limit(connection, deadline)
        sent = connection.sendmsg(views[:16])
        while views and sent >= len(views[0]):
            sent -= len(views.pop(0))
        if sent:
            views[0] = views[0][sent:]


class UnixHTTPServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Serves `handler` on a Unix socket, a thread a connection, at most 128 connections.

    Args:
        path: where the socket is made; one that lies there already is replaced.
        handler: called for every request.
        allowed: called with a peer's process id, user id and group id; False closes the connection.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, path: Path, handler: Handler, allowed: Callable[[int, int, int], bool] | None = None) -> None:
        path.unlink(missing_ok=True)
        self.handler = handler
        self._allowed = allowed
        self._places = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__(str(path), _Connection)
        path.chmod(0o660)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Ask `allowed` about the process at the other end."""
        if self._allowed is None:
            return True
        try:
            raw = request.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
            return self._allowed(*_PEERCRED.unpack(raw))
        except Exception:  # an exception here would end the thread that accepts connections
            _LOG.exception("a peer could not be checked, and is refused")
            return False

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve in a thread, when there is a place for one more connection."""
        if not self._places.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.sendall(_CROWDED)
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Give the place back when the connection ends."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what a connection's thread died of."""
        _LOG.exception("connection failed")

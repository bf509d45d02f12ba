"""Requests, responses and routes, as handlers see them; how they travel is `connection`'s and `server`'s matter.

A handler reads the request's body straight into memory it names (`Request.read_into`), and returns buffers that are
sent from where they lie. Everything it opened for the request (a slot of a model) is given back once the response is
sent.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..errors import AgentError
from ..wire import MAX_JSON_BYTES, WireError, parse_json

__all__ = ["Body", "Handler", "Request", "Response", "Route", "json_response", "json_text", "route", "routed"]

Buffer = bytes | bytearray | memoryview


class Body(Protocol):
    """What is left of a request's body."""

    @property
    def left(self) -> int:
        """Bytes that have not been read."""
        ...

    def text(self, size: int, /) -> bytes:
        """The next `size` bytes as an object of their own, for what is short. Raises as `into`."""
        ...

    def into(self, view: memoryview, /) -> None:
        """Read the next `len(view)` bytes into memory the caller names.

        Raises:
            AgentError: the body is shorter, stops arriving, or cannot be inflated.
        """
        ...


@dataclass
class Request:
    """One request: `body` is not read until the handler asks for it.

    headers: by lower-case name. door: which listener it came in by.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: Body
    door: str = "infer"
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def read_into(self, view: memoryview) -> None:
        """Receive the next `len(view)` bytes of the body into memory the caller names.

        Raises:
            AgentError: the body is shorter, or stops arriving.
        """
        self.body.into(view)

    def read_text(self, length: int | None = None) -> bytes:
        """The next `length` bytes of the body (all, when None), where they are JSON or as short.

        Raises:
            AgentError: more than JSON may have (too_large).
        """
        size = self.body.left if length is None else length
        if size > MAX_JSON_BYTES:
            raise AgentError(
                f"JSON of {size} bytes exceeds the limit of {MAX_JSON_BYTES}",
                kind="too_large",
                hint="send tensors as binary data",
            )
        return self.body.text(size) if size else b""

    def read_json(self, length: int | None = None) -> Any:
        """The next `length` bytes of the body (all, when None) as JSON; None when there are none.

        Raises:
            AgentError: too long (too_large), or not JSON (bad_input).
        """
        data = self.read_text(length)
        return json_text(data) if data else None


def json_text(data: bytes) -> Any:
    """JSON from a request.

    Raises:
        AgentError: it is none (bad_input).
    """
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


def routed(routes: Sequence[Route]) -> Handler:
    """A handler that looks its requests up in a table; the first route that fits serves."""

    def handle(request: Request) -> Response:
        known_path = False
        for method, pattern, function in routes:
            match = pattern.fullmatch(request.path)
            if match is not None:
                known_path = True
                if method == request.method:
                    return function(request, **match.groupdict())
        if known_path:
            raise AgentError(f"{request.method} is not allowed on {request.path[:200]}", kind="method")
        raise AgentError(f"no such resource: {request.path[:200]}", kind="not_found")

    return handle


def json_response(body: Any, status: int = 200) -> Response:
    """A response of one JSON document."""
    return Response(status, [json.dumps(body).encode()])

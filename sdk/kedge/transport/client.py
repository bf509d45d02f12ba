"""HTTP to an agent's doors over a channel: control calls, and inference with its timing."""

from __future__ import annotations

import http.client
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from kedge_agent.formats.oip import HEADER_LENGTH, decode_response, encode_request, parse_server_timing
from kedge_agent.wire import MAX_JSON_BYTES, WireError, parse_json

from ..errors import (
    BadInputError,
    IncompatibleError,
    InternalError,
    OutcomeUnknownError,
    UnreachableError,
)
from .base import Channel, Deadline, Door, Transport, agent_hint, told_error

__all__ = ["AgentClient", "InferResult"]

_MAX_TENSOR_RESPONSE_BYTES = 1 << 31
_STALE_S = 60.0

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class InferResult:
    """Outputs by name; where the time went in the agent, and in all as seen from here (ms)."""

    outputs: dict[str, NDArray[Any]]
    agent_ms: dict[str, float]
    end_to_end_ms: float


class _Connection(http.client.HTTPConnection):
    """An HTTP connection whose socket is a channel, opened again when the other side closed it."""

    def __init__(self, transport: Transport, door: Door, timeout_s: float) -> None:
        super().__init__("agent", timeout=timeout_s)
        self._transport = transport
        self._door: Door = door
        self.timeout_s = timeout_s
        self.used = time.monotonic()

    def connect(self) -> None:
        deadline = Deadline.after(self.timeout_s, f"reaching the agent on {self._transport.name}")
        self.sock: Any = self._transport.open_door(self._door, deadline)

    def limit(self, timeout_s: float) -> None:
        """How long each operation of the next request may take."""
        self.timeout_s = timeout_s
        if self.sock is not None:
            channel: Channel = self.sock
            channel.settimeout(timeout_s)


class _LostError(UnreachableError):
    """The connection broke after a request had begun to travel: it may have been acted upon."""


class AgentClient:
    """Calls to one agent; one request at a time.

    Args:
        transport: the way to the agent, which stays the caller's to close.
        timeout_s: how long an ordinary request may take.
        deadline: by which all of them must have been answered; None: there is none.
    """

    def __init__(self, transport: Transport, timeout_s: float = 60.0, deadline: Deadline | None = None) -> None:
        self._transport = transport
        self._timeout_s = timeout_s
        self._deadline = deadline
        self._connections: dict[Door, _Connection] = {}

    def get(self, path: str, door: Door = "control", *, expect: Sequence[str] = ()) -> Any:
        """A JSON document from a door; `expect` names the keys it must have.

        Raises:
            KedgeError: what the agent reports, or that it cannot be reached.
        """
        _, body = self._request(door, "GET", path, [], {}, self._timeout_s, MAX_JSON_BYTES)
        return self._json(body, expect)

    def post(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        changes: bool = True,
        expect: Sequence[str] = (),
    ) -> Any:
        """Have the agent do something, through the control door.

        Args:
            expect: the keys its answer must have.
            changes: whether it changes the device, so that a lost answer leaves the outcome open.

        Raises:
            OutcomeUnknownError: the connection broke after the request was sent, and it changes something.
            KedgeError: what the agent reports, or that it cannot be reached.
        """
        data = b"" if body is None else json.dumps(body).encode()
        try:
            _, answer = self._request("control", "POST", path, [data], {}, timeout_s or self._timeout_s, MAX_JSON_BYTES)
        except _LostError as error:
            if not changes:
                raise
            raise OutcomeUnknownError(
                f"{self._transport.name}: no answer to a request that changes the device: {error.message}",
                hint=f"see what it did: kedge status --on {self._transport.name}",
            ) from error
        return self._json(answer, expect)

    def get_bytes(self, path: str, *, limit_bytes: int) -> memoryview:
        """Bytes from the control door, at most `limit_bytes` of them.

        Raises:
            KedgeError: what the agent reports, or that it cannot be reached.
        """
        _, body = self._request("control", "GET", path, [], {}, self._timeout_s, limit_bytes)
        return body

    def golden(self, model: str, batch: int) -> tuple[bytes, int]:
        """A ready inference request made of the release's recorded inputs: body, and its header's bytes."""
        path = f"/kedge/v1/models/{model}/golden?batch={batch}"
        headers, body = self._request("control", "GET", path, [], {}, self._timeout_s, _MAX_TENSOR_RESPONSE_BYTES)
        return bytes(body), _header_length(headers) or 0

    def infer(self, model: str, inputs: Mapping[str, NDArray[Any]]) -> InferResult:
        """Run a model on tensors.

        Raises:
            KedgeError: what the agent reports, or that it cannot be reached.
        """
        header, buffers = encode_request(inputs)
        return self.infer_raw(model, [header, *buffers], len(header))

    def infer_raw(self, model: str, body: list[bytes | memoryview], header_bytes: int) -> InferResult:
        """Run a model on an encoded request (`encode_request`). Raises as `infer`."""
        start = time.perf_counter_ns()
        headers, answer = self._request(
            "infer",
            "POST",
            f"/v2/models/{model}/infer",
            body,
            {HEADER_LENGTH: str(header_bytes), "Content-Type": "application/octet-stream"},
            self._timeout_s,
            _MAX_TENSOR_RESPONSE_BYTES,
        )
        try:
            outputs = decode_response(answer, _header_length(headers))
        except WireError as error:
            raise IncompatibleError(f"{self._transport.name}: {error}") from error
        took = (time.perf_counter_ns() - start) / 1e6
        return InferResult(outputs, parse_server_timing(headers.get("Server-Timing", "")), took)

    def close(self) -> None:
        """Hang up; idempotent."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    def _json(self, body: memoryview, expect: Sequence[str]) -> Any:
        try:
            answer = parse_json(body, floats=True)
            missing = [key for key in expect if not isinstance(answer, dict) or key not in answer]
            if missing:
                raise WireError(f"it lacks {', '.join(missing)}")
        except WireError as error:
            raise IncompatibleError(
                f"{self._transport.name}: the agent's answer makes no sense: {error}",
                hint=agent_hint(self._transport.name, "provision"),
            ) from error
        return answer

    def _request(
        self,
        door: Door,
        method: str,
        path: str,
        body: list[bytes | memoryview],
        headers: dict[str, str],
        timeout_s: float,
        limit_bytes: int,
    ) -> tuple[http.client.HTTPMessage, memoryview]:
        if not path.isascii() or not path.isprintable() or " " in path:
            raise BadInputError(
                f"not a model's name: {path.rsplit('/models/', maxsplit=1)[-1].split('/', maxsplit=1)[0]!r}",
                hint=f"see: kedge status --on {self._transport.name}",
            )
        if self._deadline is not None:
            timeout_s = min(timeout_s, self._deadline.remaining())
        connection = self._connections.get(door)
        if connection is None:
            connection = self._connections[door] = _Connection(self._transport, door, timeout_s)
        if time.monotonic() - connection.used > _STALE_S:
            # The agent hangs up on idle connections; a request must not meet that moment.
            connection.close()
        if connection.sock is None:
            # Outside the translation below: a connection that was never made changed nothing.
            connection.limit(timeout_s)
            connection.connect()
            connection.used = time.monotonic()
        connection.limit(timeout_s)
        try:
            size = sum(len(part) for part in body)
            # The agent may refuse a request before it has read it all: its answer is there to be read.
            try:
                connection.request(method, path, body=body, headers={"Content-Length": str(size), **headers})
            except TimeoutError:
                raise
            except OSError as error:
                _LOG.debug("%s hung up within a request: %s", self._transport.name, error)
            response = connection.getresponse()
            data = _read_body(response, limit_bytes)
            connection.used = time.monotonic()
        except (http.client.HTTPException, OSError) as error:
            connection.close()
            raise _LostError(
                f"{self._transport.name}: the agent stopped answering: {str(error) or type(error).__name__}",
                hint=f"see whether it still runs: kedge status --on {self._transport.name}",
            ) from error
        except BaseException:
            connection.close()
            raise
        if response.status != 200:
            raise self._error(response.status, data)
        return response.headers, data

    def _error(self, status: int, data: memoryview) -> Exception:
        try:
            body = parse_json(data, floats=True)
            kind, hint = str(body.get("kind") or "internal"), str(body.get("hint") or "")
            return told_error(self._transport.name, kind, str(body["error"])[:1000], hint[:1000])
        except (WireError, KeyError, TypeError, AttributeError):
            return InternalError(f"{self._transport.name}: the agent answered with HTTP status {status}")


def _header_length(headers: http.client.HTTPMessage) -> int | None:
    text = headers.get(HEADER_LENGTH)
    return int(text) if text is not None and text.isdigit() else None


def _read_body(response: http.client.HTTPResponse, limit_bytes: int) -> memoryview:
    length = response.length
    if length is None or length > limit_bytes:
        raise http.client.HTTPException(f"a response of {length} bytes is not acceptable")
    data = memoryview(bytearray(length))
    filled = 0
    while filled < length:
        got = response.readinto(data[filled:])
        if not got:
            raise http.client.HTTPException("the response ended early")
        filled += got
    return data

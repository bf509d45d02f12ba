"""A strict HTTP/1.1 client of raw bytes for tools/fuzz: sends anything, takes nothing but whole, correct answers."""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["DEADLINE_S", "Answer", "Link", "Violation"]

DEADLINE_S = 15.0
_CHUNK = 256 * 1024
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
_STATUS = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2}) [ -~]*")
_HEADER = re.compile(rb"([A-Za-z-]+): ([\t\x20-\x7e]*)")
_STATUSES = frozenset({200, 400, 403, 404, 405, 409, 412, 413, 415, 417, 422, 431, 500, 501, 503, 507})


class Violation(AssertionError):  # noqa: N818  (hypothesis shows the name: it is what was found)
    """The server did what no server may."""


@dataclass(frozen=True)
class Answer:
    """Status, headers by lower-case name, and body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def closes(self) -> bool:
        return self.headers.get("connection", "").lower() == "close"


class Link:
    """A connection to a door. It is of no more use once `closed`."""

    def __init__(self, door: Path) -> None:
        self.closed = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(DEADLINE_S)
            self._socket.connect(str(door))
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise
        self._received = bytearray()

    def close(self) -> None:
        """Hang up; idempotent."""
        self.closed = True
        self._socket.close()

    def exchange(self, pieces: Sequence[bytes], answers: int | None) -> list[Answer]:
        """Send pieces and read answers: so many, or fewer where the last one closes; None: hang up, then all there are.

        Raises:
            Violation: an answer is malformed, missing or late.
        """
        found: list[Answer] = []
        waiting = [memoryview(piece) for piece in pieces if piece]
        deadline = time.monotonic() + DEADLINE_S
        ended = hung_up = False
        while True:
            while (answer := self._next()) is not None:
                found.append(answer)
                if answer.closes:
                    ended = True
            if ended or (answers is not None and len(found) >= answers):
                break
            if not waiting and answers is None and not hung_up:
                hung_up = True
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_WR)
            if time.monotonic() > deadline:
                self.close()
                raise Violation(f"no answer and no end within {DEADLINE_S:g} s; {len(found)} answers before")
            ended = not self._move(waiting)
        if ended or answers is None:
            self.close()
        if self._received and (ended or len(found) == answers):
            raise Violation(f"{len(self._received)} bytes are no whole answer: {bytes(self._received[:80])!r}")
        if answers is not None and len(found) < answers and not (found and found[-1].closes):
            raise Violation(f"the connection ended after {len(found)} of {answers} answers")
        return found

    def _move(self, waiting: list[memoryview]) -> bool:
        """Send or receive what can be; False at the end."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | (select.POLLOUT if waiting else 0))
        for _, event in poll.poll(1000):
            if event & (select.POLLIN | select.POLLHUP | select.POLLERR):
                try:
                    data = self._socket.recv(_CHUNK)
                except ConnectionResetError:
                    return False
                if not data:
                    return False
                self._received += data
            elif event & select.POLLOUT:
                try:
                    sent = self._socket.send(waiting[0][:_CHUNK])
                except (BrokenPipeError, ConnectionResetError):
                    # It hung up on us; what it said before is still to be read.
                    waiting.clear()
                    return True
                if sent == len(waiting[0]):
                    waiting.pop(0)
                else:
                    waiting[0] = waiting[0][sent:]
        return True

    def _next(self) -> Answer | None:
        """The next whole answer of what was received; interim ones are passed over."""
        while True:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                if len(self._received) > _CHUNK:
                    raise Violation("an answer's head does not end")
                return None
            status, headers = _head(bytes(self._received[:end]))
            if status == 100:
                del self._received[: end + 4]
                continue
            size = int(headers["content-length"])
            if size > _MAX_ANSWER_BYTES:
                raise Violation(f"an answer of {size} bytes")
            whole = end + 4 + size
            if len(self._received) < whole:
                return None
            answer = Answer(status, headers, bytes(self._received[end + 4 : whole]))
            del self._received[:whole]
            _check(answer)
            return answer


def _head(data: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = data.split(b"\r\n")
    status = _STATUS.fullmatch(first)
    if status is None:
        raise Violation(f"not a status line: {first[:120]!r}")
    headers: dict[str, str] = {}
    for line in lines:
        match = _HEADER.fullmatch(line)
        if match is None:
            raise Violation(f"not a header: {line[:120]!r}")
        name = match[1].decode().lower()
        if name in headers:
            raise Violation(f"two headers {name}")
        headers[name] = match[2].decode()
    if int(status[1]) != 100 and not headers.get("content-length", "").isdigit():
        raise Violation(f"an answer without Content-Length: {data[:200]!r}")
    return int(status[1]), headers


def _check(answer: Answer) -> None:
    if answer.status not in _STATUSES:
        raise Violation(f"status {answer.status} is none that is documented")
    kind = answer.headers.get("content-type", "")
    if kind == "application/json":
        body = _json(answer.body)
        if answer.status != 200 and not (
            isinstance(body, dict) and isinstance(body.get("error"), str) and body["error"]
        ):
            raise Violation(f"status {answer.status} without an error: {answer.body[:200]!r}")
        return
    if answer.status != 200:
        raise Violation(f"an error of type {kind!r}")
    length = answer.headers.get("inference-header-content-length")
    if kind == "application/octet-stream" and length is not None:
        if int(length) > len(answer.body):
            raise Violation("an inference header longer than the answer")
        _json(answer.body[: int(length)])


def _json(data: bytes) -> Any:
    def refuse(text: str) -> Any:
        raise Violation(f"{text} in JSON")

    try:
        return json.loads(data, parse_constant=refuse)
    except ValueError as error:
        raise Violation(f"not JSON: {error}: {data[:200]!r}") from error

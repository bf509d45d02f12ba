"""What host and agent say to each other, and the limits on what either will hear.

Both sides import this module and nothing else of each other's (beside `formats`). It needs the
standard library alone, so a host that only wants to read an error code pays nothing for it.

A *channel* is the standard input and output of one agent process (`receive`, `dial-stdio`). The
agent speaks first: one greeting line, so that whatever a login shell prints before it can be
skipped, and a wrong protocol is found before a byte of payload moves. After the greeting,
`dial-stdio` is a transparent pipe to one of the daemon's sockets and `receive` exchanges messages
of a five-byte header (type, length; big-endian) and a payload.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NoReturn

__all__ = [
    "DOORS",
    "DOOR_BUFFER_BYTES",
    "DOOR_GROUPS",
    "ENCODING_DELTA",
    "ENCODING_RAW",
    "ENCODING_ZSTD",
    "FAULTS",
    "FRAME_BYTES",
    "FRAME_HEADER",
    "GREETING_PREFIX",
    "HEADER_LENGTH",
    "MAX_GREETING_BYTES",
    "MAX_JSON_BYTES",
    "MAX_MANIFEST_BYTES",
    "MESSAGE_HEADER",
    "NOISE_LIMIT_BYTES",
    "PROTOCOL",
    "PROTOCOLS_SPOKEN",
    "Fault",
    "Greeting",
    "Message",
    "WireError",
    "message_limit",
    "parse_greeting",
    "parse_json",
    "read_message",
    "render_greeting",
]

PROTOCOL = 2
PROTOCOLS_SPOKEN = (1, 2)
"""Both sides speak all of these; a channel speaks the highest that both have. Protocol 1 has no OFFER."""

DOORS = ("infer", "control")
DOOR_BUFFER_BYTES = 1 << 20
"""Send buffer of both ends of a door. TCP widens its own; through a Unix socket's 208 KB an image goes in turns."""

DOOR_GROUPS = {"infer": "kedge", "control": "kedge-admin"}
"""Unix groups that may use each door, where an administrator has made them."""

FRAME_BYTES = 8 * 1024 * 1024
MAX_MANIFEST_BYTES = 16 * 1024 * 1024
MAX_JSON_BYTES = 4 * 1024 * 1024
MAX_GREETING_BYTES = 4096
NOISE_LIMIT_BYTES = 64 * 1024

GREETING_PREFIX = b"KEDGE "
HEADER_LENGTH = "Inference-Header-Content-Length"
"""Of the Open Inference Protocol's binary tensor extension: how many bytes of a body are JSON."""

ENCODING_RAW = 0
ENCODING_ZSTD = 1
ENCODING_DELTA = 2

MESSAGE_HEADER = struct.Struct(">BI")
FRAME_HEADER = struct.Struct(">IIB")
"""Payload prefix of FRAME: file index in the manifest, frame index in the file, encoding."""


class Message(IntEnum):
    """Message types of `receive`. Those below 16 travel host → agent, the others agent → host."""

    MANIFEST = 1
    FRAME = 2
    COMMIT = 3
    OFFER = 4
    WANT = 16
    ACK = 17
    DONE = 18
    ERROR = 19
    AGAIN = 20


@dataclass(frozen=True)
class Fault:
    """How a kind of failure shows at the two boundaries: HTTP status and process exit code."""

    status: int
    exit_code: int


FAULTS: dict[str, Fault] = {
    "internal": Fault(500, 1),
    "bad_input": Fault(400, 3),
    "not_found": Fault(404, 3),
    "method": Fault(405, 1),
    "too_large": Fault(413, 3),
    "gate": Fault(412, 5),
    "integrity": Fault(422, 6),
    "incompatible": Fault(409, 7),
    "space": Fault(507, 8),
    "forbidden": Fault(403, 9),
    "busy": Fault(503, 13),
    "no_agent": Fault(503, 14),
}
"""Every kind of fault the agent reports. The exit codes are those of `docs/exit-codes.md`."""


class WireError(Exception):
    """The other side said something this protocol does not allow."""


@dataclass(frozen=True)
class Greeting:
    """First line of every channel: which protocols the agent speaks, or why it cannot serve."""

    protocols: tuple[int, ...]
    version: str
    error: str | None = None
    hint: str | None = None
    kind: str | None = None


def _refuse_number(text: str) -> NoReturn:
    raise WireError(f"number {text[:40]!r} is not an integer")


def _integer(text: str) -> int:
    if len(text) > 20:
        raise WireError("integer out of range")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise WireError("duplicate key in JSON object")
    return out


def parse_json(data: bytes | bytearray | memoryview, *, floats: bool = False, limit: int = MAX_JSON_BYTES) -> Any:
    """Parse bounded JSON strictly: duplicate keys and NaN are refused; so are floats by default.

    Raises:
        WireError: too long, not UTF-8, not JSON, nested too deep, or a forbidden construct.
    """
    if len(data) > limit:
        raise WireError(f"JSON of {len(data)} bytes exceeds the limit of {limit}")
    parse_float: Callable[[str], Any] = float if floats else _refuse_number
    try:
        return json.loads(
            bytes(data).decode("utf-8"),
            object_pairs_hook=_unique,
            parse_float=parse_float,
            parse_int=_integer,
            parse_constant=_refuse_number,
        )
    except (ValueError, RecursionError) as error:
        raise WireError(f"not valid JSON: {error}") from error


def render_greeting(greeting: Greeting) -> bytes:
    """One line, ending in a newline."""
    body: dict[str, Any] = {"protocols": list(greeting.protocols), "version": greeting.version}
    if greeting.error is not None:
        body |= {"error": greeting.error, "hint": greeting.hint, "kind": greeting.kind}
    return GREETING_PREFIX + json.dumps(body).encode() + b"\n"


def parse_greeting(line: bytes) -> Greeting:
    """Inverse of `render_greeting`, for a line that begins with `GREETING_PREFIX`."""
    body = parse_json(line[len(GREETING_PREFIX) :].strip(), limit=MAX_GREETING_BYTES)
    if not isinstance(body, dict):
        raise WireError("greeting is not an object")
    protocols = body.get("protocols")
    if not isinstance(protocols, list) or not all(type(p) is int for p in protocols):
        raise WireError("greeting names no protocols")

    def text(key: str) -> str | None:
        value = body.get(key)
        return None if value is None else str(value)[:500]

    return Greeting(tuple(protocols), text("version") or "?", text("error"), text("hint"), text("kind"))


def message_limit(kind: Message) -> int:
    """The most payload bytes a message of this type may announce."""
    if kind is Message.MANIFEST:
        return MAX_MANIFEST_BYTES
    if kind is Message.FRAME:
        return FRAME_BYTES + FRAME_HEADER.size
    return MAX_JSON_BYTES


def read_message(read_exactly: Callable[[int], bytes | bytearray | memoryview]) -> tuple[Message, memoryview]:
    """Read one message through `read_exactly(n)`, which returns n bytes or raises EOFError.

    Raises:
        WireError: unknown type or a length over the type's limit (nothing of it is read).
    """
    code, length = MESSAGE_HEADER.unpack(read_exactly(MESSAGE_HEADER.size))
    try:
        kind = Message(code)
    except ValueError:
        raise WireError(f"unknown message type {code}") from None
    if length > message_limit(kind):
        raise WireError(f"{kind.name} of {length} bytes exceeds the limit of {message_limit(kind)}")
    return kind, memoryview(read_exactly(length)) if length else memoryview(b"")

"""What `kedge-agent diagnose` writes after its greeting: parts, each with kind and length; the last says how it ended.

A stream that stops without `END` or `ERROR` was cut, and what came of it is all that there is.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum
from typing import Any, BinaryIO

from ..wire import MAX_JSON_BYTES, WireError, parse_json

__all__ = ["MAX_PART_BYTES", "Part", "read_parts", "write_json_part", "write_part"]

MAX_PART_BYTES = MAX_JSON_BYTES

_HEADER = struct.Struct(">BI")


class Part(IntEnum):
    """PROGRESS: JSON, of a collector that has ended. DATA: bytes of what was asked for, in order. PRIVATE: JSON, the
    redactor's map, which is no part of the data. END: JSON, how it went. ERROR: JSON, an AgentError; the last."""

    PROGRESS = 1
    DATA = 2
    PRIVATE = 3
    END = 4
    ERROR = 5


def write_part(sink: BinaryIO, kind: Part, data: bytes | memoryview) -> None:
    """Write parts of one kind: one, or as many as the data take."""
    view = memoryview(data)
    for start in range(0, max(len(view), 1), MAX_PART_BYTES):
        piece = view[start : start + MAX_PART_BYTES]
        sink.write(_HEADER.pack(kind, len(piece)))
        sink.write(piece)
    sink.flush()


def write_json_part(sink: BinaryIO, kind: Part, body: Mapping[str, Any]) -> None:
    """Write one part that holds JSON.

    Raises:
        ValueError: it is longer than a part may be, or holds what JSON does not.
    """
    data = json.dumps(body, allow_nan=False).encode()
    if len(data) > MAX_PART_BYTES:
        raise ValueError(f"{kind.name} of {len(data)} bytes")
    write_part(sink, kind, data)


def read_parts(read_exactly: Callable[[int], bytes]) -> Iterator[tuple[Part, Any]]:
    """Parts in order, JSON parsed (with floats), until END or ERROR; these are told too.

    Args:
        read_exactly: gives so many bytes, or raises EOFError.

    Raises:
        WireError: no part, or longer than one may be, or not JSON. EOFError: the stream was cut.
    """
    while True:
        code, length = _HEADER.unpack(read_exactly(_HEADER.size))
        try:
            kind = Part(code)
        except ValueError:
            raise WireError(f"unknown part {code}") from None
        if length > MAX_PART_BYTES:
            raise WireError(f"{kind.name} of {length} bytes exceeds the limit of {MAX_PART_BYTES}")
        data = read_exactly(length)
        yield kind, data if kind is Part.DATA else parse_json(data, floats=True)
        if kind in (Part.END, Part.ERROR):
            return

"""A file of the flight recorder without names that are not to be told: its tables are masked as the JSON that they are.

A record names its table by that table's checksum, so what is masked is framed anew and stays a recording. What is no
good frame is left out, for whatever stands in it: a torn tail, rot, kinds that this agent does not know.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from ..formats.recording_frames import Kind, Skipped, frame, pack, read_frames
from ..wire import WireError, parse_json
from .redact import Redactor

__all__ = ["masked_recording"]

_TABLE = struct.Struct("<I")
"""What a RECORD begins with: the checksum of its table."""


def masked_recording(redactor: Redactor, name: str, data: bytes) -> bytes:
    """The recording; one of good frames without anything to mask stays as it is, to the byte.

    Args:
        name: the member that it is.
    """
    lost = Skipped()
    told: dict[bytes, bytes | None] = {}
    for kind, payload in read_frames(data, lost):
        if kind != Kind.RECORD and (body := bytes(payload)) not in told:
            told[body] = _masked(redactor, name, kind, body)
    if lost.bytes == lost.frames == 0 and all(body == masked for body, masked in told.items()):
        return data
    tables = {zlib.crc32(body): zlib.crc32(masked) for body, masked in told.items() if masked is not None}
    return pack(b"".join(_framed(data, told, tables)))


def _framed(data: bytes, told: Mapping[bytes, bytes | None], tables: Mapping[int, int]) -> Iterator[bytes]:
    """Its frames with what is told in the place of what was there."""
    for kind, payload in read_frames(data, Skipped()):
        if kind != Kind.RECORD:
            masked = told[bytes(payload)]
            if masked is not None:
                yield frame(Kind(kind), masked)
        elif len(payload) >= _TABLE.size:
            (table,) = _TABLE.unpack_from(payload)
            # Of a record without a table nothing can be read.
            if table in tables:
                yield frame(Kind.RECORD, _TABLE.pack(tables[table]) + payload[_TABLE.size :])


def _masked(redactor: Redactor, name: str, kind: int, payload: bytes) -> bytes | None:
    """A TABLE or a START; None: it is neither, or no JSON."""
    if kind not in (Kind.TABLE, Kind.START):
        return None
    try:
        body: Any = parse_json(payload, floats=True, limit=len(payload) + 1)
    except WireError:
        return None
    told = redactor.document(body, name)
    return payload if told == body else json.dumps(told, separators=(",", ":")).encode()

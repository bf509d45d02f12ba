"""What a collector found, as it is written into a snapshot: documents and files by what is in them, masked."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from typing import Any

from ..formats.snapshots import RECORDER
from ..wire import WireError, parse_json
from .allowed import allowed_settings
from .masked_recording import masked_recording
from .redact import Redactor
from .running import Outcome

__all__ = ["LeftOutError", "masked_document", "masked_member", "shown_to"]

_MAX_TEXT_BYTES = 4 << 20
_MAX_JSON_BYTES = 4 << 20
_PACKED = (b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00", b"BZh", b"PK\x03\x04", b"7z\xbc\xaf\x27\x1c", b"\x04\x22\x4d\x18")
_GZIP = b"\x1f\x8b"
_CUT = "… what came before is left out: it is too long\n"
# A record of the store's journal begins with its checksum.
_JSON_LINE = re.compile(r"(?:[0-9a-f]{8} )?(?=\{)")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f\udc80-\udcff]")
_SETTINGS = "config/settings.json"


class LeftOutError(Exception):
    """A file is not written into a snapshot; the message says why."""


def shown_to(redactor: Redactor, outcome: Outcome) -> None:
    """Show all of it to the redactor, so that it knows what to mask before anything is written."""
    redactor.learn(outcome.data)
    redactor.learn(outcome.reason or "")
    for _, data in outcome.members:
        for each in _parts(data):
            redactor.learn(each)


def masked_document(redactor: Redactor, name: str, outcome: Outcome) -> bytes:
    """What a collector found, as the facts have it."""
    body = outcome.to_json()
    reason = body["reason"] and redactor.text(body["reason"], name)
    return json.dumps({**body, "reason": reason, "data": redactor.document(body["data"], name)}, indent=1).encode()


def masked_member(redactor: Redactor, name: str, data: bytes) -> bytes:
    """A file. One without anything to mask stays as it is, to the byte: hashes of it hold.

    Raises:
        LeftOutError: it cannot be looked into.
    """
    if name.startswith(RECORDER):
        masked_frames = masked_recording(redactor, name, data)
        if data and not masked_frames:
            raise LeftOutError("nothing in it is a recording")
        return masked_frames
    if data.startswith(_PACKED):
        raise LeftOutError("it is compressed: what is in it cannot be masked")
    unpacked = _unpacked(data)
    if unpacked is None:
        raise LeftOutError("it is compressed, and damaged or too long")
    body = _document(unpacked)
    if name == _SETTINGS:
        return json.dumps(redactor.document(allowed_settings(body), name), indent=1).encode()
    if body is not None:
        masked = redactor.document(body, name)
        return unpacked if masked == body else json.dumps(masked, indent=1).encode()
    text = _text(unpacked)
    if text is None:
        raise LeftOutError("it is no text: what is in it cannot be masked")
    return "".join(_masked_lines(redactor, name, text)).encode("utf-8", "surrogateescape")


def _masked_lines(redactor: Redactor, name: str, text: str) -> Iterator[str]:
    """Lines that are JSON are masked as documents, by what their keys say; the rest as text."""
    if _JSON_LINE.match(text) is None:
        yield redactor.text(text, name)
        return
    for line in text.splitlines(keepends=True):
        head, body = _line(line)
        if body is None:
            yield redactor.text(line, name)
            continue
        masked = redactor.document(body, name)
        yield line if masked == body else f"{head}{json.dumps(masked)}\n"


def _parts(data: bytes) -> Iterator[Any]:
    unpacked = None if data.startswith(_PACKED) else _unpacked(data)
    if unpacked is None:
        return
    body = _document(unpacked)
    if body is not None:
        yield body
        return
    text = _text(unpacked)
    if text is None:
        return
    yield text
    if _JSON_LINE.match(text):
        yield from (body for line in text.splitlines() if (body := _line(line)[1]) is not None)


def _line(line: str) -> tuple[str, Any]:
    """What stands before the JSON of a line, and the JSON; None: it has none."""
    match = _JSON_LINE.match(line)
    return ("", None) if match is None else (match.group(), _document(line[match.end() :].encode("utf-8", "replace")))


def _document(data: bytes) -> Any:
    """The JSON object or list that this is; None: it is something else."""
    if data[:1] not in (b"{", b"["):
        return None
    try:
        return parse_json(data, floats=True, limit=_MAX_JSON_BYTES)
    except WireError:
        return None


def _text(data: bytes) -> str | None:
    """The end of a text, whatever bytes are in it that are no text; None where these are too many."""
    text = data.decode("utf-8", "surrogateescape")
    strange = len(_CONTROL.findall(text[:65536]))
    if strange > 0.1 * len(text[:65536]):
        return None
    if len(text) > _MAX_TEXT_BYTES:
        text = _CUT + text[-_MAX_TEXT_BYTES:].partition("\n")[2]
    return text


def _unpacked(data: bytes) -> bytes | None:
    """What is in a gzip file (a log that was rotated), or the file itself; None where it cannot be had."""
    if not data.startswith(_GZIP):
        return data
    engine = zlib.decompressobj(wbits=31)
    try:
        out = engine.decompress(data, _MAX_TEXT_BYTES)
    except zlib.error:
        return None
    return out if engine.eof and not engine.unused_data else None

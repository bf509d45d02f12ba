"""A value as others write it: in base64, percent-encoded, in hexadecimal digits, escaped for JSON or HTML."""

from __future__ import annotations

import base64
import html
import json
import re
from dataclasses import dataclass
from urllib.parse import quote, quote_plus

__all__ = ["NO_FORMS", "Forms", "encoded_forms"]

# Shorter values make forms that stand in anything.
_LEAST_BYTES = 6


@dataclass(frozen=True)
class Forms:
    """How others write a value.

    packed: in base64, percent-encoded or in hexadecimal digits. escaped: for JSON or HTML.
    """

    packed: frozenset[str] = frozenset()
    escaped: frozenset[str] = frozenset()


NO_FORMS = Forms()


def encoded_forms(value: str) -> Forms:
    """The forms of a value that are not the value; none where it is too short.

    Base64 (RFC 4648, both alphabets) is given for each of the three places where a value may begin in a group of three
    bytes, less the characters that its neighbours have a part in.
    """
    data = value.encode("utf-8", "surrogateescape")
    if len(data) < _LEAST_BYTES:
        return NO_FORMS
    packed = {data.hex(), data.hex().upper()}
    for shift in range(3):
        bits = 8 * (shift + len(data))
        text = base64.b64encode(bytes(shift) + data).decode()[-(-8 * shift // 6) : bits // 6]
        packed |= {text, text.replace("+", "-").replace("/", "_")}
    for text in (quote(data), quote(data, safe=""), quote_plus(data), "".join(f"%{byte:02X}" for byte in data)):
        packed |= {text, re.sub("%[0-9A-F]{2}", lambda match: match.group().lower(), text)}
    escaped = {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], html.escape(value)}
    return Forms(frozenset(packed - {value}), frozenset(escaped - {value}))

"""A value as others write it: in base64, percent-encoded, in hexadecimal digits, escaped for JSON or HTML."""

from __future__ import annotations

import base64
import html
import json
import re
from urllib.parse import quote, quote_plus

__all__ = ["LEAST_BYTES", "encoded_forms", "encoded_words"]

LEAST_BYTES = 6
"""Shorter values make forms that stand in anything."""

_WORDS = re.compile(r"[A-Za-z0-9+/_=%&;#\\.~-]{8,}")


def encoded_forms(value: str) -> frozenset[str]:
    """The forms of a value that are not the value; none where it is too short.

    Base64 (RFC 4648, both alphabets) is given for each of the three places where a value may begin in a group of three
    bytes, less the characters that its neighbours have a part in.
    """
    data = value.encode("utf-8", "surrogateescape")
    if len(data) < LEAST_BYTES:
        return frozenset()
    forms = set()
    for shift in range(3):
        bits = 8 * (shift + len(data))
        text = base64.b64encode(bytes(shift) + data).decode()[-(-8 * shift // 6) : bits // 6]
        forms |= {text, text.replace("+", "-").replace("/", "_")}
    every = "".join(f"%{byte:02X}" for byte in data)
    forms |= {quote(data), quote(data, safe=""), quote_plus(data), every}
    forms |= {re.sub("%[0-9A-F]{2}", lambda match: match.group().lower(), form) for form in forms if "%" in form}
    forms |= {data.hex(), data.hex().upper()}
    forms |= {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], html.escape(value)}
    return frozenset(forms - {value})


def encoded_words(text: str) -> str:
    """The words of a text in which an encoded form may stand, each once, a line each."""
    return "\n".join(dict.fromkeys(_WORDS.findall(text)))

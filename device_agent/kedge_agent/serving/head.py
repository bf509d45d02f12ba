"""The head of an HTTP/1.1 request: what RFC 9112 allows, less what only ever served to smuggle.

One Content-Length or none; no Transfer-Encoding; no folded lines; no name twice where its value decides how long the
body is. Whatever is odd is refused and the connection closed: a proxy in front might have read it otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..wire import HEADER_LENGTH

__all__ = ["NO_HEAD", "Head", "HeadError", "parse_head"]

_MAX_HEADERS = 100
_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) (/[\x21-\x7e]*) HTTP/1\.([01])")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_ONCE = frozenset({"content-length", "content-encoding", "expect", "host", HEADER_LENGTH.lower()})
_METHODS = frozenset({"GET", "POST"})
_NUMBER = re.compile(r"[0-9]{1,15}")


class HeadError(Exception):
    """A head that is refused. status: of the answer."""

    def __init__(self, message: str, status: int = 400, hint: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.hint = hint


@dataclass(frozen=True)
class Head:
    """A request's head. headers: by lower-case name. encoding: of the body: identity, gzip or deflate."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    content_length: int
    keep_alive: bool
    expects_continue: bool
    encoding: str


NO_HEAD = Head("", "", "", {}, 0, keep_alive=False, expects_continue=False, encoding="identity")
"""Of a connection that has sent none."""


def parse_head(data: bytes | bytearray) -> Head:
    """Parse a head, without the empty line that ends it.

    Raises:
        HeadError: it is refused.
    """
    lines = bytes(data).split(b"\r\n")
    line = _REQUEST_LINE.fullmatch(lines[0])
    if line is None:
        raise HeadError("the request line is not one of HTTP/1.1")
    method = line[1].decode()
    if method not in _METHODS:
        raise HeadError(f"{method} is not a method of this server", 501, "GET and POST are")
    headers = _headers(lines[1:])
    if "transfer-encoding" in headers:
        raise HeadError("Transfer-Encoding is not supported", hint="send Content-Length")
    length = headers.get("content-length", "0")
    if _NUMBER.fullmatch(length) is None:
        raise HeadError(f"bad Content-Length: {length[:40]!r}")
    expect = headers.get("expect", "").lower()
    if expect not in ("", "100-continue"):
        raise HeadError(f"cannot meet the expectation {expect[:40]!r}", 417)
    encoding = headers.get("content-encoding", "identity").lower()
    if encoding not in ("identity", "gzip", "deflate"):
        raise HeadError(f"bodies in {encoding[:40]!r} are not taken", 415, "gzip and deflate are")
    minor = line[3]
    wishes = {wish.strip().lower() for wish in headers.get("connection", "").split(",")}
    path, _, query = line[2].decode("ascii").partition("?")
    return Head(
        method=method,
        path=path,
        query=query,
        headers=headers,
        content_length=int(length),
        keep_alive=minor == b"1" and "close" not in wishes,
        # A client of HTTP/1.0 does not know what 100 means (RFC 9110, 10.1.1).
        expects_continue=bool(expect) and minor == b"1",
        encoding=encoding,
    )


def _headers(lines: list[bytes]) -> dict[str, str]:
    if len(lines) > _MAX_HEADERS:
        raise HeadError(f"more than {_MAX_HEADERS} headers", 431)
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or _TOKEN.fullmatch(name) is None or _VALUE.fullmatch(value) is None:
            raise HeadError("a header line is not one of HTTP/1.1")
        key = name.decode("ascii").lower()
        text = value.strip(b" \t").decode("latin-1")
        if key in headers:
            if key in _ONCE:
                raise HeadError(f"two headers {key}")
            text = f"{headers[key]}, {text}"
        headers[key] = text
    return headers

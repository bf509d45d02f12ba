"""A minimal HTTP/1.1 client: prepared bytes out, a response in. The same for every server that is measured.

It does next to nothing, so that what is measured is the server. Responses need a Content-Length.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Address", "Connection", "ResponseError", "prepare"]

Address = Path | tuple[str, int]
"""A Unix socket, or host and port."""

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_LEAST_BYTES = 64 * 1024
_SEND_BYTES = 1024 * 1024


class ResponseError(Exception):
    """The server hung up, or answered in a way this client does not know."""


def prepare(method: str, target: str, body: Sequence[bytes] = (), headers: Sequence[tuple[str, str]] = ()) -> bytes:
    """A whole request in one piece."""
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in headers)]
    if body or method == "POST":
        lines.append(f"Content-Length: {sum(map(len, body))}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + b"".join(body)


class Connection:
    """One connection; one request at a time.

    Args:
        address: of the server.
        timeout_s: of each operation of the socket.
    """

    def __init__(self, address: Address, timeout_s: float = 60.0) -> None:
        family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(timeout_s)
            if family == socket.AF_INET:
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            else:
                # The kernel widens TCP's by itself; a Unix socket's holds 208 KiB, and sender and receiver take turns.
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
            self._socket.connect(str(address) if isinstance(address, Path) else address)
        except BaseException:
            self._socket.close()
            raise
        self._buffer = bytearray(_LEAST_BYTES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; idempotent."""
        self._socket.close()

    def ask(self, request: bytes) -> tuple[int, bytes, memoryview]:
        """Send a prepared request; status, head and body of the answer. The body is valid until the next request.

        Raises:
            ResponseError: there is no whole answer.
            OSError: the connection failed, or time ran out.
        """
        self._socket.sendall(request)
        view = memoryview(self._buffer)
        have = 0
        while (end := self._buffer.find(b"\r\n\r\n", 0, have)) < 0:
            got = self._socket.recv_into(view[have:])
            if not got:
                raise ResponseError(f"the server hung up after {have} bytes of a head")
            have += got
        head = bytes(view[:end])
        length = _LENGTH.search(head)
        if length is None:
            raise ResponseError(f"no Content-Length in {head[:200]!r}")
        start = end + 4
        whole = start + int(length[1])
        if whole > len(self._buffer):
            grown = bytearray(whole)
            grown[:have] = view[:have]
            self._buffer, view = grown, memoryview(grown)
        while have < whole:
            got = self._socket.recv_into(view[have:whole])
            if not got:
                raise ResponseError("the server hung up within a body")
            have += got
        if have > whole:
            raise ResponseError("the server sent more than one answer")
        return int(head[9:12]), head, view[start:whole]

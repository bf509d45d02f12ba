"""A client on the device itself: one request again and again through the inference door, by a process of its own.

It knows just enough of HTTP to time a request: what it costs beyond the agent is the socket, and being woken.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["client"]

_TIMEOUT_S = 60.0
_MAX_HEAD_BYTES = 1 << 16
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]{1,15})\r\n", re.IGNORECASE)


def client(folder: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """Times in ms of `runs` requests after `warmup` ones; `folder/request.http` is sent as it is.

    A child process's task: see `child.run_child`.

    Raises:
        OSError: the agent hung up, or answered with anything but 200.
    """
    data = (folder / "request.http").read_bytes()
    times_ms: list[float] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_TIMEOUT_S)
        connection.connect(request["socket"])
        buffer = bytearray(_MAX_HEAD_BYTES)
        for index in range(request["warmup"] + request["runs"]):
            start = time.perf_counter_ns()
            connection.sendall(data)
            buffer = _answer(connection, buffer)
            if index >= request["warmup"]:
                times_ms.append((time.perf_counter_ns() - start) / 1e6)
    return {"ms": times_ms}


def _answer(connection: socket.socket, buffer: bytearray) -> bytearray:
    """Receive a whole response into the buffer, or into a longer one that then takes its place."""
    filled = 0
    while (end := buffer.find(b"\r\n\r\n", 0, filled)) < 0:
        if filled == len(buffer):
            raise OSError("the response's head does not end")
        filled += _some(connection, memoryview(buffer)[filled:])
    head = bytes(buffer[: end + 2])
    length = _LENGTH.search(head)
    if not head.startswith(b"HTTP/1.1 200 ") or length is None:
        raise OSError(f"the agent answered: {head[:200]!r}")
    whole = end + 4 + int(length[1])
    if whole > len(buffer):
        buffer = buffer + bytearray(whole - len(buffer))
    while filled < whole:
        filled += _some(connection, memoryview(buffer)[filled:whole])
    return buffer


def _some(connection: socket.socket, view: memoryview) -> int:
    got = connection.recv_into(view)
    if not got:
        raise OSError("the agent hung up")
    return got

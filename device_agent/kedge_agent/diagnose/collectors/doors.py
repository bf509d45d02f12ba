"""Ask the daemon through its sockets, with little patience: it may hang, and then nothing is to hang with it.

Spoken by hand: Python's client of HTTP brings the parsers of e-mail along, which take longer than the question.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from ...errors import AgentError
from ...store.layout import SYSTEM_SOCKETS, socket_directory
from ...wire import DOOR_GROUPS, MAX_JSON_BYTES, WireError, parse_json
from ..device import Device, UnavailableError

__all__ = ["ask", "socket_folder"]

_CHUNK_BYTES = 1 << 16


def socket_folder(device: Device) -> Path:
    """Where the sockets of the daemon on this state folder are, whoever its user is.

    Raises:
        UnavailableError: that cannot be told.
    """
    try:
        mine = socket_directory(device.state)
        owner = device.layout.lock.stat().st_uid
    except AgentError as error:
        raise UnavailableError(error.message) from error
    except OSError:
        return mine
    if mine == SYSTEM_SOCKETS or owner == os.geteuid():
        return mine
    return mine.parent.with_name(f"kedge-{owner}") / mine.name


def ask(device: Device, door: str, path: str, patience_s: float) -> tuple[int, Any]:
    """GET something: status, and the JSON of the answer (None: it has no body).

    Raises:
        TimeoutError: nothing came in time.
        UnavailableError: nobody listens, this user may not ask, or the answer makes no sense.
    """
    end = time.monotonic() + patience_s
    file = socket_folder(device) / f"{door}.sock"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(patience_s)
            client.connect(str(file))
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n".encode())
            data = _read_all(client, end)
    except TimeoutError:
        raise
    except PermissionError as error:
        hint = f"join the group {DOOR_GROUPS[door]}, or be the agent's user"
        raise UnavailableError(f"user {os.geteuid()} may not use the door {door}: {hint}") from error
    except OSError as error:
        raise UnavailableError(f"{file}: {error.strerror or error}") from error
    head, _, body = data.partition(b"\r\n\r\n")
    status = head.split(b"\r\n", 1)[0].split(b" ")[1:2]
    if not status or not status[0].isdigit():
        raise UnavailableError(f"{file} answers {bytes(head[:40])!r}")
    try:
        return int(status[0]), parse_json(body, floats=True) if body else None
    except WireError as error:
        raise UnavailableError(f"{file}: {error}") from error


def _read_all(client: socket.socket, end: float) -> bytearray:
    data = bytearray()
    while len(data) <= MAX_JSON_BYTES:
        client.settimeout(max(end - time.monotonic(), 0.001))
        got = client.recv(_CHUNK_BYTES)
        if not got:
            break
        data += got
    return data

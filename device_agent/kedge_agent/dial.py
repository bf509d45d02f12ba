"""`dial-stdio`: join standard input and output to one of the daemon's doors."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from pathlib import Path

from . import __version__
from .errors import AgentError
from .store.layout import socket_directory
from .wire import DOOR_BUFFER_BYTES, DOOR_GROUPS, PROTOCOLS_SPOKEN, Greeting, render_greeting

__all__ = ["connect", "dial"]

_CHUNK_BYTES = 256 * 1024


def connect(state: Path, door: str, timeout_s: float = 10.0) -> socket.socket:
    """A connection to a door of the daemon that serves `state`.

    Raises:
        AgentError: nobody answers there (kind no_agent), or this user may not (forbidden).
    """
    path = socket_directory(state) / f"{door}.sock"
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, DOOR_BUFFER_BYTES)
    try:
        connection.connect(str(path))
    except PermissionError as error:
        connection.close()
        raise AgentError(
            f"this user may not use the agent's {door} door",
            kind="forbidden",
            hint=f"join the group {DOOR_GROUPS[door]} on the device",
        ) from error
    except OSError as error:
        connection.close()
        raise AgentError(
            f"the agent is not running: {path}: {error.strerror}",
            kind="no_agent",
            hint="start it: kedge device provision DEVICE (on the device: kedge-agent start)",
        ) from error
    connection.settimeout(None)
    return connection


def dial(state: Path, door: str) -> None:
    """Greet on standard output, then copy bytes both ways until either side ends.

    Raises:
        AgentError: as `connect`.
    """
    with connect(state, door) as connection:
        sys.stdout.buffer.write(render_greeting(Greeting(PROTOCOLS_SPOKEN, __version__)))
        sys.stdout.buffer.flush()
        threading.Thread(target=_upstream, args=(connection,), daemon=True).start()
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        # A reset is the end too: the daemon hung up on what it would not read.
        with contextlib.suppress(ConnectionResetError):
            while size := connection.recv_into(buffer):
                _write_all(1, buffer[:size])


def _upstream(connection: socket.socket) -> None:
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with contextlib.suppress(OSError):
        while size := os.readv(0, [buffer]):
            connection.sendall(buffer[:size])
        connection.shutdown(socket.SHUT_WR)


def _write_all(handle: int, data: memoryview) -> None:
    while data:
        data = data[os.write(handle, data) :]

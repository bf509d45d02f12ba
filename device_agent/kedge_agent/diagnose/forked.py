"""What a collector's process does: it collects, and tells its parent through a pipe, in messages of kind and length."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import struct
import traceback
from collections.abc import Callable
from enum import IntEnum
from typing import Any

from .device import Collected, Device, UnavailableError, end_with_parent, reason_of

__all__ = ["HEADER", "NAME", "Said", "collect_and_tell"]

HEADER = struct.Struct(">BI")
NAME = struct.Struct(">H")
"""Before a message, and before the name that a MEMBER begins with."""

_MAX_TEXT = 4096
_MAX_REASON = 500


class Said(IntEnum):
    """DATA: JSON. MEMBER: a raw file. DONE: that was all. UNAVAILABLE, FAILED: why there is nothing."""

    DATA = 1
    MEMBER = 2
    DONE = 3
    UNAVAILABLE = 4
    FAILED = 5


def collect_and_tell(collect: Callable[[Device], Collected], device: Device, handle: int) -> None:
    """For a process that was forked for this; it never returns."""
    try:
        os.setpgid(0, 0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        end_with_parent()
        # A disk that is full is not to be filled with the memory of what crashed.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # Standard output carries parts to the host.
        null = os.open(os.devnull, os.O_RDWR)
        for each in range(3):
            os.dup2(null, each)
        collected = collect(device)
        _send(handle, Said.DATA, json.dumps(_plain(collected.data), allow_nan=False).encode())
        for name, data in collected.members:
            encoded = name.encode()
            _send(handle, Said.MEMBER, NAME.pack(len(encoded)) + encoded + data)
        _send(handle, Said.DONE, b"")
    except UnavailableError as error:
        _send(handle, Said.UNAVAILABLE, str(error)[:_MAX_REASON].encode("utf-8", "replace"))
    except PermissionError as error:
        _send(handle, Said.UNAVAILABLE, reason_of(error, error.filename or "something").encode("utf-8", "replace"))
    except BaseException as error:
        _send(handle, Said.FAILED, _described(error).encode("utf-8", "replace"))
    finally:
        os._exit(0)


def _described(error: BaseException) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" ({os.path.basename(frame.filename)}:{frame.lineno})" for frame in place)
    return f"{type(error).__name__}: {str(error)[:_MAX_REASON]}{where}"


def _send(handle: int, kind: int, body: bytes) -> None:
    for piece in (HEADER.pack(kind, len(body)), body):
        view = memoryview(piece)
        while view:
            view = view[os.write(handle, view) :]


def _plain(value: Any) -> Any:
    """What JSON and its readers take: no NaN, no half characters, no endless numbers or texts."""
    if isinstance(value, str):
        return value[:_MAX_TEXT].encode("utf-8", "replace").decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if abs(value) < 1 << 63 else None
    if isinstance(value, dict):
        return {_plain(str(key)): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(each) for each in value]
    return str(value)[:_MAX_TEXT]

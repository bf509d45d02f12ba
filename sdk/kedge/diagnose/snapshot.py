"""Have a device make a snapshot of itself, and keep it here: one file to send home, and a private map that stays."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from kedge_agent.formats.snapshots import GZIP_MAGIC, MAX_FILE_BYTES

from ..errors import KedgeError
from ..transport.base import Deadline, Transport
from .asking import Told, ask

__all__ = ["Taken", "take_snapshot"]

# What the device may take of the whole time: the rest is for the link.
_DEVICE_SHARE = 0.85
_SUFFIX = ".kedge-snapshot.tar"
_NOTE = (
    "PRIVATE: do not send this file. It says what the names in the snapshot beside it stand for, "
    "such as <ip-1> or <user-2>. Secrets are not in it: of each it says how long it is, and where it stood first."
)


@dataclass(frozen=True)
class Taken:
    """A snapshot that lies on this host.

    map_path: the private map beside it; None where none came.
    end: how it went, as the device told; empty where it was cut.
    cut: why it is not whole; None where it is.
    """

    path: Path
    map_path: Path | None
    size_bytes: int
    end: Mapping[str, Any]
    cut: str | None


def take_snapshot(
    transport: Transport,
    out: Path | None = None,
    *,
    folder: Path = Path(),
    seconds: float = 60,
    note: Callable[[Mapping[str, Any]], object] = lambda progress: None,
) -> Taken:
    """Take a snapshot of a device; its agent need not run, or answer.

    Args:
        out: the file; None: one named for the device and the time, in `folder`. A whole one replaces an older one;
            one that was cut stays beside it, as OUT.cut.
        seconds: within which it is done, whatever hangs.
        note: told of each collector that has ended.

    Returns:
        What came. Where the link breaks, that may be a part: a snapshot is as good as what stands in it.

    Raises:
        UnreachableError: nothing came.
        IncompatibleError: what came makes no sense.
        KedgeError: what the device reports.
        OSError: the file cannot be written.
    """
    deadline = Deadline.after(seconds, f"a snapshot of {transport.name}")
    where = out.parent if out is not None else folder
    words = ["snapshot", "--seconds", str(max(1, int(seconds * _DEVICE_SHARE)))]
    with _partial(where) as (file, partial):
        told, cut = _receive(transport, words, deadline, file, note)
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
        path = out if out is not None else where / _name(transport.name, partial)
        if cut is not None and path.exists():
            path = path.with_name(path.name + ".cut")
        os.replace(partial, path)
    map_path = _keep_map(path, None if told is None else told.private)
    return Taken(path, map_path, size, {} if told is None else told.end, cut)


def _keep_map(snapshot: Path, private: Mapping[str, Any] | None) -> Path | None:
    """The map of this snapshot beside it, and never that of an older one, whose masks stood for something else."""
    path = snapshot.with_name(snapshot.name + ".map.json")
    if private is None:
        path.unlink(missing_ok=True)
        return None
    with _partial(path.parent) as (file, partial):
        file.write(json.dumps({"note": _NOTE, "snapshot": snapshot.name, "map": dict(private)}, indent=2).encode())
        file.flush()
        os.replace(partial, path)
    return path


def _receive(
    transport: Transport,
    words: list[str],
    deadline: Deadline,
    file: BinaryIO,
    note: Callable[[Mapping[str, Any]], object],
) -> tuple[Told | None, str | None]:
    """What came beside the file, and why it is not whole."""
    try:
        return ask(transport, words, deadline, file.write, limit_bytes=MAX_FILE_BYTES, note=note), None
    except KedgeError as error:
        # Redacted as it was written: a part is safe to send, and better than nothing.
        if file.tell() == 0:
            raise
        return None, error.message


def _name(device: str, packed: Path) -> str:
    with packed.open("rb") as file:
        suffix = ".gz" if file.read(2) == GZIP_MAGIC else ".zst"
    return f"{device}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}{_SUFFIX}{suffix}"


@contextlib.contextmanager
def _partial(folder: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file of this user's alone (0600), gone unless it was renamed."""
    handle, name = tempfile.mkstemp(prefix=".kedge-snapshot.", dir=folder)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file, Path(name)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)

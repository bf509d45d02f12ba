"""One more channel of a push: a process that brings frames to the one that leads it, and accepts nothing.

A window of SSH bounds what a channel carries on a long link; several channels of one connection have as many windows.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

from ..errors import AgentError
from ..formats.delta import encodings
from ..formats.manifest import FileEntry
from ..wire import ENCODING_DELTA, Message
from .holdings import Frames
from .incoming import IncomingFrames, Send
from .layout import Layout
from .parcel import Parcel

__all__ = ["join"]


def join(
    layout: Layout,
    parcel: Parcel,
    offered: tuple[int, ...],
    send: Send,
    failed: Callable[[Exception], object],
    take: Callable[[IncomingFrames], None],
) -> None:
    """Take frames of a parcel that another process is receiving, until COMMIT or until the host hangs up.

    It was judged by the one that leads, and is accepted by it alone. Nothing is locked here, and nothing made.

    Args:
        offered: encodings that the sender can send.
        send, failed: as `IncomingFrames` has them.
        take: reads frames into what gathers them, until COMMIT.

    Raises:
        AgentError: nobody is receiving it (not_found), or a frame is not what the manifest names (integrity).
        OSError: as the file system says.
    """
    leader = _Leader(parcel, layout.staging(parcel.digest))
    with contextlib.closing(leader):
        leader.check()
        wanted = leader.open_files()
        taken = tuple(each for each in encodings() if each in offered and each != ENCODING_DELTA)
        want = {"files": [], "bytes": 0, "copied": 0, "encodings": taken, "bases": []}
        send(Message.WANT, json.dumps(want).encode())
        incoming = IncomingFrames(
            layout,
            parcel.files,
            leader.staging,
            leader.handles,
            wanted,
            {},
            taken,
            send,
            failed,
            leader.check,
        )
        with contextlib.closing(incoming), contextlib.suppress(EOFError):
            take(incoming)


class _Leader:
    """The process that receives the parcel, as its lock and its files show it."""

    def __init__(self, parcel: Parcel, staging: Path) -> None:
        self.staging = staging
        self.handles: dict[int, int] = {}
        self._files = parcel.files
        self._over = AgentError(
            f"{parcel.label} is not being pushed, or no longer: there is nothing to join",
            kind="not_found",
            hint="run it again",
        )
        try:
            self._lock = os.open(staging / ".lock", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise self._over from None

    def check(self, file: int | None = None) -> None:
        """Whether it is still there, and gathers this very file.

        Raises:
            AgentError: it does not (not_found).
        """
        try:
            fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if file is None or self._is_gathered(file):
                return
        else:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
        raise self._over

    def open_files(self) -> Frames:
        """Open the files that it gathers; hashes of all their frames."""
        wanted: Frames = {}
        seen: set[str] = set()
        for file, entry in enumerate(self._files):
            if entry.sha256 not in seen and self._open(file, entry):
                wanted |= {(file, frame): sha for frame, sha in enumerate(entry.frames)}
            seen.add(entry.sha256)
        return wanted

    def close(self) -> None:
        """Let go of all of it."""
        for handle in (self._lock, *self.handles.values()):
            os.close(handle)

    def _open(self, file: int, entry: FileEntry) -> bool:
        try:
            handle = os.open(self.staging / entry.sha256, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return False
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_size != entry.size_bytes:
            os.close(handle)
            return False
        self.handles[file] = handle
        return True

    def _is_gathered(self, file: int) -> bool:
        # After an error of the disk the file is removed, and what is written to it is nobody's.
        with contextlib.suppress(FileNotFoundError):
            path = self.staging / self._files[file].sha256
            return os.path.samestat(os.fstat(self.handles[file]), path.stat())
        return False

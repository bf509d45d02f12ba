"""Durable file operations. Everything here returns only after the bytes and the names are on disk.

An error of fsync is never passed over, and never answered by another fsync: the kernel may have dropped what it could
not write and call the file clean, so that the next one succeeds. Whoever meets one gives the file up: what was not
synced counts as lost, a frame is not acknowledged, and its file is removed, for its pages in memory would still hash
as if they were on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import AgentError

__all__ = [
    "exclusive_lock",
    "fsync_directory",
    "make_directory",
    "move_aside",
    "read_beginning",
    "read_bounded",
    "translate_os_error",
    "write_atomic",
]


def fsync_directory(path: Path) -> None:
    """Make renames and new names in a folder durable.

    Raises:
        OSError: it cannot be opened, or the disk fails. What was renamed shows under its new name all the same, and may
            lie under its old one after a power cut.
    """
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_directory(path: Path, mode: int = 0o755) -> None:
    """Create a folder and its parents, each durable in its own parent.

    Raises:
        OSError: as the file system says.
    """
    if path.is_dir():
        # Whoever made it may have been killed before its name was on disk.
        with contextlib.suppress(PermissionError):
            fsync_directory(path.parent)
        return
    if path.parent != path:
        make_directory(path.parent, mode)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=mode)
    fsync_directory(path.parent)


def move_aside(path: Path) -> None:
    """Rename a folder that lies in the place of a file: it is nothing of ours, and a rename does not replace it."""
    if path.is_dir() and not path.is_symlink():
        path.rename(path.with_name(f".{path.name}.damaged-{time.time_ns()}"))


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace a file's content by one rename: readers see the old bytes or the new ones.

    Raises:
        OSError: as the file system says. The old file is untouched, but where only the folder's fsync failed: readers
            then see the new one, and may see the old one after a power cut.
    """
    # As tempfile does it, which brings four compressors and a generator of random numbers along.
    name = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as out:
            os.fchmod(out.fileno(), mode)
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        move_aside(path)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    fsync_directory(path.parent)


def read_beginning(path: Path, length: int) -> bytes:
    """Up to so many bytes of a file.

    Raises:
        OSError: it cannot be read, or is something else than a file.
    """
    # Whoever opens a pipe waits for somebody to write to it.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as handle:
        if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a file", str(path))
        return handle.read(length)


def read_bounded(path: Path, limit: int) -> bytes:
    """Read a whole file of at most `limit` bytes.

    Raises:
        AgentError: it is longer (kind integrity).
        OSError: it cannot be read, or is something else than a file.
    """
    data = read_beginning(path, limit + 1)
    if len(data) > limit:
        raise AgentError(f"{path} is longer than {limit} bytes", kind="integrity")
    return data


@contextlib.contextmanager
def exclusive_lock(path: Path, busy: str) -> Iterator[None]:
    """Hold an advisory lock that dies with its holder.

    Raises:
        AgentError: somebody else holds it (kind busy; `busy` is the message).
    """
    hint = "wait for it to finish, then run the command again"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        # Its folder went between our making it and this line: the one who finished removed it.
        raise AgentError(busy, kind="busy", hint=hint) from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A file that was removed meanwhile keeps nobody out: the next one locks another of its name.
            if not os.path.samestat(os.fstat(handle), path.stat()):
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError):
            raise AgentError(busy, kind="busy", hint=hint) from None
        yield
    finally:
        os.close(handle)


def translate_os_error(error: OSError, doing: str) -> AgentError:
    """An OSError as the agent reports it: a full disk is its own kind of fault."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return AgentError(
            f"no space left on the device while {doing}",
            kind="space",
            hint="free disk space on the device, or put the agent's state folder on a larger disk",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return AgentError(
            f"not permitted while {doing}: {error}",
            kind="forbidden",
            hint="check who owns the agent's state folder, and that it is mounted read-write",
        )
    return AgentError(f"input/output error while {doing}: {error}", kind="internal", hint="see the kernel log")

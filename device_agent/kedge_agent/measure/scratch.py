"""Folders for what a child process is given and answers, outside of the state: a trial needs no room in the store.

An agent that is killed leaves its folder there. While it lives it holds a lock on it, so whoever clears up knows.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["scratch_folder", "sweep"]

_PREFIX = "kedge-apart-"
# Between being made and being locked a folder looks like one that was left.
_YOUNG_S = 3600.0


def _places() -> tuple[Path, ...]:
    """Where temporary files go, then memory, for the disk may be full. Without `tempfile`, which loads OpenSSL."""
    named = os.environ.get("TMPDIR")
    return (*((Path(named),) if named else ()), Path("/tmp"), Path("/dev/shm"))  # noqa: S108  (unguessable names there)


@contextlib.contextmanager
def scratch_folder(size_bytes: int, places: Sequence[Path] | None = None) -> Iterator[Path]:
    """A folder of this user's alone, in the first place with so much room; gone with all that is in it afterwards.

    Raises:
        OSError: there is no such place.
    """
    folder = _place(size_bytes, _places() if places is None else places) / f"{_PREFIX}{os.urandom(8).hex()}"
    folder.mkdir(mode=0o700)
    try:
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(held, fcntl.LOCK_SH)
            yield folder
        finally:
            os.close(held)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(places: Sequence[Path] | None = None) -> int:
    """Remove folders of this user's agents that were killed; returns how many. Nothing fails with it."""
    return sum(_removed(folder) for place in places or _places() for folder in place.glob(f"{_PREFIX}*"))


def _removed(folder: Path) -> bool:
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        found = os.fstat(handle)
        if found.st_uid != os.geteuid() or time.time() - found.st_mtime < _YOUNG_S:
            return False
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _place(size_bytes: int, places: Sequence[Path]) -> Path:
    for place in places:
        with contextlib.suppress(OSError):
            room = os.statvfs(place)
            if room.f_bavail * room.f_frsize >= size_bytes and os.access(place, os.W_OK | os.X_OK):
                return place
    raise OSError(errno.ENOSPC, "no folder for temporary files has room for what a child process is given")

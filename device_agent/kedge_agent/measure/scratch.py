"""Folders for what a child process is given and answers, outside of the state: a trial needs no room in the store.

Whoever uses one holds a lock on it. One that nobody holds is of an agent that was killed, and goes before the next is
made: `/dev/shm` is memory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["scratch_folder", "sweep"]

_PREFIX = "kedge-apart-"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TRIES = 8
# Room for what the child writes.
_ANSWER_BYTES = 1 << 20


def _places() -> tuple[Path, ...]:
    """Where temporary files go, then memory, for the disk may be full. Without `tempfile`, which loads OpenSSL."""
    named = os.environ.get("TMPDIR")
    return (*((Path(named).absolute(),) if named else ()), Path("/tmp"), Path("/dev/shm"))  # noqa: S108  (names of ours)


@contextlib.contextmanager
def scratch_folder(size_bytes: int, places: Sequence[Path] | None = None) -> Iterator[Path]:
    """A folder of this user's alone, in the first place with room; gone with all that is in it afterwards.

    Args:
        size_bytes: what the child is given; what it may answer is reckoned with.

    Raises:
        OSError: there is no such place.
    """
    places = _places() if places is None else places
    sweep(places)
    folder, held = _made(size_bytes + _ANSWER_BYTES, places)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def sweep(places: Sequence[Path] | None = None) -> int:
    """Remove folders of this user's agents that were killed; returns how many. Nothing fails with it."""
    found: list[str] = []
    for place in _places() if places is None else places:
        with contextlib.suppress(OSError), os.scandir(place) as entries:
            found += [entry.path for entry in entries if entry.name.startswith(_PREFIX)]
    return sum(_removed(path) for path in found)


def _removed(path: str) -> bool:
    try:
        handle = os.open(path, _FOLDER)
    except OSError:
        return False
    try:
        if os.fstat(handle).st_uid != os.geteuid():
            return False
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _made(size_bytes: int, places: Sequence[Path]) -> tuple[Path, int]:
    for place in places:
        with contextlib.suppress(OSError):
            # A file system may be full, or have no room for one more name.
            room = os.statvfs(place)
            if room.f_bavail * room.f_frsize < size_bytes:
                continue
            for _ in range(_TRIES):
                folder = place / f"{_PREFIX}{os.urandom(8).hex()}"
                folder.mkdir(mode=0o700)
                held = _held(folder)
                if held is not None:
                    return folder, held
    raise OSError(errno.ENOSPC, "no folder for temporary files has room for what a child process is given")


def _held(folder: Path) -> int | None:
    """A handle with a lock; None: a sweep of another process came between."""
    try:
        handle = os.open(folder, _FOLDER)
    except FileNotFoundError:
        return None
    # Where a file system locks no folders, a sweep cannot lock one either, and leaves it alone.
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_SH)
    if folder.exists():  # nobody else makes one of this name
        return handle
    os.close(handle)
    return None

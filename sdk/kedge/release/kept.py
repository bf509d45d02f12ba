"""Releases that this host keeps: fetched from a URL, or unpacked from an archive for a rollout.

    $XDG_CACHE_HOME/kedge/releases/<digest>/           whole; when it was last used is the folder's own time
                                  /.<digest>.partial/  on its way
                                  /.<digest>.lock      held by whoever makes it; gone when that has ended
                                  /.<digest>.*.gone/   let go of, and being removed

Many threads and processes make, use and remove the same: whoever uses one holds a shared lock on its manifest, and
whoever removes one an exclusive lock, and first renames it, so that nobody opens what is half gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kedge_agent.formats.manifest import MANIFEST_NAME, is_digest

from ..config import cache_dir
from ..errors import BadInputError, IntegrityError, KedgeError
from ..transport.base import Deadline
from .bundle import Release, open_release

__all__ = ["KeptRelease", "KeptReleases", "claimed"]

_WAIT_S = 0.1
_proving = threading.Lock()
# By its folder: when and how large its files were that were proved.
_proved: dict[Path, list[tuple[int, int, int, int]]] = {}


@dataclass(frozen=True)
class KeptRelease:
    """A kept release. model, version: None where its manifest cannot be read. used: seconds since 1970."""

    digest: str
    model: str | None
    version: int | None
    size_bytes: int
    used: float

    def to_json(self) -> dict[str, object]:
        """Plain JSON."""
        return {
            "digest": self.digest,
            "model": self.model,
            "version": self.version,
            "bytes": self.size_bytes,
            "used": self.used,
        }


class KeptReleases:
    """Kept releases, in `releases` under the cache folder unless `folder` says otherwise."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_dir() / "releases"

    def use(self, digest: str, *, prove: bool = False) -> Release | None:
        """A kept release, marked as used now; None: it is not kept. While what is returned lives, nobody removes it.

        Args:
            prove: it can be had again, so one that is damaged is let go of, and None returned. Its bytes are hashed
                once by each process, and again where its files have changed.

        Raises:
            KedgeError: as `open_release`.
        """
        folder = self.folder / digest
        while True:
            try:
                lock = (folder / MANIFEST_NAME).open("rb")
            except FileNotFoundError:
                if not folder.exists():
                    return None
                open_release(folder)  # says what is wrong with it, unless it has just come
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_SH)
                if _is_at(lock, folder / MANIFEST_NAME):
                    with contextlib.suppress(OSError):
                        os.utime(folder)
                    release = open_release(folder)
                    if prove:
                        _prove(release)
                    # Whoever pushes it opens its files by their names, for as long as a slow device takes.
                    weakref.finalize(release, lock.close)
                    return release
            except (KedgeError, FileNotFoundError) as error:
                with lock, _proving:
                    # Else it was let go of meanwhile, and there may be another in its place.
                    if _is_at(lock, folder / MANIFEST_NAME):
                        if not (prove and isinstance(error, IntegrityError)):
                            raise
                        # Others that use it have no use of it either.
                        with contextlib.suppress(FileNotFoundError):
                            shutil.rmtree(_rename_away(folder), ignore_errors=True)
                continue
            except BaseException:
                lock.close()
                raise
            lock.close()

    def put(self, digest: str, make: Callable[[Path], None]) -> Release:
        """A kept release, made now unless it is kept already; as `use`.

        Args:
            make: makes this release in the folder that it is told, which does not exist.

        Raises:
            KedgeError: as `claimed`, as `make`.
        """
        made = False
        while (release := self.use(digest, prove=not made)) is None:
            with claimed(self.folder / digest) as partial:
                if partial is None:
                    continue
                try:
                    make(partial / "release")
                    (partial / "release").rename(self.folder / digest)
                    made = True
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
        return release

    def entries(self) -> list[KeptRelease]:
        """All that is kept, what was used last first."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for name in filter(is_digest, os.listdir(self.folder)):
                with contextlib.suppress(FileNotFoundError):
                    found.append(_entry(self.folder / name))
        return sorted(found, key=lambda each: -each.used)

    def gc(
        self, *, keep_bytes: int | None = None, older_than_s: float | None = None, needed: Container[str] = frozenset()
    ) -> list[KeptRelease]:
        """Remove what was not used for so long, and then what was used longest ago, until so much is left; and what
        nobody finishes or removes any more.

        Args:
            needed: digests of releases that stay. Those in use stay too.

        Returns:
            What is gone.
        """
        self._sweep(needed)
        gone = []
        total = 0
        for entry in self.entries():
            old = older_than_s is not None and time.time() - entry.used > older_than_s
            goes = old or (keep_bytes is not None and total + entry.size_bytes > keep_bytes)
            if goes and entry.digest not in needed and self._remove(self.folder / entry.digest):
                gone.append(entry)
            else:
                total += entry.size_bytes
        return gone

    def _remove(self, folder: Path) -> bool:
        """Whether it was removed; one in use is not."""
        try:
            with (folder / MANIFEST_NAME).open("r+b") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not _is_at(lock, folder / MANIFEST_NAME):
                    return False
                gone = _rename_away(folder)
        except BlockingIOError:
            return False
        except FileNotFoundError:
            # Without a manifest nobody uses it.
            if not folder.is_dir():
                return False
            gone = _rename_away(folder)
        shutil.rmtree(gone, ignore_errors=True)
        return True

    def _sweep(self, needed: Container[str]) -> None:
        for gone in self.folder.glob(".*.gone"):
            shutil.rmtree(gone, ignore_errors=True)
        for path in [*self.folder.glob(".*.partial"), *self.folder.glob(".*.lock")]:
            digest = path.name[1:].rpartition(".")[0]
            # Of what is needed yet, the next fetch goes on with what an earlier one got.
            if not is_digest(digest) or digest in needed:
                continue
            with _taken(self.folder / f".{digest}.lock") as taken:
                partial = self.folder / f".{digest}.partial"
                if taken and partial.exists():
                    shutil.rmtree(_rename_away(partial), ignore_errors=True)


@contextlib.contextmanager
def claimed(folder: Path, deadline: Deadline | None = None) -> Iterator[Path | None]:
    """A folder beside the one that is to be made, for whoever makes it alone; None: somebody made it meanwhile. It may
    hold what an earlier try left.

    Raises:
        BadInputError: it cannot be written there. UnreachableError: the deadline has passed.
    """
    partial, lock = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "lock"))
    while not folder.exists():
        with contextlib.ExitStack() as stack:
            try:
                folder.parent.mkdir(parents=True, exist_ok=True)
                taken = stack.enter_context(_taken(lock))
                free = taken and not folder.exists()
                if free:
                    partial.mkdir(exist_ok=True)
            except OSError as error:
                said = f"{partial} cannot be written: {error.strerror}"
                raise BadInputError(said, hint="give another path") from error
            if taken:
                yield partial if free else None
                return
        time.sleep(_WAIT_S if deadline is None else min(_WAIT_S, deadline.remaining()))
    yield None


@contextlib.contextmanager
def _taken(path: Path) -> Iterator[bool]:
    """A lock that lies there as long as somebody holds it; False: somebody else does."""
    with path.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        # Whoever held it may have removed it since it was opened.
        if not _is_at(lock, path):
            yield False
            return
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)


def _prove(release: Release) -> None:
    """Prove a release once; many that ask at once wait for the one that does."""
    with _proving:
        stats = [path.stat() for _, path in release.files()]
        as_they_are = [(each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns) for each in stats]
        if _proved.get(release.folder) != as_they_are:
            release.verify()
            _proved[release.folder] = as_they_are
    release.offer()


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _rename_away(folder: Path) -> Path:
    name = folder.name.removeprefix(".").removesuffix(".partial")
    return folder.rename(folder.with_name(f".{name}.{uuid.uuid4().hex}.gone"))


def _entry(folder: Path) -> KeptRelease:
    used = folder.stat().st_mtime
    with os.scandir(folder) as files:
        size = sum(each.stat(follow_symlinks=False).st_size for each in files)
    try:
        manifest = open_release(folder).manifest
    except KedgeError:
        return KeptRelease(folder.name, None, None, size, used)
    return KeptRelease(folder.name, manifest.model, manifest.version, size, used)

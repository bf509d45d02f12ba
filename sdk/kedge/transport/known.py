"""Objects that this host pushed before: what differences to what devices have are made against.

A file is kept by its content's hash: a hard link where that is possible, else a copy. So its bytes may have changed
since: whoever gets a difference proves what was made of it, and what turns out wrong is forgotten.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kedge_agent.formats.manifest import FileEntry, is_digest

from ..config import cache_dir

__all__ = ["KnownObject", "KnownObjects"]

_LEAST_BYTES = 1 << 20
_MOST_BYTES = 4 << 30
_USED = ".used"


@dataclass(frozen=True)
class KnownObject:
    """One kept file. used: when it was last pushed or compared with, in seconds since 1970."""

    sha256: str
    size_bytes: int
    used: float


class KnownObjects:
    """Kept files, in `objects` under the cache folder unless `folder` says otherwise."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_dir() / "objects"

    def find(self, sha256: str, size_bytes: int) -> Path | None:
        """The file of this hash, which has this size; None where it was not pushed, or was changed or removed since."""
        path = self.folder / sha256
        try:
            if not is_digest(sha256) or path.stat().st_size != size_bytes:
                return None
            self._use(sha256)
        except OSError:
            return None
        return path

    def remember(self, files: Iterable[tuple[FileEntry, Path]]) -> None:
        """Keep files that were pushed, the large ones, and let go of those used longest ago. It may fail in silence."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            kept = [self._keep(entry.sha256, path) for entry, path in files if entry.size_bytes >= _LEAST_BYTES]
            if any(kept):
                self.gc(keep_bytes=_MOST_BYTES)

    def forget(self, sha256: str) -> None:
        """Let go of a file that is not what it was."""
        for name in (sha256, sha256 + _USED):
            (self.folder / name).unlink(missing_ok=True)

    def entries(self) -> list[KnownObject]:
        """All that is kept, what was used last first."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for name in filter(is_digest, os.listdir(self.folder)):
                with contextlib.suppress(OSError):
                    size = (self.folder / name).stat().st_size
                    used = (self.folder / (name + _USED)).stat().st_mtime
                    found.append(KnownObject(name, size, used))
        return sorted(found, key=lambda each: -each.used)

    def gc(self, *, keep_bytes: int | None = None, older_than_s: float | None = None) -> list[KnownObject]:
        """Let go of what was not used for so long, and then of what was used longest ago, until so much is left.

        Returns:
            What is gone.
        """
        gone = []
        total = 0
        self._sweep()
        for entry in self.entries():
            old = older_than_s is not None and time.time() - entry.used > older_than_s
            if old or (keep_bytes is not None and total + entry.size_bytes > keep_bytes):
                self.forget(entry.sha256)
                gone.append(entry)
            else:
                total += entry.size_bytes
        return gone

    def _keep(self, sha256: str, path: Path) -> bool:
        """Keep this file; whether it was not there already."""
        with contextlib.suppress(FileNotFoundError):
            if (self.folder / sha256).samefile(path):
                self._use(sha256)
                return False
        # What lies there may have changed since; this is the file as it was just pushed. Threads of one process push
        # one release to many devices: a name that two of them had could be the user's file when one writes to it.
        fresh = self.folder / f".{sha256}.{os.getpid()}.{threading.get_ident()}"
        fresh.unlink(missing_ok=True)
        try:
            try:
                os.link(path, fresh)
            except OSError:
                shutil.copyfile(path, fresh)
            self._use(sha256)
            fresh.replace(self.folder / sha256)
        finally:
            # rename(2) leaves both names where they are links to the same file already.
            fresh.unlink(missing_ok=True)
        return True

    def _sweep(self) -> None:
        """Let go of what processes were about to keep that are no more."""
        for path in self.folder.glob(".*.*"):
            _, sha256, pid, *_ = path.name.split(".")
            if is_digest(sha256) and pid.isdecimal() and not _runs(int(pid)):
                path.unlink(missing_ok=True)

    def _use(self, sha256: str) -> None:
        # Beside it: a hard link's own times are those of the user's file.
        (self.folder / (sha256 + _USED)).touch()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True

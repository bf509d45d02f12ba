"""A disk of a few megabytes that can be filled to its last byte: a tmpfs that the test mounts."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.environment import lacks


class SmallDisk:
    """A mounted disk: `folder` is on it, and nothing else but what fills it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    @property
    def free_bytes(self) -> int:
        """As statvfs has it."""
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def fill(self, leave_bytes: int = 0) -> None:
        """Fill it, but for so many bytes (rounded down to pages)."""
        take = self.free_bytes - leave_bytes
        if take > 0:
            with self._ballast.open("ab") as out:
                os.posix_fallocate(out.fileno(), out.tell(), take)

    def free(self) -> None:
        """Empty it of what filled it."""
        self._ballast.unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(folder: Path, size_mib: int) -> Iterator[SmallDisk]:
    """A disk of this size at a folder; skips where this user may mount none."""
    if os.geteuid() != 0:
        lacks("root", "only root can mount a small disk")
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "kedge-small-disk", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        lacks("root", f"no disk can be mounted here: {done.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)

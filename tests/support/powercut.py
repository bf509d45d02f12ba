"""A disk whose power can be cut: a file system in user space that forgets what was not synced (`unsynced`).

`python -m tests.support.powercut BACKING MOUNT` serves it until standard input ends, and obeys lines from there:
`cut [SEED]`, `fail-sync NTH PATTERN`. `mounted` is for tests.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.environment import fuse, lacks
from tests.support.unsynced import Inode, Tree

_ROOT_FOLDER = Path(__file__).resolve().parents[2]


class Disk:
    """A mounted disk: `folder` is what a device sees of it."""

    def __init__(self, where: Path) -> None:
        self.folder = where / "disk"
        self._backing = where / "backing"
        self._process: subprocess.Popen[str] | None = None
        self.folder.mkdir(parents=True)
        self._backing.mkdir()
        self._mount()

    def _mount(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.powercut", str(self._backing), str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=_ROOT_FOLDER,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "mounted\n":
            _, errors = self._process.communicate()
            lacks("fuse", f"a file system in user space cannot be mounted here: {errors.strip()[-300:]}")

    def cut(self, *killed: subprocess.Popen[Any], seed: int | None = None) -> None:
        """The power goes, and comes back: only what was synced is there; processes that used the disk are dead.

        Args:
            killed: those processes.
            seed: let a random part of what was not synced be there too, as a disk that reorders its writes does.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write("cut\n" if seed is None else f"cut {seed}\n")
        self._process.stdin.flush()
        self._process.wait(60)
        for process in killed:
            process.kill()
            process.wait(60)
        self._unmount()
        self._mount()

    def fail_sync(self, pattern: str, nth: int = 1) -> None:
        """Let the n-th sync from now on of a path that matches (`/models/*/state.*`) fail with EIO, once."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"fail-sync {nth} {pattern}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def close(self) -> None:
        """Unmount it."""
        self._unmount()

    def _unmount(self) -> None:
        tool = ["umount", "--lazy"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
        # A disk whose process has gone may be unmounted already.
        subprocess.run([*tool, str(self.folder)], capture_output=True, check=False)
        if self._process is not None:
            with self._process as process, contextlib.suppress(BrokenPipeError):
                process.kill()
            self._process = None


@contextlib.contextmanager
def mounted(where: Path) -> Iterator[Disk]:
    """A disk below a folder; skips where there can be none."""
    fuse()
    disk = Disk(where)
    try:
        yield disk
    finally:
        disk.close()


def _serve(backing: Path, mount: str) -> None:
    import mfusepy

    tree = Tree(backing)
    guard = threading.Lock()

    class _Operations(mfusepy.Operations):  # type: ignore[misc]
        """File system calls, as operations on the tree. Where a file is open, its handle is its inode's number."""

        use_ns = True

        def init_with_config(self, connection: Any, config: Any) -> None:
            config.use_ino = config.hard_remove = config.nullpath_ok = 1
            config.entry_timeout = config.attr_timeout = config.negative_timeout = 0
            sys.stdout.write("mounted\n")
            sys.stdout.flush()

        def getattr(self, path: str | None, handle: int | None = None) -> dict[str, Any]:
            with guard:
                found = _open(path, handle)
                size = len(found.target) if stat.S_ISLNK(found.mode) else 0
                if stat.S_ISREG(found.mode):
                    size = len(tree.content(found))
                return {
                    "st_ino": found.number,
                    "st_mode": found.mode,
                    "st_nlink": tree.links(found),
                    "st_uid": found.uid,
                    "st_gid": found.gid,
                    "st_size": size,
                    "st_blocks": -(-size // 512),
                    "st_mtime": found.mtime_ns,
                    "st_ctime": found.mtime_ns,
                    "st_atime": found.mtime_ns,
                }

        def readdir(self, path: str | None, handle: int) -> list[Any]:
            with guard:
                # Whatever has no number is passed over by readdir(3).
                numbers = {".": handle, "..": handle, **tree.inode(handle).entries}
                modes = {name: tree.inode(number).mode for name, number in numbers.items()}
                return [(name, {"st_ino": numbers[name], "st_mode": mode}, 0) for name, mode in modes.items()]

        def readlink(self, path: str) -> str:
            with guard:
                return tree.find(path).target

        def open(self, path: str, flags: int) -> int:
            with guard:
                return tree.find(path).number

        def opendir(self, path: str) -> int:
            with guard:
                return tree.find(path).number

        def create(self, path: str, mode: int) -> int:
            return _make(path, stat.S_IFREG | mode)

        def mkdir(self, path: str, mode: int) -> int:
            _make(path, stat.S_IFDIR | mode)
            return 0

        def symlink(self, path: str, target: str) -> int:
            _make(path, stat.S_IFLNK | 0o777, target)
            return 0

        def link(self, path: str, source: str) -> int:
            with guard:
                tree.link(source, path)
            return 0

        def unlink(self, path: str) -> int:
            with guard:
                tree.remove(path, folder=False)
            return 0

        def rmdir(self, path: str) -> int:
            with guard:
                tree.remove(path, folder=True)
            return 0

        def rename(self, old: str, new: str) -> int:
            with guard:
                tree.rename(old, new)
            return 0

        def chmod(self, path: str, mode: int) -> int:
            with guard:
                tree.find(path).mode = mode
            return 0

        def chown(self, path: str, uid: int, gid: int) -> int:
            with guard:
                found = tree.find(path)
                found.uid, found.gid = (uid if uid >= 0 else found.uid), (gid if gid >= 0 else found.gid)
            return 0

        def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
            with guard:
                found = tree.find(path)
                found.mtime_ns = times[1] if times is not None else found.mtime_ns
            return 0

        def read(self, path: str | None, size: int, offset: int, handle: int) -> bytes:
            with guard:
                return bytes(tree.content(tree.inode(handle))[offset : offset + size])

        def write(self, path: str | None, data: bytes, offset: int, handle: int) -> int:
            with guard:
                tree.write(tree.inode(handle), data, offset)
            return len(data)

        def truncate(self, path: str | None, length: int, handle: int | None = None) -> int:
            with guard:
                tree.resize(_open(path, handle), length)
            return 0

        def fallocate(self, path: str | None, mode: int, offset: int, size: int, handle: int) -> int:
            if mode:
                raise OSError(errno.EOPNOTSUPP, "fallocate")
            with guard:
                found = tree.inode(handle)
                tree.resize(found, max(len(tree.content(found)), offset + size))
            return 0

        def fsync(self, path: str | None, data_only: int, handle: int) -> int:
            with guard:
                tree.sync(tree.inode(handle), data_only=bool(data_only))
            return 0

        def fsyncdir(self, path: str | None, data_only: int, handle: int) -> int:
            with guard:
                tree.sync_names(tree.inode(handle))
            return 0

        def statfs(self, path: str) -> dict[str, int]:
            found = os.statvfs(backing)
            return {key: getattr(found, key) for key in dir(found) if key.startswith("f_")}

    def _open(path: str | None, handle: int | None) -> Inode:
        return tree.inode(handle) if path is None and handle is not None else tree.find(path or "/")

    def _make(path: str, mode: int, target: str = "") -> int:
        with guard:
            return tree.make(path, mode, *mfusepy.fuse_get_context()[:2], target).number

    def obey() -> None:
        for line in sys.stdin:
            command, *arguments = line.split()
            with guard:
                if command == "cut":
                    tree.lose(int(arguments[0]) if arguments else None)
                    os._exit(0)
                tree.fail_sync(arguments[1], int(arguments[0]))
                sys.stdout.write("done\n")
                sys.stdout.flush()
        os._exit(0)

    threading.Thread(target=obey, daemon=True).start()
    mfusepy.FUSE(_Operations(), mount, foreground=True, nothreads=True, fsname="powercut")


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), sys.argv[2])

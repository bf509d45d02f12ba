"""A tree of files in memory, and in a backing folder only so much of it as a power cut would leave.

What is written is in memory until the file is synced; a name that is made, moved or removed is in memory until its
folder is synced. A rename moves both its names at once or not at all, and changes of one folder's names keep their
order, as every journalling file system has it; nothing else is promised, not even that a synced file has a name.
"""

from __future__ import annotations

import errno
import fnmatch
import json
import os
import random
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE_BYTES = 4096
ROOT = 1


@dataclass
class Inode:
    """A file, folder or symbolic link as the running system sees it."""

    number: int
    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    target: str = ""
    entries: dict[str, int] = field(default_factory=dict)
    data: bytearray | None = None
    dirty: set[int] = field(default_factory=set)

    def to_json(self) -> dict[str, Any]:
        """All but names and data, which become durable in ways of their own."""
        kept = ("mode", "uid", "gid", "mtime_ns", "target")
        return {key: getattr(self, key) for key in kept}


@dataclass(frozen=True)
class _Change:
    """One operation on names: in these folders, each name now means this inode; None: it is gone."""

    names: tuple[tuple[int, str, int | None], ...]

    @property
    def folders(self) -> set[int]:
        return {folder for folder, _, _ in self.names}


class Tree:
    """The tree, begun with what the backing folder holds.

    Raises (all operations): OSError, as a file system would.
    """

    def __init__(self, backing: Path) -> None:
        self._data = backing / "data"
        self._record = backing / "tree.json"
        self._data.mkdir(parents=True, exist_ok=True)
        self._pending: list[_Change] = []
        self._failing: list[list[Any]] = []
        self._durable: dict[int, dict[str, Any]] = {ROOT: {"mode": stat.S_IFDIR | 0o755, "entries": {}}}
        if self._record.exists():
            self._durable = {int(key): value for key, value in json.loads(self._record.read_text()).items()}
        self._forget_unreachable()
        self._inodes = {
            number: Inode(number, **{**kept, "entries": dict(kept["entries"])})
            for number, kept in self._durable.items()
        }
        self._next = max((*self._durable, *(int(path.name) for path in self._data.iterdir()))) + 1
        self._save()

    def _forget_unreachable(self) -> None:
        reached, todo = set(), [ROOT]
        while todo:
            number = todo.pop()
            if number not in reached:
                reached.add(number)
                todo += self._durable[number]["entries"].values()
        self._durable = {number: kept for number, kept in self._durable.items() if number in reached}
        for path in self._data.iterdir():
            if int(path.name) not in reached:
                path.unlink()

    def _save(self) -> None:
        partial = self._record.with_suffix(".partial")
        partial.write_text(json.dumps(self._durable))
        partial.replace(self._record)

    # What the running system sees.

    def inode(self, number: int) -> Inode:
        """By its number."""
        return self._inodes[number]

    def find(self, path: str) -> Inode:
        """By its path, which begins with /."""
        found = self._inodes[ROOT]
        for name in filter(None, path.split("/")):
            if not stat.S_ISDIR(found.mode):
                raise OSError(errno.ENOTDIR, path)
            if name not in found.entries:
                raise OSError(errno.ENOENT, path)
            found = self._inodes[found.entries[name]]
        return found

    def path(self, inode: Inode) -> str:
        """One of its paths; one that has none is named by its number."""
        for folder in self._inodes.values():
            for name, number in folder.entries.items():
                if number == inode.number:
                    return f"{self.path(folder) if folder.number != ROOT else ''}/{name}"
        return "/" if inode.number == ROOT else f"({inode.number})"

    def links(self, inode: Inode) -> int:
        """How many names it has."""
        if stat.S_ISDIR(inode.mode):
            return 2
        return sum(other == inode.number for folder in self._inodes.values() for other in folder.entries.values())

    def content(self, inode: Inode) -> bytearray:
        """The bytes of a file."""
        if inode.data is None:
            try:
                inode.data = bytearray((self._data / str(inode.number)).read_bytes())
            except FileNotFoundError:
                inode.data = bytearray()
        return inode.data

    def make(self, path: str, mode: int, uid: int, gid: int, target: str = "") -> Inode:
        """A new file, folder or link with a name."""
        folder, name = self._place(path)
        if name in folder.entries:
            raise OSError(errno.EEXIST, path)
        made = Inode(self._next, mode, uid, gid, time.time_ns(), target)
        self._inodes[made.number] = made
        self._next += 1
        self._change((folder, name, made.number))
        return made

    def link(self, source: str, path: str) -> None:
        """One more name of a file."""
        folder, name = self._place(path)
        if name in folder.entries:
            raise OSError(errno.EEXIST, path)
        self._change((folder, name, self.find(source).number))

    def remove(self, path: str, *, folder: bool) -> None:
        """Take a name away."""
        parent, name = self._place(path)
        found = self.find(path)
        if folder and found.entries:
            raise OSError(errno.ENOTEMPTY, path)
        self._change((parent, name, None))

    def rename(self, old: str, new: str) -> None:
        """Move a name, over another where there is one."""
        (source, name), (target, other) = self._place(old), self._place(new)
        moved = self.find(old)
        if other in target.entries:
            over = self._inodes[target.entries[other]]
            if over is moved:
                return
            if stat.S_ISDIR(over.mode) != stat.S_ISDIR(moved.mode):
                raise OSError(errno.EISDIR if stat.S_ISDIR(over.mode) else errno.ENOTDIR, new)
            if over.entries:
                raise OSError(errno.ENOTEMPTY, new)
        self._change((source, name, None), (target, other, moved.number))

    def write(self, inode: Inode, data: bytes, offset: int) -> None:
        """Write into a file."""
        content = self.content(inode)
        self.resize(inode, max(len(content), offset + len(data)))
        content[offset : offset + len(data)] = data
        inode.dirty.update(range(offset // PAGE_BYTES, (offset + len(data) - 1) // PAGE_BYTES + 1))
        inode.mtime_ns = time.time_ns()

    def resize(self, inode: Inode, size: int) -> None:
        """Cut a file off, or fill it up with zeros."""
        content = self.content(inode)
        if size < len(content):
            del content[size:]
            inode.dirty = {page for page in inode.dirty if page * PAGE_BYTES < size}
            # A page that is cut is written again: its rest must be zeros when the file grows.
            inode.dirty.add(size // PAGE_BYTES)
        else:
            inode.dirty.update(range(len(content) // PAGE_BYTES, -(-size // PAGE_BYTES)))
            content.extend(bytes(size - len(content)))

    def _place(self, path: str) -> tuple[Inode, str]:
        parent, _, name = path.rpartition("/")
        folder = self.find(parent)
        if not stat.S_ISDIR(folder.mode):
            raise OSError(errno.ENOTDIR, path)
        return folder, name

    def _change(self, *names: tuple[Inode, str, int | None]) -> None:
        for folder, name, number in names:
            if number is None:
                del folder.entries[name]
            else:
                folder.entries[name] = number
            folder.mtime_ns = time.time_ns()
        self._pending.append(_Change(tuple((folder.number, name, number) for folder, name, number in names)))

    # What becomes durable.

    def fail_sync(self, pattern: str, nth: int) -> None:
        """Let the n-th sync of a path that matches fail, as a disk does that could not write: EIO, once.

        What was to be written is then gone for good: the next sync succeeds, and does not write it (as Linux has it).
        """
        self._failing.append([pattern, nth])

    def sync(self, inode: Inode, *, data_only: bool = False) -> None:
        """Make a file's bytes durable, and its mode unless `data_only`; not its names."""
        if self._fails(inode):
            inode.dirty.clear()
            raise OSError(errno.EIO, self.path(inode))
        self._write_pages(inode, inode.dirty, len(self.content(inode)))
        inode.dirty = set()
        known = self._durable.get(inode.number)
        if known is None or not data_only:
            kept = {**inode.to_json(), "entries": {}}
            if kept != known:
                self._durable[inode.number] = kept
                self._save()

    def sync_names(self, folder: Inode) -> None:
        """Make what happened to a folder's names durable, and with it what it rests on."""
        if self._fails(folder):
            raise OSError(errno.EIO, self.path(folder))
        kept = self._durable.setdefault(folder.number, {**folder.to_json(), "entries": {}})
        kept.update(folder.to_json())
        self._apply({folder.number}, len(self._pending))
        self._save()

    def lose(self, seed: int | None) -> None:
        """The power goes: what is not durable is lost, but for a random part of it, where there is a seed."""
        if seed is None:
            return
        chance = random.Random(seed)  # noqa: S311  (no secret)
        for inode in self._inodes.values():
            if inode.dirty:
                size = len(self.content(inode))
                pages = {page for page in inode.dirty if chance.random() < 0.5}
                path = self._data / str(inode.number)
                old = path.stat().st_size if path.exists() else 0
                reached = max((min((page + 1) * PAGE_BYTES, size) for page in pages), default=0)
                self._write_pages(inode, pages, chance.choice((max(old, reached), size)))
        for _ in range(chance.randrange(4)):
            if self._pending:
                last = chance.randrange(len(self._pending))
                self._apply(self._pending[last].folders, last + 1)
        self._save()

    def _fails(self, inode: Inode) -> bool:
        for rule in self._failing:
            if fnmatch.fnmatch(self.path(inode), rule[0]):
                rule[1] -= 1
                if rule[1] == 0:
                    return True
        return False

    def _write_pages(self, inode: Inode, pages: set[int], size: int) -> None:
        content = self.content(inode)
        handle = os.open(self._data / str(inode.number), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            for page in sorted(pages):
                start = page * PAGE_BYTES
                os.pwrite(handle, content[start : start + PAGE_BYTES], start)
            os.ftruncate(handle, size)
        finally:
            os.close(handle)

    def _apply(self, folders: set[int], count: int) -> None:
        """Make changes of these folders among the first `count` durable, and those before them that they rest on."""
        chosen: list[int] = []
        for index in reversed(range(count)):
            change = self._pending[index]
            if change.folders & folders:
                chosen.append(index)
                folders = folders | change.folders
        for index in reversed(chosen):
            for folder, name, number in self._pending[index].names:
                kept = self._durable.setdefault(folder, {**self._inodes[folder].to_json(), "entries": {}})
                if number is None:
                    kept["entries"].pop(name, None)
                else:
                    kept["entries"][name] = number
                    self._durable.setdefault(number, {**self._inodes[number].to_json(), "entries": {}})
        taken = set(chosen)
        self._pending = [change for index, change in enumerate(self._pending) if index not in taken]

"""Which model crashed the agent: marks that a process leaves behind, and how often in a row each release did it.

The file STATE/running is mapped. A mark costs a store to memory, and the kernel keeps it when the process is gone; a
power cut loses it, which is right: it says nothing about models. The file has its full size from the beginning, so that
a full disk keeps nothing from being marked or counted.
"""

from __future__ import annotations

import logging
import mmap
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .files import make_directory, move_aside, read_beginning
from .layout import Layout

__all__ = ["Marker", "Marks", "read_marks"]

_LOG = logging.getLogger("kedge.crashes")

_MAGIC = b"kedge running 1\n"
_BOOT = slice(16, 52)
_ALIVE = 62
_ANONYMOUS = 63
_FIRST_SEAT = 64
# The first seat is nobody's: whoever finds no other takes it, and is not marked.
_SEATS = 4096
_FIRST_ENTRY = _FIRST_SEAT + _SEATS
_NAME = 64
# Of an entry: the names, then two counters.
_CRASHES = 2 * _NAME
_DOUBTS = _CRASHES + 1
_COUNTED = slice(_CRASHES, _DOUBTS + 1)
_ENTRY = 2 * _NAME + 4
_ENTRIES = 254
_SIZE = _FIRST_ENTRY + _ENTRIES * _ENTRY
_MOST = 255


class Marks:
    """The marks of this process; of the one before it on this boot, what it left.

    Making one never fails: where the file cannot be mapped, nothing is remembered.

    unclean: the last one did not end in order. blamed: model and release of what it was loading or computing then: any
    of several may have done it. present: of all that it had loaded or was loading. anonymous: how many in a row ended
    so without any such.
    """

    def __init__(self, layout: Layout) -> None:
        self._map = _mapped(layout.root / "running")
        self._seats = list(range(_FIRST_SEAT + 1, _FIRST_ENTRY))
        self._guard = threading.Lock()
        self._users: dict[int, int] = {}
        self.unclean = bool(self._map[_ALIVE])
        self.blamed = frozenset(self._left()) if self.unclean else frozenset()
        self.present = frozenset(map(self._name, range(1, _ENTRIES + 1))) - {("", "")} if self.unclean else frozenset()
        self._map[_FIRST_SEAT:_FIRST_ENTRY] = bytes(_SEATS)
        for name in self.blamed:
            self._count(*name, _CRASHES if len(self.blamed) == 1 else _DOUBTS)
        for number in range(1, _ENTRIES + 1):
            entry = self._entry(number)
            if not any(self._counted(number)):
                self._map[entry : entry + _ENTRY] = bytes(_ENTRY)
        if self.unclean and not self.blamed:
            self._map[_ANONYMOUS] = min(self._map[_ANONYMOUS] + 1, _MOST)
        self._map[_ALIVE] = 1

    @property
    def anonymous(self) -> int:
        """Ends in a row that were not in order, and that no model is to be blamed for."""
        return self._map[_ANONYMOUS]

    def crashes(self, model: str, release: str) -> int:
        """How often in a row the agent ended while it loaded or ran this release, and no other."""
        number = self._find(model, release)
        return self._counted(number)[0] if number else 0

    def doubts(self, model: str, release: str) -> int:
        """How often in a row the agent ended when this release was one of those that may have done it."""
        number = self._find(model, release)
        return self._counted(number)[1] if number else 0

    def doubt(self, model: str, release: str) -> None:
        """This release may have done it, though it was neither being loaded nor run."""
        self._count(model, release, _DOUBTS)

    @property
    def suspects(self) -> frozenset[tuple[str, str]]:
        """Models and releases of which there are crashes or doubts."""
        return frozenset(self._name(number) for number in range(1, _ENTRIES + 1) if any(self._counted(number)))

    def marker(self, model: str, release: str) -> Marker:
        """What marks the loading and the runs of this release, until it is closed."""
        with self._guard:
            number = self._find(model, release) or self._find("", "")
            if number:
                self._write_name(self._entry(number), model, release)
                self._users[number] = self._users.get(number, 0) + 1
        return Marker(self._map, self._seats, number, self._closed)

    def forget(self, model: str | None = None) -> None:
        """It has served well, or is given another chance: its crashes count no more; None: nobody's."""
        for number in range(1, _ENTRIES + 1):
            if model in (None, self._name(number)[0]):
                self._clear(number)
        if model is None:
            self.calm()

    def pardon(self, model: str, release: str) -> None:
        """The crashes and doubts of one release count no more."""
        number = self._find(model, release)
        if number:
            self._clear(number)

    def calm(self) -> None:
        """This process has run for a while: those before it, which ended for no model's doing, count no more."""
        self._map[_ANONYMOUS] = 0

    def close(self, hung: Iterable[tuple[str, str]] = ()) -> None:
        """This process ends in order. hung: models and releases whose load or run did not end, for the next to doubt.

        Idempotent: the first call counts.
        """
        if not self._map[_ALIVE]:
            return
        self.forget()
        for name in hung:
            self.doubt(*name)
        self._map[_ALIVE] = 0

    def _count(self, model: str, release: str, counter: int) -> None:
        number = self._find(model, release) or self._find("", "")
        if number:
            entry = self._entry(number)
            self._write_name(entry, model, release)
            self._map[entry + counter] = min(self._map[entry + counter] + 1, _MOST)

    def _counted(self, number: int) -> bytes:
        return self._map[self._entry(number) : self._entry(number) + _ENTRY][_COUNTED]

    def _clear(self, number: int) -> None:
        entry = self._entry(number)
        self._map[entry + _CRASHES : entry + _DOUBTS + 1] = bytes(2)

    def _closed(self, number: int) -> None:
        with self._guard:
            self._users[number] -= 1
            entry = self._entry(number)
            if not self._users[number] and not any(self._counted(number)):
                self._map[entry : entry + _ENTRY] = bytes(_ENTRY)

    def _left(self) -> set[tuple[str, str]]:
        numbers = set(self._map[_FIRST_SEAT + 1 : _FIRST_ENTRY])
        return {self._name(number) for number in numbers if 0 < number <= _ENTRIES and self._name(number)[0]}

    def _find(self, model: str, release: str) -> int:
        return next((number for number in range(1, _ENTRIES + 1) if self._name(number) == (model, release)), 0)

    def _name(self, number: int) -> tuple[str, str]:
        entry = self._entry(number)
        model, release = self._map[entry : entry + _NAME], self._map[entry + _NAME : entry + 2 * _NAME]
        return model.rstrip(b"\0").decode("ascii", "replace"), release.rstrip(b"\0").decode("ascii", "replace")

    def _write_name(self, entry: int, model: str, release: str) -> None:
        self._map[entry : entry + 2 * _NAME] = model.encode().ljust(_NAME, b"\0") + release.encode()

    def _entry(self, number: int) -> int:
        return _FIRST_ENTRY + (number - 1) * _ENTRY


class Marker:
    """Marks runs of one release, from any thread."""

    def __init__(self, mapped: mmap.mmap, seats: list[int], number: int, closed: Callable[[int], None]) -> None:
        self._map = mapped
        self._seats = seats
        self._number = number
        self._closed = closed

    def enter(self) -> int:
        """A run begins; the seat to give back when it ends."""
        try:
            seat = self._seats.pop()
        except IndexError:
            return _FIRST_SEAT
        self._map[seat] = self._number
        return seat

    def leave(self, seat: int) -> None:
        """A run ended."""
        if seat != _FIRST_SEAT:
            self._map[seat] = 0
            self._seats.append(seat)

    def close(self) -> None:
        """No more runs of it. To be called once."""
        if self._number:
            self._closed(self._number)


def read_marks(layout: Layout, boot_id: str | None) -> dict[str, Any] | None:
    """What is marked, as the facts have it; None: nothing, or of another boot.

    Args:
        boot_id: of this boot; None: not known, and the marks are taken to be of this one.

    Raises:
        OSError: it cannot be read.
    """
    try:
        data = read_beginning(layout.root / "running", _SIZE + 1)
    except FileNotFoundError:
        return None
    if len(data) != _SIZE or not data.startswith(_MAGIC):
        return None
    if boot_id is not None and data[_BOOT].decode("ascii", "replace").strip() != boot_id:
        return None
    suspects = []
    for number in range(1, _ENTRIES + 1):
        entry = data[_FIRST_ENTRY + (number - 1) * _ENTRY :][:_ENTRY]
        crashes, doubts = entry[_CRASHES], entry[_DOUBTS]
        if crashes or doubts:
            suspects.append({**_names(entry), "crashes": crashes, "doubts": doubts})
    busy = sorted(set(data[_FIRST_SEAT + 1 : _FIRST_ENTRY]))
    computing = [
        _names(data[_FIRST_ENTRY + (number - 1) * _ENTRY :][:_ENTRY]) for number in busy if 0 < number <= _ENTRIES
    ]
    return {
        "unclean": bool(data[_ALIVE]),
        "anonymous": data[_ANONYMOUS],
        "suspects": suspects,
        "computing": [names for names in computing if names["model"]],
    }


def _names(entry: bytes) -> dict[str, str]:
    model, release = (
        part.rstrip(b"\0").decode("ascii", "replace") for part in (entry[:_NAME], entry[_NAME : 2 * _NAME])
    )
    return {"model": model, "release": release}


def _mapped(path: Path) -> mmap.mmap:
    boot = _boot()
    try:
        # Every block is written, for a store to a block that the disk then has no room for would end the process.
        make_directory(path.parent, mode=0o700)
        move_aside(path)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            known = os.pread(handle, _SIZE + 1, 0)
            same = len(known) == _SIZE and known.startswith(_MAGIC) and known[_BOOT] == boot
            if not same:
                os.ftruncate(handle, _SIZE)
            whole = known if same else (_MAGIC + boot).ljust(_SIZE, b"\0")
            if os.pwrite(handle, whole, 0) != _SIZE:
                raise OSError(f"{path} was not written whole")
            os.fsync(handle)
            return mmap.mmap(handle, _SIZE)
        finally:
            os.close(handle)
    except (OSError, ValueError) as error:
        _LOG.error("crashes of models cannot be told from others': %s", error)
        return mmap.mmap(-1, _SIZE)


def _boot() -> bytes:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip().ljust(36)[:36]
    except OSError:
        return b"-" * 36

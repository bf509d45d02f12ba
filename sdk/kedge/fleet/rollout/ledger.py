"""The ledger of a rollout: its plan, and what happened since, on the disk of the host that drives it.

    $XDG_STATE_HOME/kedge/rollouts/<id>/plan.json       written once
                                       /events.ndjson   a line an event, appended before it counts
                                       /lock            held by whoever drives the rollout
                                       /abort           somebody asks the driver for an end

A kill at any instant loses the last event at most: a line that was torn is not read, and is cut off before the next
one. What is read back is checked like anything that was received.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ...config import state_dir
from ...errors import BadInputError, BusyError, IntegrityError
from .events import ENDS, read_event
from .machine import Rollout
from .plan import Plan, is_rollout_id
from .reading import Fields, UnreadableError

__all__ = ["Ledger", "Pen", "create", "find", "rollouts"]

_MAX_PLAN_BYTES = 512 * 1024 * 1024
_MAX_LINE_BYTES = 1024 * 1024
_LOCK_TRIES, _LOCK_PAUSE_S = 10, 0.05


class Ledger:
    """The ledger in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._plan: Plan | None = None

    @property
    def id(self) -> str:
        """The rollout's name."""
        return self.folder.name

    @property
    def plan(self) -> Plan:
        """What was asked for.

        Raises:
            IntegrityError: the plan is damaged. IncompatibleError: a later kedge wrote it.
        """
        if self._plan is None:
            try:
                self._plan = Plan.from_json(_read_json(self.folder / "plan.json", _MAX_PLAN_BYTES))
            except UnreadableError as error:
                raise _damaged(self.folder / "plan.json", str(error)) from error
        return self._plan

    def read(self) -> Rollout:
        """The rollout as it stands; somebody may drive it.

        Raises:
            IntegrityError: plan or events are damaged. IncompatibleError: a later kedge wrote them.
        """
        try:
            with (self.folder / "events.ndjson").open("rb") as file:
                return self._replay(file)[0]
        except FileNotFoundError:
            return Rollout(self.plan)

    def driver(self) -> int | None:
        """Process id of whoever drives it; None: nobody does."""
        try:
            with (self.folder / "lock").open("rb") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    # It may not have written yet who it is.
                    return int(lock.read(20).strip() or b"0")
        except (FileNotFoundError, ValueError):
            return None
        return None

    def ask_abort(self, *, rollback: bool) -> None:
        """Ask whoever drives it, or will, to end it; it is looked at each second.

        Args:
            rollback: what it has updated is taken back.
        """
        _write(self.folder / "abort", {"rollback": rollback})

    def asked_abort(self) -> bool | None:
        """Whether somebody asked for an end with a rollback; None: nobody asked."""
        try:
            return Fields(_read_json(self.folder / "abort", _MAX_LINE_BYTES), "the request").flag("rollback")
        except FileNotFoundError:
            return None
        except UnreadableError:
            # Whoever wrote it wanted an end.
            return False

    def forget_abort(self) -> None:
        """The request is in the events."""
        (self.folder / "abort").unlink(missing_ok=True)

    @contextmanager
    def driving(self) -> Iterator[Pen]:
        """Drive it: nobody else does meanwhile.

        Raises:
            BusyError: somebody drives it already.
            IntegrityError, IncompatibleError: as `read`.
        """
        handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "r+b") as lock:
            self._lock(lock)
            with (self.folder / "events.ndjson").open("a+b", buffering=0) as file:
                file.seek(0)
                rollout, size = self._replay(file)
                file.truncate(size)
                yield Pen(file, rollout)

    def _lock(self, lock: BinaryIO) -> None:
        for left in reversed(range(_LOCK_TRIES)):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # Who asks whether it is driven holds the lock for an instant.
                if left:
                    time.sleep(_LOCK_PAUSE_S)
                    continue
                raise BusyError(
                    f"rollout {self.id} is being driven by process {self.driver() or 'unknown'}",
                    hint=f"look at it: kedge rollout status {self.id}; end it: kedge rollout abort {self.id}",
                ) from None
        lock.truncate()
        lock.write(b"%d\n" % os.getpid())
        lock.flush()

    def _replay(self, file: BinaryIO) -> tuple[Rollout, int]:
        """The rollout, and where the last whole line ends."""
        rollout, size, number = Rollout(self.plan), 0, 0
        while line := file.readline(_MAX_LINE_BYTES + 1):
            number += 1
            if not line.endswith(b"\n"):
                if len(line) > _MAX_LINE_BYTES:
                    raise _damaged(self.folder / "events.ndjson", f"line {number} does not end")
                break
            try:
                rollout.apply(read_event(json.loads(line)))
            except (UnreadableError, ValueError, RecursionError) as error:
                raise _damaged(self.folder / "events.ndjson", f"line {number}: {error}") from error
            size += len(line)
        return rollout, size


class Pen:
    """Writes events down, and then has them count."""

    def __init__(self, file: BinaryIO, rollout: Rollout) -> None:
        self.rollout = rollout
        self._file = file
        self._unsynced = False

    def write(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """One event more; `at_s` is put to it where it has none.

        Returns:
            The event as it was applied.

        Raises:
            BadInputError: the disk takes no more, and the event does not count.
            UnreadableError: it does not follow on those before.
        """
        checked = read_event({"at_s": time.time(), **event})
        line = json.dumps(checked, separators=(",", ":")).encode() + b"\n"
        size = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            # What a full disk took of the line is cut off here, or by whoever reads it.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), size)
            raise self._cannot(error) from error
        self._unsynced = self._unsynced or checked["event"] in ENDS
        self.rollout.apply(checked)
        return checked

    def sync(self) -> None:
        """What has ended stands on the disk, also after a power cut.

        Raises:
            BadInputError: the disk does not take it.
        """
        if self._unsynced:
            try:
                os.fdatasync(self._file.fileno())
            except OSError as error:
                raise self._cannot(error) from error
            self._unsynced = False

    def _cannot(self, error: OSError) -> BadInputError:
        return BadInputError(
            f"{self._file.name}: {error.strerror}: the rollout cannot be driven on",
            hint=f"make room, then: kedge rollout resume {self.rollout.plan.id}; what runs, the devices end",
        )


def create(plan: Plan) -> Ledger:
    """The ledger of a new rollout.

    Raises:
        OSError: the disk takes no more.
    """
    folder = _root() / plan.id
    folder.mkdir(parents=True, mode=0o700)
    _write(folder / "plan.json", plan.to_json())
    return Ledger(folder)


def rollouts() -> list[Ledger]:
    """Every rollout of this host, the newest first."""
    try:
        found = [each for each in _root().iterdir() if is_rollout_id(each.name) and (each / "plan.json").is_file()]
    except FileNotFoundError:
        return []
    return [Ledger(each) for each in sorted(found, key=lambda each: each.name, reverse=True)]


def find(name: str | None) -> Ledger:
    """A rollout by its id; None: the newest.

    Raises:
        BadInputError: there is none.
    """
    if name is None:
        every = rollouts()
        if not every:
            raise BadInputError("there is no rollout yet", hint="kedge deploy RELEASE --to @group begins one")
        return every[0]
    if not is_rollout_id(name) or not (_root() / name / "plan.json").is_file():
        raise BadInputError(f"there is no rollout {name!r}", hint="they are listed by: kedge rollout list")
    return Ledger(_root() / name)


def _root() -> Path:
    return state_dir() / "rollouts"


def _read_json(path: Path, most: int) -> Any:
    with path.open("rb") as file:
        text = file.read(most + 1)
    if len(text) > most:
        raise UnreadableError("it is too long")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"it is no JSON: {error}") from error


def _write(path: Path, document: Mapping[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as out:
        json.dump(document, out)
        out.flush()
        os.fsync(out.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _damaged(path: Path, why: str) -> IntegrityError:
    return IntegrityError(
        f"{path} is damaged: {why}", hint="begin the rollout anew: devices that serve the release are left as they are"
    )

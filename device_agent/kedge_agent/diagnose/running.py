"""Run collectors, each in a process of its own with a deadline: one that hangs or crashes takes nothing with it.

A collector touches what may be broken: a disk that does not answer, a driver that kills whoever asks it. It is forked,
so that it starts at once, and leads a process group, so that what it started ends with it. One that not even SIGKILL
ends (it waits for a device) is left behind, and nobody waits for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .device import Collected, Device
from .forked import HEADER, NAME, Said, collect_and_tell

__all__ = ["MAX_DATA_BYTES", "MAX_MEMBERS_BYTES", "Collector", "Outcome", "run_collectors"]

MAX_DATA_BYTES = 4 << 20
MAX_MEMBERS_BYTES = 64 << 20
"""Of one collector: its document, and its raw files together."""

_AT_ONCE = 6
_WORKS_S = 1.0
_REAP_S = 0.3
_POLL_S = 0.002


@dataclass(frozen=True)
class Collector:
    """heavy: for snapshots alone. state: it looks into the state folder, and is not asked where that is silent."""

    name: str
    collect: Callable[[Device], Collected]
    deadline_s: float
    heavy: bool = False
    state: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a collector.

    status: "ok", "unavailable" (what it looks at is not here), "failed" or "timeout". reason: None where it is ok.
    data: None where it is not. members: raw files by name, for whoever is told of the outcome alone.
    """

    name: str
    status: str
    reason: str | None
    ms: float
    data: dict[str, Any] | None
    members: tuple[tuple[str, bytes], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As the facts have it (docs/diagnose.md)."""
        return {"status": self.status, "reason": self.reason, "ms": round(self.ms, 3), "data": self.data}


def run_collectors(
    collectors: Sequence[Collector],
    device: Device,
    deadline_s: float,
    tell: Callable[[Outcome], object] = lambda outcome: None,
) -> dict[str, Outcome]:
    """Run all of them, a few at a time in their order, and end within the deadline; the process has no other thread.

    One that has run for a while waits for something, and keeps no other from being begun.

    Args:
        deadline_s: for all of them; each has its own too.
        tell: called with each as it ends; while it takes its time, no collector's runs.

    Returns:
        Outcomes by name, in the order of `collectors`, without members.
    """
    end = time.monotonic() + deadline_s
    waiting = deque(collectors)
    running: dict[int, _Child] = {}
    left: list[int] = []
    outcomes: dict[str, Outcome] = {}

    def told(outcome: Outcome) -> None:
        begin = time.monotonic()
        tell(outcome)
        for child in running.values():
            child.pause(time.monotonic() - begin, end)
        outcomes[outcome.name] = replace(outcome, members=())

    while waiting or running:
        while waiting and _busy(running.values()) < _AT_ONCE and time.monotonic() < end:
            collector = waiting.popleft()
            try:
                child = _Child(collector, device, end)
            except OSError as error:
                told(Outcome(collector.name, "failed", f"no process could be made for it: {error.strerror}", 0.0, None))
                continue
            running[child.handle] = child
        if not running:
            break
        due = min(child.end for child in running.values())
        if waiting:
            due = min(due, time.monotonic() + _WORKS_S / 2)
        ready, _, _ = select.select(list(running), [], [], max(0.0, due - time.monotonic()))
        for handle in list(running):
            child = running[handle]
            outcome = child.read() if handle in ready else None
            if outcome is None and time.monotonic() >= child.end:
                outcome = child.cut()
            if outcome is not None:
                del running[handle]
                child.close()
                left.append(child.pid)
                told(outcome)
    for collector in waiting:
        told(Outcome(collector.name, "timeout", "not begun: the time for all was over", 0.0, None))
    _reap(left)
    return {collector.name: outcomes[collector.name] for collector in collectors}


def _busy(children: Iterable[_Child]) -> int:
    return sum(child.runs_s < _WORKS_S for child in children)


@dataclass
class _Received:
    """What a child has said so far."""

    data: dict[str, Any] | None = None
    members: list[tuple[str, bytes]] = field(default_factory=list)
    members_bytes: int = 0


class _Child:
    """A collector's process, as its parent sees it."""

    def __init__(self, collector: Collector, device: Device, end: float) -> None:
        self._name = collector.name
        self._deadline_s = collector.deadline_s
        self._begin = time.monotonic()
        self._paused_s = 0.0
        self.end = min(end, self._begin + collector.deadline_s)
        self._buffer = bytearray()
        self._received = _Received()
        self.handle, write_end = os.pipe()
        try:
            self.pid = os.fork()
        except OSError:
            os.close(self.handle)
            os.close(write_end)
            raise
        if self.pid == 0:
            collect_and_tell(collector.collect, device, write_end)
        os.close(write_end)
        # Both sides do so: whoever comes first.
        with contextlib.suppress(OSError):
            os.setpgid(self.pid, self.pid)

    @property
    def runs_s(self) -> float:
        """For how long it has run, as far as that counts."""
        return time.monotonic() - self._begin - self._paused_s

    def pause(self, seconds: float, end: float) -> None:
        """Nobody listened for so long: it does not count."""
        self._paused_s += seconds
        self.end = min(self.end + seconds, end)

    def read(self) -> Outcome | None:
        """Take in what there is; the outcome, where it is told, or the child has ended."""
        data = os.read(self.handle, 1 << 20)
        self._buffer += data
        try:
            outcome = self._parse()
        except (ValueError, struct.error) as error:
            return self._outcome("failed", str(error))
        if outcome is None and not data:
            return self._outcome("failed", self._how_it_ended())
        return outcome

    def cut(self) -> Outcome:
        """It had its time."""
        mine = self.runs_s >= self._deadline_s
        return self._outcome(
            "timeout", f"no end within {self._deadline_s:g} s" if mine else "the time for all was over"
        )

    def close(self) -> None:
        """End it and all that it started."""
        os.close(self.handle)
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)

    def _parse(self) -> Outcome | None:
        while len(self._buffer) >= HEADER.size:
            kind, length = HEADER.unpack_from(self._buffer)
            limit = MAX_MEMBERS_BYTES - self._received.members_bytes if kind == Said.MEMBER else MAX_DATA_BYTES
            if length > limit:
                raise ValueError("it told more than it may")
            if len(self._buffer) < HEADER.size + length:
                return None
            body = bytes(memoryview(self._buffer)[HEADER.size : HEADER.size + length])
            del self._buffer[: HEADER.size + length]
            outcome = self._take(kind, body)
            if outcome is not None:
                return outcome
        return None

    def _take(self, kind: int, body: bytes) -> Outcome | None:
        if kind == Said.DATA:
            self._received.data = json.loads(body)
            if not isinstance(self._received.data, dict):
                raise ValueError("what it told is no object")
        elif kind == Said.MEMBER:
            (size,) = NAME.unpack_from(body)
            name = body[NAME.size : NAME.size + size].decode()
            self._received.members.append((name, body[NAME.size + size :]))
            self._received.members_bytes += len(body)
        elif kind == Said.DONE:
            return self._outcome("ok", None)
        elif kind in (Said.UNAVAILABLE, Said.FAILED):
            return self._outcome("unavailable" if kind == Said.UNAVAILABLE else "failed", body.decode())
        else:
            raise ValueError("what it told makes no sense")
        return None

    def _outcome(self, status: str, reason: str | None) -> Outcome:
        ms = self.runs_s * 1000
        if status != "ok":
            return Outcome(self._name, status, reason, ms, None)
        return Outcome(self._name, status, reason, ms, self._received.data, tuple(self._received.members))

    def _how_it_ended(self) -> str:
        # It has closed its pipe, and is on its way out, or its status is there already.
        end = time.monotonic() + _REAP_S
        found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        while found is None and time.monotonic() < end:
            time.sleep(_POLL_S)
            found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if found is None or found.si_code == os.CLD_EXITED:
            return "it ended without a word"
        number = found.si_status
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        return f"it was ended by {name}" + ("; memory may have run out" if name == "SIGKILL" else "")


def _reap(pids: list[int]) -> None:
    """Take in the statuses of processes that were killed; one that waits for a device is not waited for."""
    left = set(pids)
    end = time.monotonic() + _REAP_S
    while left:
        for pid in list(left):
            try:
                gone = os.waitpid(pid, os.WNOHANG)[0] == pid
            except ChildProcessError:
                gone = True
            if gone:
                left.discard(pid)
        if not left or time.monotonic() >= end:
            return
        time.sleep(_POLL_S)

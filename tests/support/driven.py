"""Rollouts to devices that are a function of the test: what it answers to each task, and what was asked of it when."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kedge.fleet.inventory import Limit
from kedge.fleet.rollout.options import Options
from kedge.fleet.rollout.plan import Plan, make_plan

__all__ = ["OTHER", "RELEASE", "Fleet", "Serving", "answer", "names", "plan_of", "pool"]

RELEASE = "5" * 64
OTHER = "6" * 64
_ENDS = {"deploy": "updated", "look": "looked", "rollback": "rolled_back", "build": "built"}
_CODES = {"refused": 5, "unreachable": 4, "late": 12, "unknown": 12, "failed": 1, "rollback_failed": 1}

Answers = Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True)
class _Selected:
    name: str
    target: str

    def way(self) -> dict[str, Any]:
        return {"local": True}


def names(count: int) -> list[str]:
    return [f"d{number:04}" for number in range(count)]


def plan_of(
    count: int, options: Options | None = None, *, limits: Sequence[Limit] = (), targets: Sequence[str] = ("cpu",)
) -> Plan:
    """A plan for devices d0000, d0001 and so on, whose targets alternate."""
    return make_plan(
        [_Selected(name, targets[place % len(targets)]) for place, name in enumerate(names(count))],
        model="digits",
        version=2,
        digest=RELEASE,
        source="/srv/digits.release",
        options=options or Options(),
        limits=limits,
    )


def answer(task: Mapping[str, Any], state: str | None = None, **more: Any) -> dict[str, Any]:
    """What a worker answers; by default, that all went well."""
    state = state or _ENDS[task["kind"]]
    bad = state in _CODES
    told: dict[str, Any] = {
        "device": task["device"],
        "kind": task["kind"],
        "state": state,
        "reason": f"{task['device']} is {state}" if bad else None,
        "hint": "look at it" if bad else None,
        "exit_code": _CODES.get(state, 0),
        "seconds": 0.25,
        "steps": {"push": 0.25},
        "cpu_s": 0.001,
        "worker": "host:1",
        "deployed": None,
        "engine": None,
        "look": None,
    }
    if state == "updated":
        told["deployed"] = {
            "release": RELEASE,
            "previous": OTHER,
            "push_s": 0.25,
            "wire_bytes": 1000,
            "after": {"p99_ms": 2.0},
        }
    if state == "looked":
        told["look"] = {"release": RELEASE, "requests": 100, "errors": 0, "p99_ms": 2.0, "why": None}
        told["look"] |= more.pop("look", {})
    return told | more


class Fleet:
    """The devices, as a function of tasks; it keeps what was asked, in order, and how many at once.

    answers: by device: a state for its deploys, or a function of the task. groups: of which the most at once is kept.
    """

    def __init__(
        self, answers: Mapping[str, str | Answers] | None = None, *, groups: Mapping[str, frozenset[str]] | None = None
    ) -> None:
        self.answers: dict[str, str | Answers] = dict(answers or {})
        self.asked: list[tuple[str, str]] = []
        self.tasks: list[Mapping[str, Any]] = []
        self.most: Counter[str] = Counter()
        self._groups = {"all": None, **(groups or {})}
        self._now: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, task: Mapping[str, Any]) -> Any:
        device = task["device"]
        mine = [group for group, members in self._groups.items() if members is None or device in members]
        with self._lock:
            self.asked.append((device, task["kind"]))
            self.tasks.append(task)
            for group in mine:
                self._now[group] += 1
                self.most[group] = max(self.most[group], self._now[group])
        try:
            way = self.answers.get(device)
            if callable(way):
                return way(task)
            return self.told(task, way if task["kind"] == "deploy" else None)
        finally:
            with self._lock:
                self._now.subtract(mine)

    def told(self, task: Mapping[str, Any], state: str | None) -> Any:
        """What a device answers by itself; `state`: that it is to come to."""
        return answer(task, state)

    def of(self, kind: str) -> list[str]:
        """The devices that were asked for this, in order."""
        return [device for device, asked in self.asked if asked == kind]


class Serving(Fleet):
    """Devices that remember what they serve, as real ones do, whatever is said of them.

    A state in `answers` is that of deploys; all but "refused" and "failed" switch first. serves: release by device.
    """

    def __init__(self, count: int, answers: Mapping[str, str | Answers] | None = None) -> None:
        super().__init__(answers)
        self.serves = dict.fromkeys(names(count), OTHER)
        self._begun_s: dict[str, float] = {}

    def told(self, task: Mapping[str, Any], state: str | None = None) -> Any:
        device, serves = task["device"], self.serves[task["device"]] == RELEASE
        began = task["first_s"] is None or self._begun_s.get(device, 0.0) >= task["first_s"]
        if task["kind"] == "look":
            return answer(task, state, look={"release": self.serves[device]})
        if task["kind"] == "rollback" and serves and began:
            self.serves[device] = OTHER
        elif task["kind"] == "deploy" and serves:
            return answer(task, state or ("updated" if began else "current"))
        elif task["kind"] == "deploy" and state not in ("refused", "failed"):
            self.serves[device], self._begun_s[device] = RELEASE, time.time()
        return answer(task, state)

    def agrees(self, document: Mapping[str, Any]) -> bool:
        """Whether devices serve what the document says of them; where it says that it does not know, they may."""
        said = {"updated": RELEASE, "current": RELEASE}
        said |= dict.fromkeys(("waiting", "not_begun", "refused", "reverted", "rolled_back"), OTHER)
        return all(said.get(each["state"]) in (None, self.serves[each["device"]]) for each in document["devices"])


@contextmanager
def pool(workers: int = 8) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(workers) as executor:
        yield executor

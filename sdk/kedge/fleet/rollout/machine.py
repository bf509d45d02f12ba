"""The state of a rollout: a fold over its plan and its events. It reads no clock and no disk, and starts nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .answers import BUILD, DEPLOY, LOOK, ROLLBACK
from .builds import Builds
from .device import DeviceState
from .document import document
from .ending import name_ends, take_back, taken_back
from .plan import Plan
from .reading import UnreadableError
from .resuming import take_up
from .turns import Turns

__all__ = ["Rollout", "WaveState"]


@dataclass
class WaveState:
    """waiting, running, watching (its pause, and looks at its devices), passed, failed, or aborted."""

    state: str = "waiting"
    begun_s: float | None = None
    ended_s: float | None = None
    watched_s: float | None = None
    looked: bool = False
    gates: list[dict[str, Any]] = field(default_factory=list)


class Rollout:
    """A rollout as its events have it. `decide` says what follows from it.

    wave: the one that has begun last; 0: none. flying: indices of devices that a worker has. open: of devices that are
    yet to come to an end in what is done now. failures: that count.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.devices = [DeviceState(each) for each in plan.devices]
        self.waves = [WaveState() for _ in plan.waves]
        self.wave = 0
        self.flying: set[int] = set()
        self.open: set[int] = set()
        self.failures = 0
        self.builds = Builds()
        self.begun_s: float | None = None
        self.ended_s: float | None = None
        self.ended: str | None = None
        self.reason: str | None = None
        self.hint: str | None = None
        self.halted = False
        self.aborted: bool | None = None
        self.rolling_back = False
        self.interrupted: Mapping[str, Any] | None = None
        self.turns = Turns([each.name for each in plan.devices], plan.limits)
        self._index = {each.name: index for index, each in enumerate(plan.devices)}
        self._by_event: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
            "begun": self._begun,
            "resumed": lambda event: take_up(self, event),
            "wave": self._wave,
            "task": self._task,
            "answer": self._answer,
            "lost": self._lost,
            "engine": self._engine,
            "engine_refused": self._engine_refused,
            "watch": self._watch,
            "look": self._look,
            "gates": self._gates,
            "halted": self._halted,
            "abort": self._abort,
            "rollback": lambda event: take_back(self),
            "interrupted": self._interrupted,
            "ended": self._ended,
        }

    def apply(self, event: Mapping[str, Any]) -> None:
        """One event more (`events.read_event`).

        Raises:
            UnreadableError: it does not follow on those before.
        """
        after = ("resumed", "abort") if self.ended == "halted" else ("resumed",)
        if self.ended is not None and event["event"] not in after:
            raise UnreadableError(f"the event {event['event']} after the end")
        self._by_event[event["event"]](event)

    def device(self, name: str) -> DeviceState:
        """A device by its name.

        Raises:
            UnreadableError: it is not in the plan.
        """
        return self.devices[self.index(name)]

    def index(self, name: str) -> int:
        """A device's place in the plan; raises as `device`."""
        try:
            return self._index[name]
        except KeyError:
            raise UnreadableError(f"no device {name!r} in the plan") from None

    def note_step(self, device: str, step: str) -> None:
        """What a worker is at: shown, and not kept. May be called on any thread."""
        index = self._index.get(device)
        if index is not None and index in self.flying:
            self.devices[index].step = step

    @property
    def this_wave(self) -> WaveState:
        """The wave that has begun last."""
        return self.waves[self.wave - 1]

    @property
    def stopped(self) -> bool:
        """Nothing more begins, but what takes back: it halted, or is to, or somebody asked for an end."""
        return self.halted or self.aborted is not None or self.failures > self.plan.options.max_failures

    @property
    def failed(self) -> bool:
        """A device did not come to the end that was wanted, and may be tried again."""
        return any(each.fails or each.skipped or each.state == "rollback_failed" for each in self.devices)

    @property
    def releases(self) -> frozenset[str]:
        """Digests that a device of this rollout may serve."""
        return self.builds.releases() | {self.plan.release["digest"]}

    def to_json(self, *, driven: bool = True) -> dict[str, Any]:
        """The document (docs/rollout-report.md); `driven`: somebody drives it now, or it is interrupted."""
        return document(self, driven=driven)

    def _begun(self, event: Mapping[str, Any]) -> None:
        self.begun_s = event["at_s"]

    def _wave(self, event: Mapping[str, Any]) -> None:
        if event["wave"] != self.wave + 1 or event["wave"] > len(self.waves):
            raise UnreadableError(f"wave {event['wave']} after wave {self.wave}")
        self.wave = event["wave"]
        self.this_wave.state, self.this_wave.begun_s = "running", event["at_s"]
        for index in self.plan.of_wave(self.wave):
            self.devices[index].round = self.wave
            self.queue(index, DEPLOY)

    def _task(self, event: Mapping[str, Any]) -> None:
        index = self.index(event["device"])
        each = self.devices[index]
        if each.queued != event["kind"]:
            raise UnreadableError(f"a task that {event['device']} was not due")
        each.queued, each.flying = None, event["kind"]
        self.turns.take(index)
        self.flying.add(index)
        if event["kind"] in (DEPLOY, BUILD):
            each.state = "running" if event["kind"] == DEPLOY else "building"
            each.reason = each.hint = each.exit_code = each.ended_s = None
            each.attempts += 1
            each.begun_s = event["at_s"] if each.begun_s is None else each.begun_s
            each.first_s = event["at_s"] if each.first_s is None else each.first_s
        elif event["kind"] == ROLLBACK:
            each.go_back()

    def _answer(self, event: Mapping[str, Any]) -> None:
        answer = event["answer"]
        index = self.index(answer["device"])
        each = self.devices[index]
        if each.flying != answer["kind"]:
            raise UnreadableError(f"an answer of {answer['device']} to what it was not asked")
        self._land(index)
        each.hear(answer)
        {DEPLOY: self._deployed, BUILD: self._built, LOOK: self._looked, ROLLBACK: self._rolled_back}[answer["kind"]](
            index, answer, event["at_s"]
        )

    def _deployed(self, index: int, answer: Mapping[str, Any], at_s: float) -> None:
        each = self.devices[index]
        state = each.judge(answer)
        if state != "needs_engine":
            each.engine_from = self.builds.came_from(each.release)
            self._end(index, state, at_s, answer)
            return
        each.engine_key = answer["engine"]["key"]
        each.state = "waits_for_engine"
        what = self.builds.ask(each.engine_key, index)
        if what != "wait":
            self._queue_first(index, what)

    def _built(self, index: int, answer: Mapping[str, Any], at_s: float) -> None:
        each = self.devices[index]
        assert each.engine_key is not None
        if answer["state"] == "built":
            each.state = "waits_for_engine"
            self.builds.built[each.engine_key] = answer
        else:
            self._end(index, answer["state"], at_s, answer)
            self._next_builder(each.engine_key)

    def _next_builder(self, key: str) -> None:
        """The build of an engine has failed: another device that waits for it builds."""
        following = self.builds.next_builder(key)
        while following is not None and self.devices[following].state != "waits_for_engine":
            following = self.builds.next_builder(key)
        if following is not None:
            self._queue_first(following, BUILD)

    def _looked(self, index: int, answer: Mapping[str, Any], at_s: float) -> None:
        found = self.devices[index].see(answer, self.releases)
        if found is None:
            self.open.discard(index)
        else:
            self._end(index, found["state"], at_s, found)

    def _rolled_back(self, index: int, answer: Mapping[str, Any], at_s: float) -> None:
        state, said = taken_back(self.devices[index].reason, answer)
        self._end(index, state, at_s, said)

    def _lost(self, event: Mapping[str, Any]) -> None:
        index = self.index(event["device"])
        each = self.devices[index]
        if each.flying is None:
            raise UnreadableError(f"{event['device']} was lost, and nobody had it")
        if each.flying in (DEPLOY, BUILD):
            each.state, each.reason = "waiting", event["reason"]
        self._land(index)
        each.lose()

    def _engine(self, event: Mapping[str, Any]) -> None:
        builder = self.index(event["device"])
        engine = event["engine"]
        waiting = self.builds.finish(engine["key"], engine, event["device"])
        for index in [builder, *waiting]:
            if self.devices[index].state == "waits_for_engine":
                self._queue_first(index, DEPLOY)

    def _engine_refused(self, event: Mapping[str, Any]) -> None:
        index = self.index(event["device"])
        if self.devices[index].state == "waits_for_engine":
            self._end(index, "failed", event["at_s"], event)
        self._next_builder(event["key"])

    def _watch(self, event: Mapping[str, Any]) -> None:
        self.this_wave.state, self.this_wave.watched_s = "watching", event["at_s"]

    def _look(self, event: Mapping[str, Any]) -> None:
        self.this_wave.looked = True
        for index, each in enumerate(self.devices[: self.plan.waves[self.wave - 1]]):
            if each.round == self.wave and each.serves_release:
                each.look = None
                self.queue(index, LOOK)

    def _gates(self, event: Mapping[str, Any]) -> None:
        wave = self.this_wave
        wave.gates, wave.ended_s = event["gates"], event["at_s"]
        for each in self.devices[: self.plan.waves[self.wave - 1]]:
            if each.round == self.wave and each.look is not None:
                each.judged = each.look
        wave.state = "failed" if any(gate["passed"] is False for gate in wave.gates) else "passed"

    def _halted(self, event: Mapping[str, Any]) -> None:
        self.halted = True
        self.reason, self.hint = event["reason"], event["hint"]

    def _abort(self, event: Mapping[str, Any]) -> None:
        # Whoever asked for more is not denied it by one who asks for less.
        self.aborted = bool(self.aborted) or event["rollback"]
        self.ended = self.ended_s = None
        self.rolling_back = False

    def _interrupted(self, event: Mapping[str, Any]) -> None:
        self.interrupted = event

    def _ended(self, event: Mapping[str, Any]) -> None:
        self.ended, self.ended_s = event["state"], event["at_s"]
        self.reason, self.hint = event["reason"], event["hint"]
        if event["state"] == "aborted":
            name_ends(self, event["at_s"])
            if self.wave and self.this_wave.state in ("running", "watching"):
                self.this_wave.state, self.this_wave.ended_s = "aborted", event["at_s"]

    def queue(self, index: int, kind: str, *, first: bool = False) -> None:
        """A device waits for a task of this kind."""
        self.devices[index].queued = kind
        self.open.add(index)
        self.turns.push(index, first=first)

    def _queue_first(self, index: int, kind: str) -> None:
        # Once nothing more begins it would stand in the way of what is taken back. Who goes on asks anew.
        if not self.stopped:
            self.queue(index, kind, first=True)

    def _land(self, index: int) -> None:
        self.flying.discard(index)
        self.turns.give_back(index)

    def _end(self, index: int, state: str, at_s: float, said: Mapping[str, Any]) -> None:
        self.open.discard(index)
        self.devices[index].end(state, at_s, said)
        self.failures += self.devices[index].fails

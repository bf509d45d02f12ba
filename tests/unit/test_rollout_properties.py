"""Rollouts in any order of answers, kills, halts and ends: what never may happen, and what always must."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kedge.fleet.inventory import Limit
from kedge.fleet.rollout.answers import FAILURES, read_answer
from kedge.fleet.rollout.decide import due, next_task
from kedge.fleet.rollout.events import read_event
from kedge.fleet.rollout.machine import Rollout
from kedge.fleet.rollout.options import Options
from kedge.fleet.rollout.plan import Plan
from kedge.fleet.rollout.tasks import task_for
from tests.support.driven import OTHER, answer, names, plan_of

FINAL = {"updated", "current", "rolled_back", "rollback_failed", "not_begun", *FAILURES}
KEYS = ("1" * 64, "2" * 64)


class Driven:
    """A rollout whose workers answer as the draw says, and whose host dies when it says.

    serves: devices that really serve the release, and when they began to; before: those that did before the rollout.
    """

    def __init__(self, plan: Plan, draw: Any) -> None:
        self.plan = plan
        self.draw = draw
        self.events: list[dict[str, Any]] = []
        self.rollout = Rollout(plan)
        self.flying: dict[str, str] = {}
        self.now_s = 1000.0
        self.before = draw(st.sets(st.sampled_from([each.name for each in plan.devices]), max_size=2))
        self.serves = dict.fromkeys(self.before, 0.0)

    def write(self, event: dict[str, Any]) -> None:
        self.now_s += 1.0
        # As it is read back.
        line = read_event(json.loads(json.dumps({"at_s": self.now_s, **event})))
        self.events.append(line)
        self.rollout.apply(line)

    def settle(self) -> None:
        while (event := due(self.rollout, self.now_s)) is not None:
            self.write(event)
        while self.rollout.ended is None and (found := next_task(self.rollout)) is not None:
            device, kind = found
            was_over = self.rollout.halted or self.rollout.aborted is not None
            assert kind == "rollback" if was_over else kind != "rollback"
            assert self.rollout.failures <= self.plan.options.max_failures or was_over
            self.write({"event": "task", "device": device, "kind": kind})
            json.dumps(task_for(self.rollout, device, kind))
            assert device not in self.flying
            self.flying[device] = kind
            assert len(self.flying) <= self.plan.options.concurrency
            for limit in self.plan.limits:
                assert len(limit.devices & set(self.flying)) <= limit.concurrency

    def complete(self) -> None:
        """The host vouches for what was built."""
        for key, told in list(self.rollout.builds.built.items()):
            if self.rollout.ended is not None:
                return
            if self.draw(st.integers(0, 9)) == 0:
                said = {"reason": "it is none", "hint": "", "exit_code": 6}
                self.write({"event": "engine_refused", "device": told["device"], "key": key, **said})
            else:
                release = {"digest": key, "source": "/srv"}
                engine = {"key": key, "passport": {}, "release": release, "attested": "SHA256:x"}
                self.write({"event": "engine", "device": told["device"], "engine": engine})

    def land(self) -> None:
        device = self.draw(st.sampled_from(sorted(self.flying)))
        kind = self.flying.pop(device)
        task = task_for(self.rollout, device, kind)
        if kind == "deploy" and device in self.serves:
            tells = self.draw(st.sampled_from(("current", "current", "unreachable")))
            if tells == "current" and self.serves[device] >= task["first_s"] and self.draw(st.booleans()):
                tells = "updated"
            told = answer(task, tells)
        elif kind == "deploy":
            key = KEYS[self.rollout.index(device) % 2]
            wants = self.plan.options.attest is not None and not any(each["key"] == key for each in task["engines"])
            if wants and self.draw(st.booleans()):
                told = answer(task, "needs_engine", engine={"key": key, "passport": {}})
            else:
                told = answer(task, self.draw(st.sampled_from(("updated",) * 6 + FAILURES[:5])))
                self.do(device, kind, told["state"])
        elif kind == "build":
            key = self.rollout.device(device).engine_key
            told = answer(task, self.draw(st.sampled_from(("built", "built", "failed"))), engine={"key": key})
        elif kind == "look":
            state = self.draw(st.sampled_from(("looked",) * 5 + ("unreachable",)))
            if state == "looked" and self.draw(st.integers(0, 6)) == 0:
                # Somebody at the device has put something else there.
                self.serves.pop(device, None)
            elsewhere = self.draw(st.sampled_from((OTHER, None)))
            look = {"release": task["release"]["digest"] if device in self.serves else elsewhere}
            look["errors"] = self.draw(st.sampled_from((0, 0, 0, 60)))
            told = answer(task, state, **({"look": look} if state == "looked" else {}))
        else:
            told = answer(task, self.draw(st.sampled_from(("rolled_back", "rollback_failed"))))
            self.do(device, kind, told["state"])
        self.write({"event": "answer", "answer": read_answer(told, device, kind)})

    def do(self, device: str, kind: str, state: str | None) -> None:
        """What a task really does at its device, whatever is heard of it (None: nothing is)."""
        sure = state in ("updated", "rolled_back")
        if state in ("refused", "failed") or not (sure or self.draw(st.booleans())):
            return
        if kind == "deploy":
            self.serves.setdefault(device, self.now_s)
        elif kind == "rollback":
            first_s = task_for(self.rollout, device, kind)["first_s"]
            if first_s is None or self.serves.get(device, first_s) >= first_s:
                self.serves.pop(device, None)

    def lose(self) -> None:
        """The workers are gone, and another driver goes on with others."""
        for device, kind in self.flying.items():
            self.do(device, kind, None)
            self.write({"event": "lost", "device": device, "reason": "its worker is gone"})
        self.flying.clear()
        self.write({"event": "interrupted", "reason": "no workers", "hint": "", "exit_code": 4})
        self.write({"event": "resumed", "skip_failed": self.draw(st.booleans())})

    def die(self, *, skip_failed: bool) -> None:
        """The host is killed, at most the last event with it, and another drives on."""
        if self.events and self.draw(st.booleans()):
            lost = self.events.pop()
            if lost["event"] == "task":
                # It was not handed out yet.
                self.flying.pop(lost["device"], None)
        for device, kind in self.flying.items():
            self.do(device, kind, None)
        self.replay()
        self.flying.clear()
        if self.rollout.ended != "aborted":
            self.write({"event": "resumed", "skip_failed": skip_failed})

    def agree(self) -> None:
        """Devices serve what the rollout says of them."""
        for each in self.rollout.devices:
            name = each.planned.name
            if each.serves_release:
                assert name in self.serves, each
            elif each.state in ("refused", "reverted", "rolled_back", "not_begun") and name not in self.before:
                assert name not in self.serves, each
            if self.rollout.ended == "aborted" and self.rollout.aborted and each.state != "rollback_failed":
                assert name not in self.serves or name in self.before, each

    def replay(self) -> None:
        again = Rollout(self.plan)
        for event in self.events:
            again.apply(event)
        self.rollout = again


@st.composite
def plans(draw: Any) -> Plan:
    count = draw(st.integers(1, 14))
    options = Options(
        canary=draw(st.sampled_from((("100%",), ("1", "100%"), ("1", "25%", "50%", "100%")))),
        max_failures=draw(st.integers(0, 4)),
        concurrency=draw(st.integers(1, 5)),
        max_error_rate=draw(st.sampled_from((None, 0.25))),
        on_halt=draw(st.sampled_from(("stop", "rollback"))),
        attest=draw(st.sampled_from((None, "/keys/me"))),
    )
    limits = [
        Limit(
            f"g{number}", frozenset(draw(st.sets(st.sampled_from(names(count)), min_size=1))), draw(st.integers(1, 3))
        )
        for number in range(draw(st.integers(0, 2)))
    ]
    return plan_of(count, options, limits=limits)


@settings(max_examples=250, deadline=None)
@given(plans(), st.data())
def test_whatever_the_order_nothing_begins_after_a_halt_and_every_device_ends_in_a_named_state(
    plan: Plan, data: Any
) -> None:
    driven = Driven(plan, data.draw)
    driven.write({"event": "begun"})
    deaths = aborts = 0
    for _ in range(400):
        driven.settle()
        if not driven.flying or data.draw(st.booleans()):
            driven.complete()
            driven.settle()
        if driven.rollout.ended is not None:
            break
        # Somebody is always at work, or nobody would ever go on.
        assert driven.flying
        what = data.draw(st.integers(0, 19))
        if what == 0 and deaths < 3:
            deaths += 1
            driven.die(skip_failed=data.draw(st.booleans()))
        elif what == 1 and not aborts and driven.rollout.aborted is None:
            aborts += 1
            driven.write({"event": "abort", "rollback": data.draw(st.booleans())})
        elif what == 2 and deaths < 3:
            deaths += 1
            driven.lose()
        else:
            driven.land()
    document = driven.rollout.to_json()
    assert driven.rollout.ended is not None, document
    for each in document["devices"]:
        waits = document["state"] == "halted" and each["state"] in ("waiting", "waits_for_engine")
        assert each["state"] in FINAL or waits, each
        if each["state"] in FAILURES or each["state"] == "rollback_failed":
            assert each["reason"]
            assert each["exit_code"]
    driven.agree()
    # The document is a function of the plan and the events, and so is that of every beginning of them.
    driven.replay()
    assert driven.rollout.to_json() == document
    prefix = Rollout(plan)
    for event in driven.events:
        before = copy.deepcopy(event)
        prefix.apply(event)
        assert event == before
        prefix.to_json()
        due(prefix, driven.now_s)
        next_task(prefix)
    # And it goes on: with what failed left out often enough, all ends.
    if document["state"] != "aborted":
        for _ in range(60):
            driven.die(skip_failed=True)
            while driven.rollout.ended is None:
                driven.settle()
                driven.complete()
                driven.settle()
                if driven.rollout.ended is None:
                    driven.land()
            if driven.rollout.ended == "done":
                break
        if driven.rollout.ended == "done":
            assert {each.state for each in driven.rollout.devices} <= FINAL
        driven.agree()

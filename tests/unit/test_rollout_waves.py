"""Rollouts driven over real threads: waves, limits, halts, gates, ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pytest

from kedge.fleet.inventory import Limit
from kedge.fleet.rollout.drive import drive, resume
from kedge.fleet.rollout.ledger import create
from kedge.fleet.rollout.machine import Rollout
from kedge.fleet.rollout.options import Options
from tests.support.driven import OTHER, Fleet, answer, names, plan_of, pool
from tests.support.schemas import validate

WAVES = ("1", "25%", "100%")


def driven(fleet: Fleet, count: int, options: Options, **more: Any) -> dict[str, Any]:
    """The document of a rollout that was driven to its end, which is what its ledger says as well."""
    ledger = create(plan_of(count, options, **more))
    with pool(16) as executor:
        document = drive(ledger, executor, work=fleet).to_json()
    assert ledger.read().to_json() == document
    validate(document, "rollout")
    return document


def states(document: Mapping[str, Any]) -> dict[str, str]:
    return {each["device"]: each["state"] for each in document["devices"]}


def gates(document: Mapping[str, Any], wave: int) -> dict[str, Any]:
    return {gate["gate"]: gate["passed"] for gate in document["waves"][wave - 1]["gates"]}


def test_each_wave_begins_when_the_one_before_has_ended_and_every_device_is_reached_once() -> None:
    fleet = Fleet()
    document = driven(fleet, 16, Options(canary=WAVES, concurrency=4))
    assert document["state"] == "done"
    assert document["counts"] == {"updated": 16}
    asked = fleet.of("deploy")
    assert asked[:1] == names(1)
    assert set(asked[1:4]) == set(names(4)[1:])
    assert sorted(asked) == names(16)
    assert [wave["state"] for wave in document["waves"]] == ["passed"] * 3
    # Nothing lies between an answer and the gates: they need no second connection.
    assert fleet.of("look") == []
    row = document["devices"][0]
    assert (row["push_s"], row["wire_bytes"], row["p99_ms"], row["previous"]) == (0.25, 1000, 2.0, OTHER)
    assert (row["attempts"], row["seconds"], row["steps"], row["worker"]) == (1, 0.25, {"push": 0.25}, "host:1")


def test_no_more_devices_are_at_work_than_all_limits_together_allow() -> None:
    berlin, wifi = frozenset(names(12)), frozenset(names(24)[6:18])
    fleet = Fleet(
        {name: lambda task: time.sleep(0.002) or answer(task) for name in names(40)},
        groups={"berlin": berlin, "wifi": wifi},
    )
    limits = [Limit("berlin", berlin, 2), Limit("wifi", wifi, 3)]
    document = driven(fleet, 40, Options(concurrency=8), limits=limits)
    assert document["counts"] == {"updated": 40}
    assert fleet.most["berlin"] <= 2
    assert fleet.most["wifi"] <= 3
    assert fleet.most["all"] <= 8
    # Who is held back holds up nobody: the last of them waits for its group, and others have begun before.
    assert fleet.of("deploy").index("d0030") < fleet.of("deploy").index("d0011")


def test_one_failure_more_than_allowed_halts_at_once_and_what_runs_is_waited_for() -> None:
    late = threading.Event()

    def slow(task: Mapping[str, Any]) -> Any:
        late.wait(10)
        return answer(task)

    def bad(task: Mapping[str, Any]) -> Any:
        threading.Timer(0.05, late.set).start()
        return answer(task, "refused")

    fleet = Fleet({"d0001": slow, "d0002": "unreachable", "d0003": bad})
    document = driven(fleet, 16, Options(canary=("1", "100%"), max_failures=1, concurrency=2))
    assert document["state"] == "halted"
    assert document["reason"] == "2 devices failed, and 1 may"
    assert "resume" in document["hint"]
    found = states(document)
    assert found["d0001"] == "updated"
    assert document["counts"] == {"refused": 1, "unreachable": 1, "updated": 2, "waiting": 12}
    assert (document["devices"][3]["reason"], document["devices"][3]["exit_code"]) == ("d0003 is refused", 5)
    assert document["waves"][1]["state"] == "failed"
    assert gates(document, 2)["failures"] is False
    assert len(fleet.asked) == 4


def test_where_none_may_fail_the_first_one_halts() -> None:
    fleet = Fleet({"d0000": "failed"})
    document = driven(fleet, 8, Options(canary=("1", "100%")))
    assert document["state"] == "halted"
    assert document["reason"] == "1 device failed, and none may"
    assert document["counts"] == {"failed": 1, "waiting": 7}
    assert document["devices"][1]["begun_s"] is None


def test_a_wave_of_which_all_fail_passes_nothing_it_did_not_measure() -> None:
    fleet = Fleet({"d0000": "unreachable", "d0001": "late"})
    options = Options(canary=("2", "100%"), max_failures=2, max_error_rate=0.1, max_p99_drift=0.1)
    document = driven(fleet, 4, options)
    assert document["state"] == "done"
    assert document["counts"] == {"late": 1, "unreachable": 1, "updated": 2}
    assert gates(document, 1) == {"failures": True, "live": None, "errors": None, "p99": None}
    assert "not measured" in document["waves"][0]["gates"][2]["why"]


def looking(**look: Any) -> Any:
    return lambda task: answer(task, look=look) if task["kind"] == "look" else answer(task)


def test_too_many_errors_in_a_wave_halt_it() -> None:
    fleet = Fleet({"d0001": looking(requests=50, errors=6)})
    document = driven(fleet, 4, Options(canary=("2", "100%"), max_error_rate=0.03))
    assert document["state"] == "halted"
    assert "errors: 6 of 150 requests failed, 4.00 %, above 3.00 %" in document["reason"]
    assert gates(document, 1) == {"failures": True, "live": True, "errors": False, "p99": None}
    assert document["counts"] == {"updated": 2, "waiting": 2}


def test_a_p99_is_compared_with_the_wave_before_for_each_kind_of_device() -> None:
    slow = {name: looking(p99_ms=3.1) for name in names(8)[4:] if int(name[1:]) % 2}
    document = driven(Fleet(slow), 12, Options(canary=("4", "8", "100%"), max_p99_drift=0.5), targets=("nano", "orin"))
    assert document["state"] == "halted"
    assert gates(document, 1)["p99"] is None
    gate = document["waves"][1]["gates"][3]
    assert gate["passed"] is False
    assert gate["figures"]["nano"] == {"basis": "traffic", "p99_ms": 2.0, "before_ms": 2.0, "ratio": 1.0}
    assert gate["figures"]["orin"] == {"basis": "traffic", "p99_ms": 3.1, "before_ms": 2.0, "ratio": 1.55}
    assert "orin" in gate["why"]


def test_a_p99_of_clients_is_compared_with_no_p99_of_a_gate() -> None:
    def device(task: Mapping[str, Any]) -> Any:
        """Clients are at the first half only; the gates of the second took twice as long."""
        first = int(task["device"][1:]) < 4
        told = answer(task, look={"p99_ms": 9.0 if first else None} if task["kind"] == "look" else {})
        if task["kind"] == "deploy":
            told["deployed"]["after"]["p99_ms"] = 2.0 if first else 4.0
        return told

    fleet = Fleet({**dict.fromkeys(names(8), device), "d0003": "current"})
    document = driven(fleet, 8, Options(canary=("4", "100%"), max_p99_drift=0.5))
    assert document["waves"][0]["gates"][3]["figures"]["cpu"]["basis"] == "traffic"
    gate = document["waves"][1]["gates"][3]
    assert gate["figures"]["cpu"] == {"basis": "gate", "p99_ms": 4.0, "before_ms": 2.0, "ratio": 2.0}
    assert gate["passed"] is False
    assert "measured by its gate on golden inputs, before the switch" in gate["why"]
    # What the device tells when it is looked at is shown, and leaves its gate's figure alone.
    assert [each["p99_ms"] for each in document["devices"]][::4] == [9.0, 4.0]


def test_a_device_that_was_current_has_no_figure_of_a_gate() -> None:
    fleet = Fleet({**dict.fromkeys(names(2), "current"), **{name: looking(p99_ms=None) for name in names(4)[2:]}})
    document = driven(fleet, 4, Options(canary=("2", "100%")))
    assert document["waves"][0]["gates"][3]["figures"] == {}
    gate = document["waves"][1]["gates"][3]
    assert gate["figures"]["cpu"] == {"basis": "gate", "p99_ms": 2.0, "before_ms": None, "ratio": None}
    assert gate["passed"] is None


def test_the_gate_claims_no_device_that_was_not_asked_because_the_rollout_halted() -> None:
    dark = lambda task: answer(task, "unreachable" if task["kind"] == "look" else None)  # noqa: E731
    fleet = Fleet({"d0001": dark})
    document = driven(fleet, 5, Options(concurrency=1, pause_s=0.01))
    assert fleet.of("look") == names(2)
    gate = document["waves"][0]["gates"][1]
    assert gate["figures"] == {"serving": 1, "gone": 1, "not_asked": 3, "looked": True}
    assert gate["why"] == "1 device of 2 no longer found to serve it: d0001 unreachable; 3 devices not asked"


def test_what_no_device_tells_is_not_measured_and_does_not_halt() -> None:
    def silent(task: Mapping[str, Any]) -> Any:
        told = answer(task, look={"requests": None, "errors": None, "p99_ms": None} if task["kind"] == "look" else {})
        if task["kind"] == "deploy":
            told["deployed"]["after"]["p99_ms"] = None
        return told

    fleet = Fleet(dict.fromkeys(names(4), silent))
    document = driven(fleet, 4, Options(canary=("1", "100%"), max_error_rate=0.0, max_p99_drift=0.0))
    assert document["state"] == "done"
    assert gates(document, 2) == {"failures": True, "live": True, "errors": None, "p99": None}


def test_a_device_that_no_longer_serves_the_release_when_it_is_looked_at_is_a_failure() -> None:
    fleet = Fleet({"d0000": looking(release=OTHER)})
    document = driven(fleet, 4, Options(canary=("1", "100%"), pause_s=0.01))
    assert document["state"] == "halted"
    assert states(document)["d0000"] == "reverted"
    assert OTHER[:12] in document["devices"][0]["reason"]
    assert gates(document, 1)["live"] is False
    document = driven(fleet, 4, Options(canary=("1", "100%"), pause_s=0.01, max_failures=1))
    assert document["state"] == "done"
    assert document["counts"] == {"reverted": 1, "updated": 3}


def test_a_device_that_went_dark_after_its_update_is_a_failure_that_says_so() -> None:
    dark = lambda task: answer(task, "unreachable" if task["kind"] == "look" else None)  # noqa: E731
    document = driven(Fleet({"d0000": dark}), 4, Options(canary=("1", "100%"), pause_s=0.01))
    assert document["state"] == "halted"
    assert document["devices"][0]["state"] == "unreachable"
    assert document["devices"][0]["reason"].startswith("it was updated; when it was looked at again: ")


def test_a_halt_with_rollback_takes_back_the_wave_that_halted_and_no_device_it_did_not_update() -> None:
    def stuck(task: Mapping[str, Any]) -> Any:
        return answer(task, "rollback_failed" if task["kind"] == "rollback" else None)

    fleet = Fleet({"d0003": "current", "d0004": stuck, "d0007": "failed"})
    document = driven(fleet, 16, Options(canary=("2", "8", "100%"), on_halt="rollback", concurrency=1))
    assert document["state"] == "halted"
    found = states(document)
    assert [found[name] for name in names(8)] == [
        "updated",
        "updated",
        "rolled_back",
        "current",
        "rollback_failed",
        "rolled_back",
        "rolled_back",
        "failed",
    ]
    assert document["devices"][4]["reason"] == "d0004 is rollback_failed"
    assert set(fleet.of("rollback")) == {"d0002", "d0004", "d0005", "d0006"}


def test_a_worker_that_never_answers_is_late_and_holds_up_nobody() -> None:
    hang = threading.Event()
    fleet = Fleet({"d0001": lambda task: hang.wait(30)})
    ledger = create(plan_of(6, Options(concurrency=2, deadline_s=1.0, max_failures=1)))
    try:
        with pool() as executor:
            document = drive(ledger, executor, work=fleet, grace_s=0.1).to_json()
            hang.set()
    finally:
        hang.set()
    assert document["state"] == "done"
    assert states(document)["d0001"] == "late"
    assert "has not answered within 1 s" in document["devices"][1]["reason"]
    assert document["counts"] == {"late": 1, "updated": 5}


@pytest.mark.parametrize(
    "nonsense",
    [
        None,
        "updated",
        {},
        {"state": "perfect"},
        {"device": "d0000"},
        {"kind": "look"},
        {"seconds": float("nan")},
        {"seconds": -1},
        {"exit_code": "0"},
        {"steps": {"push": "long"}},
        {"steps": {str(number): 1.0 for number in range(100)}},
        {"deployed": {"release": "no digest"}},
        {"reason": "x" * 100_000},
        {"state": "built"},
        {"state": "needs_engine", "engine": {"key": "k" * 64}},
        {"state": "looked", "look": {}},
    ],
)
def test_an_answer_that_makes_no_sense_fails_its_device_alone(nonsense: Any) -> None:
    def told(task: Mapping[str, Any]) -> Any:
        return answer(task, **nonsense) if isinstance(nonsense, dict) and nonsense else nonsense

    document = driven(Fleet({"d0001": told}), 3, Options(max_failures=1))
    assert document["counts"] == {"failed": 1, "updated": 2}
    assert "makes no sense" in document["devices"][1]["reason"]
    assert document["devices"][1]["exit_code"] == 7


def test_what_a_worker_says_may_steer_no_terminal() -> None:
    fleet = Fleet({"d0000": lambda task: answer(task, "failed", reason="\x1b[31mred\nline", hint="\x07")})
    document = driven(fleet, 1, Options())
    assert document["devices"][0]["reason"].isprintable()


class Breaking(Executor):
    """Threads of which some break, as a pool of processes or a cluster does."""

    def __init__(self, inner: Executor, *, at: int, submits: bool) -> None:
        self._inner, self._at, self._submits, self._count = inner, at, submits, 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self._count += 1
        if self._count < self._at:
            return self._inner.submit(fn, *args, **kwargs)
        error = BrokenProcessPool("a process of the pool was killed")
        if self._submits:
            raise error
        broken: Future[Any] = Future()
        broken.set_exception(error)
        return broken


@pytest.mark.parametrize("submits", [False, True])
def test_workers_that_break_stop_the_rollout_and_no_device_is_blamed(submits: bool) -> None:
    fleet = Fleet()
    ledger = create(plan_of(8, Options(canary=("1", "100%"), concurrency=2)))
    with pool() as executor:
        stopped = drive(ledger, Breaking(executor, at=4, submits=submits), work=fleet)
        document = stopped.to_json()
        assert document["state"] == "interrupted"
        assert "BrokenProcessPool" in document["reason"]
        assert stopped.interrupted is not None
        assert stopped.interrupted["exit_code"] == 1
        assert set(document["counts"]) == {"updated", "waiting"}
        validate(document, "rollout")
        assert resume(ledger, executor, work=fleet).to_json()["counts"] == {"updated": 8}


def test_who_listens_hears_each_event_after_it_counts() -> None:
    heard: list[tuple[str, int]] = []

    def hear(rollout: Rollout, event: Mapping[str, Any]) -> None:
        heard.append((event["event"], sum(each.state == "updated" for each in rollout.devices)))

    with pool() as executor:
        drive(create(plan_of(2, Options(concurrency=1))), executor, work=Fleet(), hear=hear)
    assert heard == [
        ("begun", 0),
        ("wave", 0),
        ("task", 0),
        ("answer", 1),
        ("task", 1),
        ("answer", 2),
        ("gates", 2),
        ("ended", 2),
    ]


def test_the_step_of_a_device_is_shown_while_it_is_at_work() -> None:
    rollouts: list[Rollout] = []
    seen: list[Any] = []

    def at_work(task: Mapping[str, Any]) -> Any:
        rollouts[0].note_step(task["device"], "push")
        rollouts[0].note_step("nobody", "push")
        seen.append(rollouts[0].to_json()["devices"][0])
        return answer(task)

    with pool() as executor:
        rollout = drive(
            create(plan_of(1)),
            executor,
            work=Fleet({"d0000": at_work}),
            hear=lambda rollout, event: rollouts.append(rollout),
        )
    assert (seen[0]["state"], seen[0]["step"]) == ("running", "push")
    assert rollout.to_json()["devices"][0]["step"] is None

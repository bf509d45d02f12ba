"""What a rollout takes back, and whether devices serve at the end what it says of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from kedge.fleet.rollout.drive import drive, resume
from kedge.fleet.rollout.ledger import Ledger, create
from kedge.fleet.rollout.machine import Rollout
from kedge.fleet.rollout.options import Options
from tests.support.driven import OTHER, RELEASE, Serving, answer, names, plan_of, pool
from tests.support.schemas import validate


def states(document: Mapping[str, Any]) -> list[str]:
    return [each["state"] for each in document["devices"]]


def ended(ledger: Ledger, fleet: Serving, begin: Callable[..., Any] = drive, **more: Any) -> dict[str, Any]:
    """The document of a rollout as it was driven, with which the devices agree."""
    with pool() as executor:
        document: dict[str, Any] = begin(ledger, executor, work=fleet, **more).to_json()
    validate(document, "rollout")
    assert fleet.agrees(document), (document["counts"], fleet.serves)
    return document


def cut(ledger: Ledger, after: Callable[[Mapping[str, Any]], bool]) -> None:
    """Leave of the events what a host that died then would have left."""
    path = ledger.folder / "events.ndjson"
    lines = path.read_bytes().splitlines(keepends=True)
    last = next(place for place, line in enumerate(lines) if after(json.loads(line)))
    path.write_bytes(b"".join(lines[: last + 1]))


class LostError(Exception):
    """A worker is gone."""


def test_a_rollback_that_was_under_way_when_the_host_died_is_no_update_and_goes_again() -> None:
    fleet = Serving(6, {"d0003": "failed"})
    ledger = create(plan_of(6, Options(canary=("2", "100%"), concurrency=1, on_halt="rollback")))
    ended(ledger, fleet)
    cut(ledger, lambda event: event["event"] == "task" and event["kind"] == "rollback")
    document = ledger.read().to_json(driven=False)
    validate(document, "rollout")
    assert states(document)[:4] == ["updated", "updated", "rolling_back", "failed"]
    fleet.answers.clear()
    document = ended(ledger, fleet, resume)
    assert (document["state"], document["counts"]) == ("done", {"updated": 6})
    assert set(fleet.serves.values()) == {RELEASE}


def test_a_device_whose_worker_was_lost_while_it_was_taken_back_goes_again() -> None:
    fleet = Serving(3)

    def loses(task: Mapping[str, Any]) -> Any:
        told = fleet.told(task)
        if task["kind"] == "rollback":
            raise LostError
        return told

    fleet.answers = {"d0000": loses, "d0002": "failed"}
    ledger = create(plan_of(3, Options(concurrency=1, on_halt="rollback")))
    document = ended(ledger, fleet)
    assert document["state"] == "interrupted"
    assert states(document)[0] == "rolling_back"
    fleet.answers.clear()
    assert ended(ledger, fleet, resume)["counts"] == {"updated": 3}
    assert set(fleet.serves.values()) == {RELEASE}


def dark(fleet: Serving) -> Callable[[Mapping[str, Any]], Any]:
    """It is updated, and does not answer when it is looked at."""
    return lambda task: fleet.told(task, "unreachable" if task["kind"] == "look" else None)


@pytest.mark.parametrize("state", ["late", "unknown", "unreachable", "dark", "nonsense"])
def test_a_halt_takes_back_of_its_wave_whatever_may_serve_the_release(state: str) -> None:
    fleet = Serving(4)
    nonsense = lambda task: fleet.told(task) | ({"seconds": -1} if task["kind"] == "deploy" else {})  # noqa: E731
    fleet.answers["d0002"] = {"dark": dark(fleet), "nonsense": nonsense}.get(state, state)
    pause_s = 0.01 if state == "dark" else 0.0
    ledger = create(plan_of(4, Options(canary=("1", "3", "100%"), concurrency=1, on_halt="rollback", pause_s=pause_s)))
    document = ended(ledger, fleet)
    assert document["state"] == "halted"
    assert states(document) == ["updated", "rolled_back", "rolled_back", "waiting"]
    assert list(fleet.serves.values()) == [RELEASE, OTHER, OTHER, OTHER]
    # Why it had failed is still told.
    assert document["devices"][2]["reason"].startswith("it was ")
    fleet.answers.clear()
    assert ended(ledger, fleet, resume)["counts"] == {"updated": 4}


def test_an_abort_takes_back_whatever_may_serve_the_release_and_asks_no_other() -> None:
    fleet = Serving(7, {"d0001": "unknown", "d0002": "late", "d0003": "refused", "d0004": "failed"})
    fleet.serves["d0000"] = RELEASE
    ledger = create(plan_of(7, Options(concurrency=1, max_failures=7, canary=("1", "100%"))))

    def asks(task: Mapping[str, Any]) -> Any:
        ledger.ask_abort(rollback=True)
        return fleet.told(task)

    fleet.answers["d0005"] = asks
    document = ended(ledger, fleet)
    assert states(document) == [
        "current",
        "rolled_back",
        "rolled_back",
        "refused",
        "failed",
        "rolled_back",
        "not_begun",
    ]
    assert fleet.serves == {**dict.fromkeys(names(7), OTHER), "d0000": RELEASE}
    assert fleet.of("rollback") == ["d0001", "d0002", "d0005"]


@pytest.mark.parametrize("rollback", [False, True])
def test_a_device_whose_worker_was_lost_is_not_said_to_have_been_before_its_turn(rollback: bool) -> None:
    fleet = Serving(3)

    def loses(task: Mapping[str, Any]) -> Any:
        told = fleet.told(task)
        if task["kind"] == "deploy":
            raise LostError
        return told

    fleet.answers["d0001"] = loses
    ledger = create(plan_of(3, Options(concurrency=1)))
    with pool() as executor:
        assert drive(ledger, executor, work=fleet).to_json()["state"] == "interrupted"
    ledger.ask_abort(rollback=rollback)
    document = ended(ledger, fleet, resume)
    wanted = ["rolled_back"] * 2 if rollback else ["updated", "unknown"]
    assert states(document) == [*wanted, "not_begun"]
    assert "turn" not in document["devices"][1]["reason"]
    assert (document["devices"][1]["exit_code"] == 12) is not rollback


def test_a_device_that_the_rollout_updated_unheard_has_its_end_told_later_and_is_taken_back() -> None:
    fleet = Serving(4, {"d0001": "unknown"})
    fleet.answers["d0002"] = dark(fleet)
    ledger = create(plan_of(4, Options(concurrency=1, pause_s=0.01)))
    assert states(ended(ledger, fleet))[:2] == ["updated", "unknown"]
    del fleet.answers["d0001"]
    assert states(ended(ledger, fleet, resume)) == ["updated", "updated", "unreachable", "updated"]
    tasks = [task["first_s"] for task in fleet.tasks if task["device"] == "d0001" and task["kind"] == "deploy"]
    assert len(tasks) == 2
    assert tasks[0] == tasks[1]
    ledger.ask_abort(rollback=True)
    assert ended(ledger, fleet, resume)["counts"] == {"rolled_back": 4}
    assert set(fleet.serves.values()) == {OTHER}


def test_a_device_that_says_it_served_the_release_already_was_updated_where_a_deploy_of_it_was_not_heard_of() -> None:
    # The worker cannot read the journal, and says what it sees.
    fleet = Serving(2, {"d0000": "unknown"})
    ledger = create(plan_of(2, Options(concurrency=1)))
    ended(ledger, fleet)
    fleet.answers["d0000"] = lambda task: answer(task, "current" if task["kind"] == "deploy" else None)
    document = ended(ledger, fleet, resume)
    assert states(document) == ["updated", "updated"]


def test_a_device_that_serves_something_else_tells_no_figures_of_the_release() -> None:
    fleet = Serving(4)
    look = {"release": OTHER, "errors": 60, "p99_ms": 9.0}
    fleet.answers["d0001"] = lambda task: answer(task, look=look) if task["kind"] == "look" else fleet.told(task)
    options = Options(canary=("2", "100%"), max_failures=1, max_error_rate=0.1, max_p99_drift=0.2)
    ledger = create(plan_of(4, options))
    with pool() as executor:
        document = drive(ledger, executor, work=fleet).to_json()
    assert (document["state"], document["counts"]) == ("done", {"reverted": 1, "updated": 3})
    gates = {gate["gate"]: gate for gate in document["waves"][0]["gates"]}
    assert gates["errors"]["figures"] == {"devices": 1, "requests": 100, "errors": 0, "rate": 0.0}
    assert gates["p99"]["figures"]["cpu"]["p99_ms"] == 2.0
    assert document["devices"][1]["p99_ms"] == 2.0


def test_who_asked_for_an_end_may_ask_for_a_rollback_as_well_and_not_the_other_way_round() -> None:
    fleet = Serving(3)
    ledger = create(plan_of(3, Options(concurrency=1)))
    request = ledger.folder / "abort"

    def asks(task: Mapping[str, Any]) -> Any:
        if task["kind"] == "deploy":
            for rollback in (False, True, False):
                ledger.ask_abort(rollback=rollback)
                while request.exists():
                    time.sleep(0.01)
        return fleet.told(task)

    fleet.answers["d0001"] = asks
    document = ended(ledger, fleet)
    assert (document["state"], states(document)) == ("aborted", ["rolled_back", "rolled_back", "not_begun"])


@pytest.mark.parametrize("state", ["halted", "done", "interrupted"])
def test_an_end_that_is_asked_for_while_the_driver_comes_to_its_own_is_heard(state: str) -> None:
    fleet = Serving(2, {"d0001": "failed"} if state == "halted" else {})

    def loses(task: Mapping[str, Any]) -> Any:
        raise LostError

    if state == "interrupted":
        fleet.answers["d0001"] = loses
    ledger = create(plan_of(2, Options(concurrency=1)))

    def hear(rollout: Rollout, event: Mapping[str, Any]) -> None:
        if event["event"] in ("ended", "interrupted"):
            assert ledger.driver() is not None
            ledger.ask_abort(rollback=True)

    document = ended(ledger, fleet, hear=hear)
    assert not (ledger.folder / "abort").exists()
    assert document["state"] == {"halted": "aborted"}.get(state, state)
    if state == "interrupted":
        fleet.answers.clear()
        document = ended(ledger, fleet, resume)
    if state != "done":
        assert document["state"] == "aborted"
        assert states(document)[0] == "rolled_back"


def test_a_device_that_was_skipped_and_is_then_being_taken_back_when_the_host_dies_goes_again() -> None:
    fleet = Serving(4, {"d0000": "unknown"})
    ledger = create(plan_of(4, Options(concurrency=1, on_halt="rollback", canary=("2", "100%"))))
    fleet.answers["d0001"] = "failed"
    stuck = lambda task: fleet.told(task, "rollback_failed" if task["kind"] == "rollback" else "unknown")  # noqa: E731
    fleet.answers["d0000"] = stuck
    assert states(ended(ledger, fleet))[:2] == ["rollback_failed", "waiting"]
    # It is left out, and the wave halts once more: it is taken back again.
    document = ended(ledger, fleet, resume, skip_failed=True)
    assert states(document)[:2] == ["rollback_failed", "failed"]
    assert document["devices"][0]["reason"] == "d0000 is rollback_failed"
    path = ledger.folder / "events.ndjson"
    lines = path.read_bytes().splitlines(keepends=True)
    begun = max(place for place, line in enumerate(lines) if b'"kind":"rollback"' in line and b'"task"' in line)
    path.write_bytes(b"".join(lines[: begun + 1]))
    assert states(ledger.read().to_json())[0] == "rolling_back"
    fleet.answers.clear()
    document = ended(ledger, fleet, resume, skip_failed=True)
    assert (document["state"], states(document)) == ("done", ["updated", "failed", "updated", "updated"])

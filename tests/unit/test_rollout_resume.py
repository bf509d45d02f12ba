"""Rollouts that were cut off, halted or asked to end, and what the next driver makes of them."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from kedge.errors import BadInputError, BusyError
from kedge.fleet.rollout.decide import pause_left_s
from kedge.fleet.rollout.drive import drive, resume
from kedge.fleet.rollout.ledger import Ledger, create
from kedge.fleet.rollout.options import Options
from tests.support.driven import Fleet, answer, names, plan_of, pool
from tests.support.schemas import validate


def states(document: Mapping[str, Any]) -> list[str]:
    return [each["state"] for each in document["devices"]]


def cut(ledger: Ledger, after: Callable[[Mapping[str, Any]], bool]) -> None:
    """Leave of the events what a host that died then would have left."""
    path = ledger.folder / "events.ndjson"
    lines = path.read_bytes().splitlines(keepends=True)
    last = next(place for place, line in enumerate(lines) if after(json.loads(line)))
    path.write_bytes(b"".join(lines[: last + 1]))


def halted(fleet: Fleet, count: int = 6, **options: Any) -> Ledger:
    ledger = create(plan_of(count, Options(**{"canary": ("2", "100%"), "concurrency": 1, **options})))
    with pool() as executor:
        assert drive(ledger, executor, work=fleet).ended == "halted"
    fleet.asked.clear()
    return ledger


def test_after_a_halt_those_that_failed_are_tried_again_and_first() -> None:
    fleet = Fleet({"d0003": "unreachable"})
    ledger = halted(fleet)
    fleet.answers.clear()
    with pool() as executor:
        document = resume(ledger, executor, work=fleet).to_json()
    assert document["state"] == "done"
    assert document["reason"] is None
    assert states(document) == ["updated"] * 6
    assert fleet.of("deploy") == ["d0003", "d0004", "d0005"]
    assert [each["attempts"] for each in document["devices"]] == [1, 1, 1, 2, 1, 1]
    assert ledger.read().to_json() == document


def test_what_failed_is_skipped_where_that_is_asked_for_and_no_longer_counts() -> None:
    fleet = Fleet({"d0003": "unreachable", "d0005": "refused"})
    ledger = halted(fleet)
    with pool() as executor:
        # The first failure is left out, and the next one halts again.
        assert resume(ledger, executor, skip_failed=True, work=fleet).ended == "halted"
        document = resume(ledger, executor, skip_failed=True, work=fleet).to_json()
    validate(document, "rollout")
    assert document["state"] == "done"
    assert states(document) == ["updated", "updated", "updated", "unreachable", "updated", "refused"]
    assert document["devices"][3]["reason"] == "d0003 is unreachable"
    assert fleet.of("deploy") == ["d0004", "d0005"]


def test_a_wave_whose_gate_failed_is_watched_and_judged_anew() -> None:
    # What the device has counted since the release was loaded.
    counted = {"requests": 100, "errors": 50}
    fleet = Fleet({"d0000": lambda task: answer(task, look=counted if task["kind"] == "look" else {})})
    ledger = halted(fleet, max_error_rate=0.1)
    with pool() as executor:
        counted |= {"requests": 200, "errors": 70}
        stopped = resume(ledger, executor, work=fleet).to_json()
        assert stopped["state"] == "halted"
        assert stopped["waves"][0]["gates"][2]["figures"]["errors"] == 20
        assert fleet.of("deploy") == []
        # It was mended: what had failed before is not held against it once more.
        counted |= {"requests": 300, "errors": 71}
        document = resume(ledger, executor, work=fleet).to_json()
    assert document["counts"] == {"updated": 6}
    assert document["waves"][0]["gates"][2]["figures"]["errors"] == 1


def test_counters_that_began_anew_are_judged_as_they_are() -> None:
    counted = {"requests": 1000, "errors": 500}
    fleet = Fleet({"d0000": lambda task: answer(task, look=counted if task["kind"] == "look" else {})})
    ledger = halted(fleet, max_error_rate=0.1)
    counted |= {"requests": 60, "errors": 40}
    with pool() as executor:
        gate = resume(ledger, executor, work=fleet).to_json()["waves"][0]["gates"][2]
    assert gate["passed"] is False
    assert gate["figures"]["errors"] == 40


def test_where_nobody_asked_anything_since_the_errors_gate_says_so() -> None:
    counted = {"requests": 100, "errors": 50}
    fleet = Fleet(dict.fromkeys(names(2), lambda task: answer(task, look=counted if task["kind"] == "look" else {})))
    ledger = halted(fleet, 2, max_error_rate=0.1, canary=("100%",))
    with pool() as executor:
        gate = resume(ledger, executor, work=fleet).to_json()["waves"][0]["gates"][2]
    assert gate["passed"] is None
    assert gate["why"] == "not measured: no device told of requests since they were judged last"


def test_a_rolled_back_wave_goes_again() -> None:
    fleet = Fleet({"d0003": "failed"})
    ledger = halted(fleet, on_halt="rollback")
    assert states(ledger.read().to_json())[:4] == ["updated", "updated", "rolled_back", "failed"]
    fleet.answers.clear()
    with pool() as executor:
        document = resume(ledger, executor, work=fleet).to_json()
    assert states(document) == ["updated"] * 6
    assert fleet.of("deploy") == ["d0003", "d0002", "d0004", "d0005"]


def test_what_is_done_is_not_done_again_and_what_failed_in_it_can_be_tried() -> None:
    fleet = Fleet({"d0001": "late"})
    ledger = create(plan_of(3, Options(max_failures=1)))
    with pool() as executor:
        done = drive(ledger, executor, work=fleet).to_json()
        assert done["state"] == "done"
        lines = (ledger.folder / "events.ndjson").read_bytes()
        assert resume(ledger, executor, skip_failed=True, work=fleet).to_json() == done
        assert (ledger.folder / "events.ndjson").read_bytes() == lines
        fleet.answers.clear()
        fleet.asked.clear()
        again = resume(ledger, executor, work=fleet).to_json()
        assert again["counts"] == {"updated": 3}
        assert fleet.of("deploy") == ["d0001"]
        assert resume(ledger, executor, work=fleet).to_json() == again


def test_a_device_that_was_at_work_when_the_host_died_is_tasked_again_as_what_it_was() -> None:
    fleet = Fleet()
    ledger = create(plan_of(4, Options(canary=("2", "100%"), concurrency=1)))
    with pool() as executor:
        drive(ledger, executor, work=fleet)
        first = fleet.tasks[2]
        cut(ledger, lambda event: event["event"] == "task" and event["device"] == "d0002")
        document = ledger.read().to_json(driven=False)
        assert document["state"] == "interrupted"
        assert "resume" in document["hint"]
        assert document["devices"][2]["state"] == "running"
        fleet.asked.clear()
        fleet.tasks.clear()
        assert resume(ledger, executor, work=fleet).to_json()["counts"] == {"updated": 4}
    assert fleet.of("deploy") == ["d0002", "d0003"]
    # A worker tells the end of what the device began since it was first asked.
    assert fleet.tasks[0]["first_s"] == first["first_s"]
    assert fleet.tasks[0] == first


def test_a_device_that_is_tried_again_is_not_told_of_its_old_end() -> None:
    fleet = Fleet({"d0003": "refused"})
    ledger = halted(fleet)
    before = fleet.tasks[-1]["first_s"]
    with pool() as executor:
        resume(ledger, executor, work=fleet)
    assert fleet.tasks[-1]["device"] == "d0003"
    assert fleet.tasks[-1]["first_s"] > before


def test_of_a_pause_that_was_cut_off_the_rest_is_waited_whatever_the_clock_says() -> None:
    fleet = Fleet()
    ledger = create(plan_of(2, Options(canary=("1", "100%"), pause_s=0.4)))
    with pool() as executor:
        drive(ledger, executor, work=fleet)
        cut(ledger, lambda event: event["event"] == "watch")
        rollout = ledger.read()
        document = rollout.to_json()
        assert document["state"] == "paused"
        watched_s = document["waves"][0]["watched_s"]
        # A driver that has seen nothing of it yet; one whose clock was set back meanwhile.
        assert pause_left_s(rollout, watched_s + 0.3, 0.0) == pytest.approx(0.1, abs=1e-6)
        assert pause_left_s(rollout, watched_s - 1.0, 0.3) == pytest.approx(0.1, abs=1e-6)
        assert pause_left_s(rollout, watched_s + 9.0, 0.0) == 0.0
        resume(ledger, executor, work=fleet)
        cut(ledger, lambda event: event["event"] == "look")
        assert pause_left_s(ledger.read(), watched_s, 0.0) is None
    assert fleet.of("deploy").count("d0000") == 1


def test_a_clock_that_was_set_back_prolongs_no_pause_beyond_its_length() -> None:
    fleet = Fleet()
    ledger = create(plan_of(2, Options(canary=("1", "100%"), pause_s=0.2)))
    with pool() as executor:
        drive(ledger, executor, work=fleet)
        cut(ledger, lambda event: event["event"] == "watch")
        path = ledger.folder / "events.ndjson"
        *before, watch = path.read_text().splitlines()
        ahead = json.dumps({**json.loads(watch), "at_s": time.time() + 86400})
        path.write_text("\n".join([*before, ahead]) + "\n")
        assert resume(ledger, executor, work=fleet).ended == "done"


def test_two_drivers_at_once_are_one_too_many() -> None:
    begun, go = threading.Event(), threading.Event()

    def waits(task: Mapping[str, Any]) -> Any:
        begun.set()
        go.wait(20)
        return answer(task)

    ledger = create(plan_of(1))
    assert ledger.driver() is None
    with pool() as executor, pool() as other:
        driven = other.submit(drive, ledger, executor, work=waits)
        begun.wait(20)
        assert ledger.driver() == os.getpid()
        for another in (resume, drive):
            with pytest.raises(BusyError, match=f"driven by process {os.getpid()}") as caught:
                another(ledger, executor, work=waits)
            assert caught.value.exit_code == 13
        go.set()
        assert driven.result(20).ended == "done"
    assert ledger.driver() is None


def test_an_abort_from_elsewhere_ends_what_had_not_begun_and_waits_for_what_had() -> None:
    ledger = create(plan_of(6, Options(canary=("2", "100%"), concurrency=1)))

    def asks(task: Mapping[str, Any]) -> Any:
        Ledger(ledger.folder).ask_abort(rollback=False)
        return answer(task)

    fleet = Fleet({"d0002": asks})
    with pool() as executor:
        rollout = drive(ledger, executor, work=fleet)
        document = rollout.to_json()
        validate(document, "rollout")
        assert document["state"] == "aborted"
        assert states(document) == ["updated", "updated", "updated", "not_begun", "not_begun", "not_begun"]
        assert "before its turn" in document["devices"][3]["reason"]
        assert document["waves"][1]["state"] == "aborted"
        assert fleet.of("rollback") == []
        with pytest.raises(BadInputError, match="was aborted"):
            resume(ledger, executor, work=fleet)


def test_an_abort_with_rollback_takes_back_all_that_the_rollout_updated() -> None:
    ledger = create(plan_of(6, Options(canary=("2", "100%"), concurrency=1)))

    def asks(task: Mapping[str, Any]) -> Any:
        ledger.ask_abort(rollback=True)
        return answer(task)

    fleet = Fleet({"d0000": "current", "d0003": asks})
    with pool() as executor:
        document = drive(ledger, executor, work=fleet).to_json()
    assert document["state"] == "aborted"
    assert states(document) == ["current", *["rolled_back"] * 3, "not_begun", "not_begun"]
    assert not (ledger.folder / "abort").exists()


def test_an_abort_of_what_halted_takes_back_what_it_had_updated_and_tries_nothing_again() -> None:
    fleet = Fleet({"d0003": "failed"})
    ledger = halted(fleet)
    ledger.ask_abort(rollback=True)
    with pool() as executor:
        document = resume(ledger, executor, work=fleet).to_json()
    assert document["state"] == "aborted"
    assert states(document) == ["rolled_back"] * 3 + ["failed"] + ["not_begun"] * 2
    assert fleet.of("deploy") == []


@pytest.mark.parametrize(("rollback", "state"), [(False, "unknown"), (True, "rolled_back")])
def test_an_abort_of_a_rollout_whose_host_died_says_that_an_end_is_not_known_or_takes_back(
    rollback: bool, state: str
) -> None:
    fleet = Fleet()
    ledger = create(plan_of(4, Options(concurrency=1)))
    with pool() as executor:
        drive(ledger, executor, work=fleet)
        cut(ledger, lambda event: event["event"] == "task" and event["device"] == "d0002")
        fleet.asked.clear()
        ledger.ask_abort(rollback=rollback)
        document = resume(ledger, executor, work=fleet).to_json()
    assert document["state"] == "aborted"
    assert states(document) == [*["rolled_back" if rollback else "updated"] * 2, state, "not_begun"]
    assert document["devices"][2]["exit_code"] == (0 if rollback else 12)
    assert fleet.of("deploy") == []


def test_an_abort_that_was_cut_off_is_ended_by_the_next_driver() -> None:
    fleet = Fleet()
    ledger = create(plan_of(4, Options(concurrency=1)))
    with pool() as executor:
        fleet.answers["d0003"] = lambda task: ledger.ask_abort(rollback=True) or answer(task)
        drive(ledger, executor, work=fleet)
        cut(ledger, lambda event: event["event"] == "task" and event["kind"] == "rollback")
        fleet.asked.clear()
        document = resume(ledger, executor, work=fleet).to_json()
    assert document["state"] == "aborted"
    assert states(document) == ["rolled_back"] * 4
    assert fleet.asked == [(name, "rollback") for name in names(4)]


def test_ctrl_c_leaves_what_runs_to_the_devices_and_can_be_resumed() -> None:
    go = threading.Event()

    def interrupts(task: Mapping[str, Any]) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        go.wait(20)
        return answer(task)

    fleet = Fleet({"d0001": interrupts})
    ledger = create(plan_of(4, Options(concurrency=1)))
    with pool() as executor:
        with pytest.raises(KeyboardInterrupt):
            drive(ledger, executor, work=fleet)
        go.set()
        assert ledger.driver() is None
        document = ledger.read().to_json(driven=False)
        validate(document, "rollout")
        assert document["state"] == "interrupted"
        assert states(document) == ["updated", "running", "waiting", "waiting"]
        fleet.answers.clear()
        assert resume(ledger, executor, work=fleet).to_json()["counts"] == {"updated": 4}

"""Engines in a rollout: one device of a passport builds, the others wait, and hold nobody up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kedge.errors import BadInputError, IntegrityError
from kedge.fleet.rollout.drive import drive, resume
from kedge.fleet.rollout.ledger import Ledger, create
from kedge.fleet.rollout.options import Options
from kedge.fleet.rollout.plan import Plan
from tests.support.driven import Fleet, answer, names, plan_of, pool
from tests.support.schemas import validate

COMPLETED = {"nano": "a" * 64, "orin": "b" * 64}
KEYS = {"nano": "1" * 64, "orin": "2" * 64}


def compiles(task: Mapping[str, Any]) -> Any:
    """A device that needs an engine, and says what it serves with one."""
    key = KEYS[task["target"]]
    if task["kind"] == "deploy":
        found = [each for each in task["engines"] if each["key"] == key]
        if not found:
            return answer(task, "needs_engine", engine={"key": key, "passport": {}})
        told = answer(task)
        told["deployed"]["release"] = found[0]["release"]["digest"]
        return told
    if task["kind"] == "build":
        return answer(task, engine={"key": key, "passport": {}, "sha256": "c" * 64})
    return answer(task)


def completes(plan: Plan, told: Mapping[str, Any], key: Path) -> dict[str, Any]:
    assert key == Path("/keys/me")
    engine = told["engine"]["key"]
    target = next(name for name, each in KEYS.items() if each == engine)
    release = {"digest": COMPLETED[target], "source": "/srv/completed"}
    return {"key": engine, "passport": {}, "release": release, "attested": "SHA256:abc"}


def fleet_of(count: int, **others: Any) -> Fleet:
    return Fleet({**dict.fromkeys(names(count), compiles), **others})


def begun(count: int, **options: Any) -> Ledger:
    given = {"attest": "/keys/me", "concurrency": 4, **options}
    return create(plan_of(count, Options(**given), targets=("nano", "orin")))


def test_the_first_device_of_a_passport_builds_and_all_others_receive_what_it_built() -> None:
    fleet = fleet_of(12)
    with pool() as executor:
        document = drive(begun(12, canary=("4", "100%")), executor, work=fleet, complete=completes).to_json()
    validate(document, "rollout")
    assert document["counts"] == {"updated": 12}
    builders = fleet.of("build")
    assert len(builders) == 2
    assert {int(name[1:]) % 2 for name in builders} == {0, 1}
    for each in document["devices"]:
        assert each["engine_from"] == next(
            name for name in builders if int(name[1:]) % 2 == int(each["device"][1:]) % 2
        )
    # A later wave is told of the engines from the beginning.
    assert all(len(task["engines"]) == 2 for task in fleet.tasks if task["device"] in names(12)[4:])
    assert not any(task["build_own"] for task in fleet.tasks)


def test_who_waits_for_an_engine_holds_no_place() -> None:
    others = threading.Event()

    def slow_build(task: Mapping[str, Any]) -> Any:
        if task["kind"] == "build":
            assert others.wait(20)
        return compiles(task)

    def last(task: Mapping[str, Any]) -> Any:
        others.set()
        return answer(task)

    # Four of one passport, of which one builds; the last device begins though only two may be at work at once.
    fleet = Fleet({**dict.fromkeys(names(4), slow_build), "d0004": last})
    ledger = create(plan_of(5, Options(attest="/keys/me", concurrency=2), targets=("nano",)))
    with pool() as executor:
        document = drive(ledger, executor, work=fleet, complete=completes).to_json()
    assert document["counts"] == {"updated": 5}
    assert len(fleet.of("build")) == 1


def test_a_build_that_fails_fails_its_device_and_the_next_one_builds() -> None:
    def fails(task: Mapping[str, Any]) -> Any:
        return answer(task, "failed") if task["kind"] == "build" else compiles(task)

    fleet = Fleet({**dict.fromkeys(names(6), compiles), "d0000": fails})
    ledger = create(plan_of(6, Options(attest="/keys/me", concurrency=1, max_failures=1), targets=("nano",)))
    with pool() as executor:
        document = drive(ledger, executor, work=fleet, complete=completes).to_json()
    assert document["counts"] == {"failed": 1, "updated": 5}
    assert fleet.of("build")[0] == "d0000"
    assert len(fleet.of("build")) == 2


def test_an_engine_that_is_not_what_it_should_be_fails_its_builder_alone() -> None:
    builders: list[str] = []

    def refuses(plan: Plan, told: Mapping[str, Any], key: Path) -> dict[str, Any]:
        builders.append(told["device"])
        if len(builders) == 1:
            raise IntegrityError("it is not the rollout's release with an engine", hint="see who put it there")
        return completes(plan, told, key)

    ledger = create(plan_of(4, Options(attest="/keys/me", max_failures=1), targets=("nano",)))
    with pool() as executor:
        document = drive(ledger, executor, work=fleet_of(4), complete=refuses).to_json()
    assert document["counts"] == {"failed": 1, "updated": 3}
    failed = next(each for each in document["devices"] if each["state"] == "failed")
    assert (failed["device"], failed["exit_code"]) == (builders[0], 6)
    assert "not the rollout's release" in failed["reason"]


def test_a_host_that_cannot_vouch_stops_the_rollout_and_blames_no_device() -> None:
    def locked(plan: Plan, told: Mapping[str, Any], key: Path) -> dict[str, Any]:
        raise BadInputError("ssh-agent does not have this key", hint="ssh-add it")

    ledger = begun(4)
    with pool() as executor:
        stopped = drive(ledger, executor, work=fleet_of(4), complete=locked)
        document = stopped.to_json()
        validate(document, "rollout")
        assert (document["state"], document["reason"]) == ("interrupted", "ssh-agent does not have this key")
        assert stopped.interrupted is not None
        assert stopped.interrupted["exit_code"] == 3
        assert set(document["counts"]) <= {"waits_for_engine", "waiting"}
        again = resume(ledger, executor, work=fleet_of(4), complete=completes).to_json()
    assert again["counts"] == {"updated": 4}


def test_what_was_built_before_the_host_died_is_not_built_again() -> None:
    fleet = fleet_of(4)
    ledger = begun(4, concurrency=1)
    with pool() as executor:
        drive(ledger, executor, work=fleet, complete=completes)
        path = ledger.folder / "events.ndjson"
        lines = path.read_bytes().splitlines(keepends=True)
        built = next(
            place for place, line in enumerate(lines) if json.loads(line).get("answer", {}).get("state") == "built"
        )
        path.write_bytes(b"".join(lines[: built + 1]))
        fleet.asked.clear()
        document = resume(ledger, executor, work=fleet, complete=completes).to_json()
    assert document["counts"] == {"updated": 4}
    assert len(fleet.of("build")) == 1  # of the other passport


def test_a_builder_whose_engine_is_refused_after_a_resume_does_not_build_once_more() -> None:
    fleet = fleet_of(3)
    ledger = create(plan_of(3, Options(attest="/keys/me", max_failures=1), targets=("nano",)))

    def cut_off(plan: Plan, told: Mapping[str, Any], key: Path) -> dict[str, Any]:
        raise BadInputError("ssh-agent does not have this key", hint="ssh-add it")

    def refuses(plan: Plan, told: Mapping[str, Any], key: Path) -> dict[str, Any]:
        if told["device"] != builder:
            return completes(plan, told, key)
        # Not before all have asked for it, its builder among them.
        while ledger.read().to_json()["counts"] != {"waits_for_engine": 3}:
            time.sleep(0.01)
        raise IntegrityError("it is not the rollout's release with an engine")

    with pool() as executor:
        drive(ledger, executor, work=fleet, complete=cut_off)
        (builder,) = fleet.of("build")
        document = resume(ledger, executor, work=fleet, complete=refuses).to_json()
    assert document["counts"] == {"failed": 1, "updated": 2}
    assert fleet.of("build").count(builder) == 1
    assert len(fleet.of("build")) == 2


def test_without_a_key_each_device_compiles_for_itself_and_asks_nobody() -> None:
    fleet = fleet_of(2, d0001=answer)
    ledger = create(plan_of(2, Options(max_failures=1), targets=("nano",)))
    with pool() as executor:
        document = drive(ledger, executor, work=fleet, complete=completes).to_json()
    assert all(task["build_own"] for task in fleet.tasks)
    # This one asks all the same.
    assert document["counts"] == {"failed": 1, "updated": 1}
    assert "nobody could vouch for" in document["devices"][0]["reason"]


@pytest.mark.parametrize("rest", ["halt", "abort"])
def test_who_waits_for_an_engine_when_all_ends_is_in_a_named_state(rest: str) -> None:
    ledger = create(plan_of(4, Options(attest="/keys/me", concurrency=1), targets=("nano",)))

    def ends(task: Mapping[str, Any]) -> Any:
        if task["kind"] == "build" and rest == "abort":
            ledger.ask_abort(rollback=False)
        return answer(task, "failed") if task["kind"] == "build" and rest == "halt" else compiles(task)

    with pool() as executor:
        document = drive(ledger, executor, work=Fleet(dict.fromkeys(names(4), ends)), complete=completes).to_json()
        validate(document, "rollout")
        if rest == "abort":
            assert document["state"] == "aborted"
            assert document["counts"] == {"not_begun": 4}
            return
        assert document["state"] == "halted"
        again = resume(ledger, executor, work=fleet_of(4), complete=completes).to_json()
        assert again["counts"] == {"updated": 4}


def test_an_engine_that_is_vouched_for_while_the_wave_is_taken_back_is_kept_and_holds_nothing_up() -> None:
    built, taken_back = threading.Event(), threading.Event()

    def device(task: Mapping[str, Any]) -> Any:
        if task["device"] == "d0001":
            if task["kind"] == "build":
                built.set()
            return compiles(task)
        if task["kind"] == "rollback":
            taken_back.set()
            while ledger.read().builds.built:
                time.sleep(0.01)
        elif task["device"] == "d0002":
            built.wait(20)
            while not ledger.read().builds.built:
                time.sleep(0.01)
            return answer(task, "failed")
        return answer(task)

    def slowly(plan: Plan, told: Mapping[str, Any], key: Path) -> dict[str, Any]:
        taken_back.wait(20)
        return completes(plan, told, key)

    options = Options(attest="/keys/me", concurrency=2, on_halt="rollback")
    ledger = create(plan_of(4, options, targets=("nano",)))
    fleet = Fleet(dict.fromkeys(names(4), device))
    with pool() as executor:
        document = drive(ledger, executor, work=fleet, complete=slowly).to_json()
        assert document["state"] == "halted"
        assert [each["state"] for each in document["devices"]][:3] == ["rolled_back", "waits_for_engine", "failed"]
        again = resume(ledger, executor, work=fleet_of(4), complete=completes).to_json()
    assert again["counts"] == {"updated": 4}
    assert fleet.of("build") == ["d0001"]

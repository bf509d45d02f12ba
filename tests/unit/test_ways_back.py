"""A release on probation until another has taken its place, and the way back of each, whatever fails meanwhile."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kedge.release.bundle import Release
from kedge_agent.errors import AgentError
from kedge_agent.runtime.pool import Timing
from kedge_agent.serving import activation
from kedge_agent.store import models as store_models
from kedge_agent.store.locks import deploying
from kedge_agent.store.models import ModelState, way_back
from tests.support.bad_models import obedient_release, wrong_outputs
from tests.unit.test_deploys import LONG, Device, Scarce, eventually
from tests.unit.test_store import deliver


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    device = Device(tmp_path / "state")
    yield device
    device.deploys.close()


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Release]:
    def make(version: int, probation_s: int = 0) -> Release:
        return obedient_release(tmp_path, version=version, probation_s=probation_s)

    return make


def on_probation(device: Device, release: Release) -> None:
    deliver(device.layout, release)
    device.deploys.activate(release.digest)
    assert eventually(lambda: told(device)["probation"] is not None)


def told(device: Device) -> dict[str, Any]:
    (row,) = device.deploys.status()
    return row


def makes_way(device: Device) -> None:
    """As if what serves were a model of a device's memory, not of some kilobytes."""
    live = device.repository.serving("digits")
    assert live is not None
    live.load["after"]["rss_bytes"] = live.load["before"]["rss_bytes"] + (1 << 50)


def fails_with(code: int) -> Callable[..., Any]:
    def fail(*given: Any, **more: Any) -> Any:
        raise OSError(code, "a disk that fails")

    return fail


def held_back(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Deploys wait before their switch until this is set."""
    held, real = threading.Event(), activation.judge_parity

    def judge(*given: Any) -> None:
        assert held.wait(20)
        real(*given)

    monkeypatch.setattr(activation, "judge_parity", judge)
    return held


def test_what_made_way_for_a_rollback_comes_back_when_the_disk_refuses_it(
    tmp_path: Path, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(tmp_path / "state", Scarce(1))
    device.deploy(made(1))
    makes_way(device)
    second = made(2)
    device.deploy(second)
    makes_way(device)
    monkeypatch.setattr("kedge_agent.serving.outcome.put_back", fails_with(errno.EIO))
    with pytest.raises(AgentError, match="switching digits"):
        device.deploys.rollback("digits")
    assert device.live == device.state.current == second.digest
    assert told(device)["problem"] is None


def test_a_probation_goes_on_over_an_unload_and_a_load_and_its_time_stands_still_between(
    device: Device, made: Any
) -> None:
    first, second = made(1), made(2, LONG)
    device.deploy(first)
    on_probation(device, second)
    device.fails(2)
    device.repository.unload("digits")

    def elapsed_s() -> float:
        return float(told(device)["probation"]["elapsed_s"])

    def stands_still() -> bool:
        before_s = elapsed_s()
        time.sleep(0.3)
        return elapsed_s() == before_s

    assert eventually(stands_still)
    stood_s = elapsed_s()
    device.repository.load("digits")
    assert eventually(lambda: elapsed_s() > stood_s)
    device.fails(1)
    ended = device.ended(second)
    assert ended["state"] == "reverted"
    assert "3 of 3 requests failed" in ended["error"]["error"]
    assert device.live == first.digest


def test_a_probation_goes_on_after_its_release_made_way_for_one_that_was_refused(tmp_path: Path, made: Any) -> None:
    device = Device(tmp_path / "state", Scarce(1))
    first, second, wrong = made(1), made(2, LONG), wrong_outputs(made(3), tmp_path / "wrong")
    device.deploy(first)
    makes_way(device)
    on_probation(device, second)
    makes_way(device)
    ended = device.deploy(wrong)
    assert ended["state"] == "refused"
    assert "restored" in [event["event"] for event in ended["events"]]
    makes_way(device)
    device.fails()
    assert device.ended(second)["state"] == "reverted"
    assert device.live == first.digest


def test_a_deploy_that_is_refused_at_its_switch_ends_no_probation(
    device: Device, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = made(1), made(2, LONG), made(3)
    device.deploy(first)
    on_probation(device, second)
    monkeypatch.setattr(activation, "prepare_switch", fails_with(errno.ENOSPC))
    assert device.deploy(third)["state"] == "refused"
    assert device.steps(second)[-1] == "switched"
    device.fails()
    assert device.ended(second)["state"] == "reverted"
    assert device.live == device.state.current == first.digest


@pytest.mark.parametrize("renamed", [False, True])
def test_an_end_of_the_agent_within_the_switch_tells_which_of_two_is_on_probation(
    device: Device, made: Any, renamed: bool
) -> None:
    first, second, third = made(1), made(5, LONG), made(3, LONG)
    device.deploy(first)
    on_probation(device, second)
    deliver(device.layout, third)
    for step in ("begun", "gated", "switching"):
        device.journal.append("digits", third.digest, step)
    if renamed:
        store_models.write_state(device.layout, "digits", ModelState(third.digest, second.digest, 1))
    device.again()
    assert device.live == (third if renamed else second).digest
    assert told(device)["probation"] is not None
    if renamed:
        assert device.steps(second)[-1] == "committed"
        assert device.journal.history()[-2].body == {"superseded": True}
    else:
        assert device.steps(third)[-1] == "refused"
    assert device.state.floor == 1, "neither has proven itself"


def test_a_release_that_broke_its_promises_is_no_way_back_for_the_one_that_takes_its_place(
    device: Device, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = made(1), made(2, LONG), made(3, LONG)
    device.deploy(first)
    on_probation(device, second)
    held = held_back(monkeypatch)
    deliver(device.layout, third)
    device.deploys.start(third.digest)
    watch = device.deploys._watches["digits"]
    device.fails()
    assert eventually(lambda: watch.broken is not None)
    held.set()
    ended = device.ended(second)
    assert (ended["state"], ended["error"]["kind"]) == ("reverted", "gate")
    assert "3 of 3 requests failed" in ended["error"]["error"]
    assert device.steps(second)[-1] == "reverted"
    assert device.state == ModelState(third.digest, first.digest, floor=1)
    assert eventually(lambda: told(device)["probation"] is not None)
    device.fails()
    assert device.ended(third)["state"] == "reverted"
    assert device.live == device.state.current == first.digest


def test_a_first_release_that_broke_its_promises_leaves_no_way_back_to_it(
    device: Device, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = made(1, LONG), made(2)
    on_probation(device, first)
    held = held_back(monkeypatch)
    deliver(device.layout, second)
    device.deploys.start(second.digest)
    watch = device.deploys._watches["digits"]
    device.fails()
    assert eventually(lambda: watch.broken is not None)
    held.set()
    assert device.ended(second)["state"] == "done"
    assert device.ended(first)["state"] == "reverted"
    assert device.state == ModelState(second.digest, None, floor=2)


def test_the_release_before_may_be_deployed_in_the_place_of_one_that_broke_its_promises(
    device: Device, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = made(1), made(2, LONG)
    device.deploy(first)
    on_probation(device, second)
    held = held_back(monkeypatch)
    device.deploys.start(first.digest)
    watch = device.deploys._watches["digits"]
    device.fails()
    assert eventually(lambda: watch.broken is not None)
    held.set()
    assert device.ended(second)["state"] == "reverted"
    assert device.ended(first)["state"] == "done"
    assert device.state == ModelState(first.digest, None, floor=1)


def test_an_agent_that_makes_way_rolls_nothing_back(device: Device, made: Any) -> None:
    first, second = made(1), made(2)
    device.deploy(first)
    device.deploy(second)
    device.deploys.close()
    with pytest.raises(AgentError, match="the agent is ending"):
        device.deploys.rollback("digits")
    assert device.live == device.state.current == second.digest
    assert way_back(device.layout, "digits") == ModelState(first.digest, second.digest, floor=2)


def test_a_rollback_waits_for_no_push(device: Device, made: Any) -> None:
    first, second = made(1), made(2)
    device.deploy(first)
    device.deploy(second)
    with deploying(device.layout, "digits"):
        assert device.deploys.rollback("digits")["release"] == first.digest


@pytest.mark.parametrize("name", ["state.undo", "state.next", "deploy.prepared"])
def test_a_rollback_needs_no_room_after_a_deploy_that_was_refused_at_its_switch(
    device: Device, made: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    first, second, third = made(1), made(2), made(3)
    device.deploy(first)
    device.deploy(second)
    write, reached = store_models.write_atomic, activation.reached

    def full(path: Path, data: bytes) -> None:
        if path.name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    def refused(place: str) -> None:
        if place == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        reached(place)

    monkeypatch.setattr(store_models, "write_atomic", full)
    monkeypatch.setattr(activation, "reached", refused)
    assert device.deploy(third)["error"]["kind"] == "space"
    monkeypatch.setattr(store_models, "write_atomic", fails_with(errno.ENOSPC))
    assert device.deploys.rollback("digits")["release"] == first.digest
    assert device.state.current == first.digest


@pytest.mark.parametrize("times", [1, 100])
def test_a_redeploy_of_the_release_before_whose_switch_is_not_durable_leaves_the_state_as_it_was(
    device: Device, made: Any, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    first, second = made(1), made(2)
    device.deploy(first)
    device.deploy(second)
    before, sync, left = device.state, store_models.fsync_directory, [times]

    def failing(path: Path) -> None:
        if path.name == "digits" and left[0] and (left[0] < times or device.state.current == first.digest):
            left[0] -= 1
            raise OSError(errno.EIO, "a disk that fails")
        sync(path)

    monkeypatch.setattr(store_models, "fsync_directory", failing)
    assert device.deploy(first)["state"] == "refused"
    monkeypatch.undo()
    assert device.state == before
    assert device.live == second.digest
    assert device.deploys.rollback("digits")["release"] == first.digest


@pytest.mark.parametrize("damage", [lambda path: path.write_text("{"), Path.unlink])
def test_a_rollback_finds_its_way_without_the_record_of_what_is_live(
    device: Device, made: Any, damage: Callable[[Path], Any]
) -> None:
    first, second = made(1), made(2)
    device.deploy(first)
    device.deploy(second)
    damage(device.layout.model("digits") / "state.json")
    assert device.deploys.rollback("digits")["release"] == first.digest
    assert device.state == ModelState(first.digest, second.digest, floor=2)


def test_a_release_on_probation_is_taken_back_without_the_record_of_what_is_live(device: Device, made: Any) -> None:
    first, second = made(1), made(2, LONG)
    device.deploy(first)
    on_probation(device, second)
    (device.layout.model("digits") / "state.json").write_text("{")
    device.fails()
    assert device.ended(second)["state"] == "reverted"
    assert device.live == device.state.current == first.digest


def test_a_release_that_passed_is_committed_without_the_record_of_what_is_live(device: Device, made: Any) -> None:
    first, second = made(1), made(2, 1)
    device.deploy(first)
    on_probation(device, second)
    (device.layout.model("digits") / "state.json").write_text("{")
    assert device.ended(second)["state"] == "done"
    assert device.state == ModelState(second.digest, first.digest, floor=2)


def test_a_model_that_is_unloaded_while_it_waits_to_be_taken_back_stays_unloaded(device: Device, made: Any) -> None:
    first, second = made(1), made(2, LONG)
    device.deploy(first)
    on_probation(device, second)
    watch = device.deploys._watches["digits"]
    live = device.repository.serving("digits")
    assert live is not None
    with device.repository.changing("digits"):
        device.fails()
        assert eventually(lambda: watch.broken is not None)
        # What `unload` does, which asks for the lock itself.
        device.repository._unloaded.add("digits")
        del device.repository._live["digits"]
        live.pool.retire()
    ended = device.ended(second)
    assert ended["state"] == "reverted"
    assert (device.live, told(device)["state"]) == (None, "unloaded")
    assert device.state.current == first.digest
    device.repository.load("digits")
    assert device.live == first.digest


def test_what_is_live_is_known_where_the_journal_has_forgotten_its_deploy(device: Device, made: Any) -> None:
    release = made(1)
    device.deploy(release)
    device.deploys.close()
    (device.layout.root / "journal").unlink()
    device.again()
    said = device.deploys.watch(release.digest, 0, 0)
    assert (said["state"], said["model"], said["error"]) == ("done", "digits", None)


def test_the_latency_of_the_release_before_is_known_to_the_next_agent(device: Device, made: Any) -> None:
    first, second = made(1), made(2, LONG)
    device.deploy(first)
    live = device.repository.serving("digits")
    assert live is not None
    for _ in range(100):
        live.statistics.success(Timing(compute_ns=2_500_000), 1, 0, 0)
    on_probation(device, second)
    assert device.deploys._watches["digits"]._before_p99_ms == 2.5
    device.again()
    assert device.deploys._watches["digits"]._before_p99_ms == 2.5

"""Deploys as the device does them by itself: their steps on disk and in memory, and every way in which they end."""

from __future__ import annotations

import errno
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kedge.release.bundle import Release
from kedge_agent import failpoints
from kedge_agent.errors import AgentError
from kedge_agent.runtime.base import LoadedModel, LoadOptions
from kedge_agent.runtime.onnxruntime import OnnxRuntime
from kedge_agent.runtime.pool import Timing
from kedge_agent.serving.deploys import Deploys
from kedge_agent.serving.repository import Repository
from kedge_agent.store import releases as store_releases
from kedge_agent.store.crashes import Marks
from kedge_agent.store.journal import Journal
from kedge_agent.store.layout import Layout
from kedge_agent.store.models import ModelState, read_state, way_back, write_state
from kedge_agent.store.releases import has_release
from kedge_agent.store.rules import REQUIRED, ReleaseRules
from tests.support.bad_models import obedient_release, wrong_outputs
from tests.unit.test_store import deliver

LONG = 600


class Scarce(OnnxRuntime):
    """A runtime in whose memory there is room for so many models at a time."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.loaded: list[LoadedModel] = []

    def load(self, path: Path, options: LoadOptions) -> LoadedModel:
        if len(self.loaded) >= self.room:
            raise AgentError("there is not enough memory", kind="space")
        model = super().load(path, options)
        close = model.close
        self.loaded.append(model)

        def closed() -> None:
            self.loaded.remove(model)
            close()

        model.close = closed  # type: ignore[method-assign]
        return model


class Device:
    """A store, and the part of an agent that deploys to it, in this process; `again` is what a new process would be."""

    def __init__(self, root: Path, runtime: OnnxRuntime | None = None, **rules: Any) -> None:
        self.layout = Layout(root)
        self.rules = ReleaseRules(**{"probation_s": 0, **rules})
        self.runtime = runtime or OnnxRuntime()
        self._open()

    def _open(self) -> None:
        self.marks = Marks(self.layout)
        self.journal = Journal(self.layout)
        self.repository = Repository(self.layout, {"onnxruntime": self.runtime}, threads=1, marks=self.marks)
        self.deploys = Deploys(self.layout, self.repository, self.journal, lambda: self.rules, self.marks)
        self.deploys.begin()

    def again(self, *, crashed: Release | None = None) -> None:
        """End in order, or within a run of this release, and begin anew."""
        if crashed is not None:
            self.marks.marker("digits", crashed.digest).enter()
        else:
            self.deploys.close()
        for live in self.repository.live():
            live.pool.retire()
        self._open()

    def deploy(self, release: Release) -> dict[str, Any]:
        """How it ended, with all of its events."""
        if not has_release(self.layout, release.digest):
            deliver(self.layout, release)
        self.deploys.start(release.digest)
        return self.ended(release)

    def ended(self, release: Release) -> dict[str, Any]:
        events: list[Any] = []
        for _ in range(100):
            said = self.deploys.watch(release.digest, len(events), 1.0)
            events += said["events"]
            if said["state"] != "running":
                return {**said, "events": events}
        raise AssertionError(said)

    @property
    def live(self) -> str | None:
        found = self.repository.serving("digits")
        return None if found is None else found.manifest.digest

    @property
    def state(self) -> ModelState:
        found = read_state(self.layout, "digits")
        assert found is not None
        return found

    def steps(self, release: Release) -> list[str]:
        return [entry.step for entry in self.journal.history() if entry.release == release.digest]

    def fails(self, times: int = 3) -> None:
        """Requests to what serves fail in the runtime."""
        live = self.repository.serving("digits")
        assert live is not None
        for _ in range(times):
            live.statistics.failure(None, 0)

    def answers(self) -> None:
        live = self.repository.serving("digits")
        assert live is not None
        live.statistics.success(Timing(), 1, 0, 0)


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path / "state")


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Release]:
    def make(version: int, probation_s: int = 0) -> Release:
        return obedient_release(tmp_path, version=version, probation_s=probation_s)

    return make


def eventually(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)
    return holds()


def failing(monkeypatch: pytest.MonkeyPatch, places: str) -> None:
    monkeypatch.setenv("KEDGE_FAILPOINTS", places)
    failpoints._asked.cache_clear()
    monkeypatch.setattr(failpoints, "_asked", failpoints._asked.__wrapped__)
    asked = failpoints._asked()
    monkeypatch.setattr(failpoints, "_asked", lambda: asked)


def test_a_deploy_goes_through_its_steps_and_says_what_was_before_and_what_is_now(device: Device, made: Any) -> None:
    first, second = made(1), made(2)
    assert device.deploy(first)["result"]["before"] is None
    ended = device.deploy(second)
    assert (ended["state"], ended["step"], ended["error"]) == ("done", "done", None)
    steps = [event["step"] for event in ended["events"] if event["event"] == "step"]
    assert steps == ["stage", "gate", "switch", "probation", "done"]
    result = ended["result"]
    assert (result["release"], result["previous"], result["version"]) == (second.digest, first.digest, 2)
    assert result["before"]["release"] == first.digest
    assert result["after"]["release"] == second.digest
    assert result["probation"]["requests"] == 0
    assert device.steps(second) == ["begun", "gated", "switching", "switched", "committed"]
    assert device.state == ModelState(second.digest, first.digest, floor=2)
    assert way_back(device.layout, "digits") == ModelState(first.digest, second.digest, floor=2)
    json.dumps(ended, allow_nan=False)


def test_what_was_measured_of_a_release_is_told_beside_the_next_one_also_by_the_next_agent(
    device: Device, made: Any
) -> None:
    first, second, third = (made(version) for version in (1, 2, 3))
    device.repository.rehearses = True
    one = device.deploy(first)["result"]["after"]
    assert one["size_bytes"] == first.manifest.total_bytes
    assert one["p99_ms"] > 0
    assert one["peak_bytes"] > 1 << 20
    two = device.deploy(second)["result"]
    assert two["before"] == one
    device.again()
    device.repository.rehearses = True
    assert device.deploy(third)["result"]["before"] == two["after"]


def test_what_became_of_a_deploy_is_known_to_the_next_agent(device: Device, made: Any, tmp_path: Path) -> None:
    first = made(1)
    wrong = wrong_outputs(made(2), tmp_path / "wrong")
    device.deploy(first)
    device.deploy(wrong)
    device.again()
    assert device.deploys.watch(first.digest, 0, 0)["state"] == "done"
    told = device.deploys.watch(wrong.digest, 0, 0)
    assert (told["state"], told["error"]["kind"]) == ("refused", "gate")
    assert "output 'y'" in told["error"]["error"]
    with pytest.raises(AgentError, match="no deploy of release") as caught:
        device.deploys.watch("a" * 64, 0, 0)
    assert caught.value.kind == "not_found"


def test_whoever_asks_for_a_deploy_that_runs_joins_it(device: Device, made: Any) -> None:
    release = made(1, LONG)
    deliver(device.layout, release)
    device.deploys.start(release.digest)
    assert eventually(lambda: bool(device.deploys.status()) and device.deploys.status()[0]["probation"] is not None)
    assert device.deploys.start(release.digest)["state"] == "running"
    assert device.steps(release).count("begun") == 1
    assert device.deploys.status()[0]["probation"]["seconds"] == LONG


def test_a_version_below_the_floor_is_refused_and_the_way_back_is_not(device: Device, made: Any) -> None:
    releases = {version: made(version) for version in (1, 2, 3)}
    deliver(device.layout, releases[1])
    for version in (2, 3):
        assert device.deploy(releases[version])["state"] == "done"
    ended = device.deploy(releases[1])
    assert (ended["state"], ended["error"]["kind"]) == ("refused", "integrity")
    assert "version 1 of digits is below 3" in ended["error"]["error"]
    assert device.deploys.rollback("digits")["version"] == 2
    assert device.deploy(releases[3])["state"] == "done"
    assert device.deploy(releases[2])["state"] == "done", "what a rollback could bring back may be deployed as well"
    assert device.state.floor == 3


@pytest.mark.parametrize("from_floor", [6, 5])
def test_a_downgrade_that_was_accepted_lowers_the_floor_once_and_none_that_has_risen_since(
    device: Device, made: Any, monkeypatch: pytest.MonkeyPatch, from_floor: int
) -> None:
    # Housekeeping would take the old one, at some moment or other.
    device.rules = replace(device.rules, keep=10)
    old, new, newer = made(1), made(5), made(6)
    deliver(device.layout, old)
    device.deploy(new)
    device.deploy(newer)
    accepted = store_releases.read_acceptance

    def downgrade(layout: Layout, digest: str) -> store_releases.Acceptance:
        found = accepted(layout, digest)
        return (
            replace(found, downgrade_floor=1, downgrade_serial=7, downgrade_from=from_floor)
            if digest == old.digest
            else found
        )

    for module in ("activation", "outcome", "deploys"):
        monkeypatch.setattr(f"kedge_agent.serving.{module}.read_acceptance", downgrade)
    if from_floor < 6:
        assert device.deploy(old)["state"] == "refused"
        return
    assert device.deploy(old)["state"] == "done"
    assert (device.state.floor, device.state.downgrade) == (1, 7)
    assert device.deploy(made(7))["state"] == "done"
    assert device.deploy(made(8))["state"] == "done"
    ended = device.deploy(old)
    assert ended["state"] == "refused", "an old statement counts once"


def test_a_device_that_requires_signatures_puts_nothing_unsigned_live_and_serves_on(device: Device, made: Any) -> None:
    first = made(1)
    device.deploy(first)
    device.rules = replace(device.rules, signatures=REQUIRED)
    ended = device.deploy(made(2))
    assert (ended["state"], ended["error"]["kind"]) == ("refused", "integrity")
    device.again()
    assert device.live == first.digest
    row = device.deploys.status()[0]
    assert (row["signed"], row["version_floor"], row["downgrade_serial"]) == (False, 1, 0)
    with pytest.raises(AgentError, match="accepted without signatures"):
        device.deploys.permit(first.digest)


def test_failures_in_probation_take_it_back_once(device: Device, made: Any) -> None:
    first, second = made(1), made(2, LONG)
    device.deploy(first)
    deliver(device.layout, second)
    device.deploys.activate(second.digest)
    device.fails()
    ended = device.ended(second)
    assert (ended["state"], ended["error"]["kind"]) == ("reverted", "gate")
    assert "3 of 3 requests failed" in ended["error"]["error"]
    assert device.live == device.state.current == first.digest
    assert device.state == ModelState(first.digest, None, floor=1)
    assert device.steps(second)[-2:] == ["reverting", "reverted"]
    row = device.deploys.status()[0]
    assert (row["last"]["step"], row["probation"], row["version_floor"]) == ("reverted", None, 1)
    assert "3 of 3" in row["last"]["reason"]
    device.fails(1000)
    time.sleep(0.3)
    assert device.live == first.digest


def test_a_first_release_that_fails_has_nothing_to_go_back_to_and_says_so(device: Device, made: Any) -> None:
    only = made(1, LONG)
    deliver(device.layout, only)
    device.deploys.activate(only.digest)
    device.answers()
    device.fails()
    ended = device.ended(only)
    assert ended["state"] == "refused"
    assert "no release to go back to" in ended["error"]["error"]
    assert device.live == only.digest, "it answers now and then: better than nothing"
    assert "failed in the runtime" in device.deploys.status()[0]["problem"]


def test_where_the_release_before_is_damaged_what_serves_stays(device: Device, made: Any) -> None:
    first, second = made(1), made(2, LONG)
    device.deploy(first)
    deliver(device.layout, second)
    device.deploys.activate(second.digest)
    (device.layout.release(first.digest) / "model.onnx").unlink()
    device.answers()
    device.fails()
    ended = device.ended(second)
    assert ended["state"] == "refused"
    assert "the release before cannot be loaded" in ended["error"]["error"]
    assert device.live == device.state.current == second.digest


def test_a_user_s_rollback_ends_the_probation(device: Device, made: Any) -> None:
    first, second = made(1), made(2, LONG)
    device.deploy(first)
    deliver(device.layout, second)
    device.deploys.activate(second.digest)
    assert device.deploys.rollback("digits")["release"] == first.digest
    assert device.ended(second)["state"] == "reverted"
    assert device.steps(second)[-1] == "rolled-back"
    assert device.live == device.state.current == first.digest
    device.again()
    assert device.live == first.digest


def test_another_release_takes_the_place_of_one_on_probation_which_raises_no_floor(device: Device, made: Any) -> None:
    first, second, third = made(1), made(5, LONG), made(3)
    device.deploy(first)
    deliver(device.layout, second)
    device.deploys.activate(second.digest)
    assert device.deploy(third)["state"] == "done"
    assert device.ended(second)["state"] == "done"
    assert device.state == ModelState(third.digest, second.digest, floor=3)


def test_an_end_in_order_leaves_the_probation_to_the_next_agent(device: Device, made: Any) -> None:
    first, second = made(1), made(2, LONG)
    device.deploy(first)
    deliver(device.layout, second)
    device.deploys.activate(second.digest)
    device.again()
    assert device.live == second.digest
    assert device.deploys.status()[0]["probation"]["seconds"] == LONG
    device.fails()
    assert device.ended(second)["state"] == "reverted"
    assert device.live == first.digest


def test_a_crash_in_probation_takes_it_back_at_the_next_start(device: Device, made: Any) -> None:
    first, second = made(1), made(2, LONG)
    device.deploy(first)
    deliver(device.layout, second)
    device.deploys.activate(second.digest)
    device.again(crashed=second)
    assert device.live == device.state.current == first.digest
    told = device.deploys.watch(second.digest, 0, 0)
    assert told["state"] == "reverted"
    assert "crashed" in told["error"]["error"]


def test_two_crashes_in_a_row_go_back_and_when_the_other_crashes_too_nothing_is_loaded(
    device: Device, made: Any
) -> None:
    first, second = made(1), made(2)
    device.deploy(first)
    device.deploy(second)
    device.again(crashed=second)
    assert device.live == second.digest, "once may be chance"
    device.again(crashed=second)
    assert device.live == device.state.current == first.digest
    device.again(crashed=first)
    device.again(crashed=first)
    assert device.live is None
    row = device.deploys.status()[0]
    assert row["state"] == "failed"
    assert "2 times in a row, and so did the one before" in row["problem"]
    # A deploy is a new beginning.
    third = made(3)
    assert device.deploy(third)["state"] == "done"
    assert device.live == third.digest


def test_ends_that_no_model_is_to_blame_for_lead_to_safe_mode_and_a_load_leaves_it(device: Device, made: Any) -> None:
    release = made(1)
    device.deploy(release)
    for _ in range(5):
        device._open()
    assert device.live is None
    assert device.repository.safe_mode == "safe mode: the agent crashed 5 times in a row"
    assert device.deploys.status()[0]["state"] == "failed"
    with pytest.raises(AgentError, match="safe mode"):
        device.repository.get("digits")
    device.repository.load("digits")
    assert device.live == release.digest
    assert device.repository.safe_mode is None


def test_where_both_do_not_fit_into_memory_the_live_one_makes_way(tmp_path: Path, made: Any) -> None:
    device = Device(tmp_path / "state", Scarce(1))
    first, second = made(1), made(2)
    device.deploy(first)
    live = device.repository.serving("digits")
    assert live is not None
    # As if it were a model of a device's memory, not of some kilobytes.
    live.load["after"]["rss_bytes"] = live.load["before"]["rss_bytes"] + (1 << 50)
    ended = device.deploy(second)
    assert ended["state"] == "done"
    assert [event["event"] for event in ended["events"] if event["event"] in ("drained", "restored")] == ["drained"]
    assert device.live == second.digest


def test_the_live_one_that_made_way_comes_back_when_the_other_is_refused(tmp_path: Path, made: Any) -> None:
    device = Device(tmp_path / "state", Scarce(1))
    first, wrong = made(1), wrong_outputs(made(2), tmp_path / "wrong")
    device.deploy(first)
    live = device.repository.serving("digits")
    assert live is not None
    live.load["after"]["rss_bytes"] = live.load["before"]["rss_bytes"] + (1 << 50)
    ended = device.deploy(wrong)
    assert (ended["state"], ended["error"]["kind"]) == ("refused", "gate")
    assert [event["event"] for event in ended["events"] if event["event"] in ("drained", "restored")] == [
        "drained",
        "restored",
    ]
    assert device.live == device.state.current == first.digest
    assert device.deploys.status()[0]["problem"] is None


def test_a_small_live_model_does_not_make_way_for_one_that_no_memory_would_hold(tmp_path: Path, made: Any) -> None:
    runtime = Scarce(1)
    device = Device(tmp_path / "state", runtime)
    first = made(1)
    device.deploy(first)
    live = device.repository.serving("digits")
    ended = device.deploy(made(2))
    assert (ended["state"], ended["error"]["kind"]) == ("refused", "space")
    assert device.repository.serving("digits") is live


@pytest.mark.parametrize("place", ["begun", "verified", "gated", "loaded", "prepared", "renamed"])
@pytest.mark.parametrize("how", ["eio", "enospc"])
def test_a_disk_that_fails_before_the_switch_leaves_all_as_it_was(
    device: Device, made: Any, monkeypatch: pytest.MonkeyPatch, place: str, how: str
) -> None:
    first, second = made(1), made(2)
    device.deploy(first)
    failing(monkeypatch, f"deploy.{place}={how}")
    ended = device.deploy(second)
    assert ended["state"] == "refused"
    assert ended["error"]["kind"] == ("space" if how == "enospc" else "internal")
    assert device.live == device.state.current == first.digest
    assert device.steps(second)[-1] == "refused"
    monkeypatch.undo()
    assert device.deploy(second)["state"] == "done"


@pytest.mark.parametrize("place", ["switched", "probation", "passed", "committed"])
def test_a_disk_that_fails_after_the_switch_undoes_nothing(
    device: Device, made: Any, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    first, second = made(1), made(2)
    device.deploy(first)
    failing(monkeypatch, f"deploy.{place}=eio")
    assert device.deploy(second)["state"] == "done"
    assert device.live == device.state.current == second.digest
    monkeypatch.undo()
    device.again()
    assert device.live == second.digest
    assert eventually(lambda: device.steps(second)[-1] == "committed")


def test_a_rollback_needs_no_room_on_the_disk(device: Device, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = made(1), made(2)
    device.deploy(first)
    device.deploy(second)

    def full(path: Path, data: bytes, mode: int = 0o644) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("kedge_agent.store.models.write_atomic", full)
    assert device.deploys.rollback("digits")["release"] == first.digest
    assert device.live == device.state.current == first.digest
    monkeypatch.undo()
    assert device.deploys.rollback("digits")["release"] == second.digest, "and the other way, once there is room"


@pytest.mark.parametrize("place", ["rollback.begun", "revert.renamed", "rollback.renamed", "rollback.done"])
def test_disk_and_memory_say_the_same_when_the_disk_fails_in_a_rollback(
    device: Device, made: Any, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    first, second = made(1), made(2)
    device.deploy(first)
    device.deploy(second)
    failing(monkeypatch, f"{place}=eio")
    if place == "rollback.begun":
        with pytest.raises(AgentError, match="input/output error"):
            device.deploys.rollback("digits")
        assert device.live == device.state.current == second.digest
    else:
        assert device.deploys.rollback("digits")["release"] == first.digest
        assert device.live == device.state.current == first.digest


@pytest.mark.parametrize("place", ["revert.begun", "revert.renamed", "revert.done"])
def test_a_disk_that_fails_keeps_no_failing_release_live(
    device: Device, made: Any, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    first, second = made(1), made(2, LONG)
    device.deploy(first)
    deliver(device.layout, second)
    device.deploys.activate(second.digest)
    failing(monkeypatch, f"{place}=eio")
    device.answers()
    device.fails()
    assert device.ended(second)["state"] == "reverted"
    assert device.live == device.state.current == first.digest


def test_a_deploy_that_ended_within_its_switch_is_taken_for_what_the_state_says(device: Device, made: Any) -> None:
    first, second, third = made(1), made(2), made(3)
    device.deploy(first)
    for release in (second, third):
        deliver(device.layout, release)
        device.journal.append("digits", release.digest, "begun")
        device.journal.append("digits", release.digest, "switching")
    write_state(device.layout, "digits", ModelState(second.digest, first.digest, 1), ModelState(first.digest, None, 1))
    device.again()
    assert device.live == second.digest
    assert eventually(lambda: device.steps(second)[-2:] == ["switched", "committed"])
    assert device.steps(third)[-1] == "refused"


def test_only_one_deploy_is_staged_at_a_time(device: Device, made: Any) -> None:
    first, second = made(1), made(2)
    deliver(device.layout, first)
    deliver(device.layout, second)
    held = threading.Event()
    stage = device.repository.stage

    def slow(model: str, digest: str) -> Any:
        assert held.wait(10)
        return stage(model, digest)

    device.repository.stage = slow  # type: ignore[method-assign]
    device.deploys.start(first.digest)
    with pytest.raises(AgentError, match="under way") as caught:
        device.deploys.start(second.digest)
    assert caught.value.kind == "busy"
    held.set()
    assert device.ended(first)["state"] == "done"


def test_hosts_that_ask_for_the_same_at_once_follow_one_deploy(device: Device, made: Any) -> None:
    release = made(1, LONG)
    deliver(device.layout, release)
    threads = [threading.Thread(target=device.deploys.start, args=(release.digest,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert eventually(lambda: device.live == release.digest)
    assert device.steps(release).count("begun") == 1


def test_an_agent_that_makes_way_writes_nothing_more(device: Device, made: Any) -> None:
    first, second = made(1), made(2)
    device.deploy(first)
    deliver(device.layout, second)
    held = threading.Event()
    stage = device.repository.stage

    def slow(model: str, digest: str) -> Any:
        assert held.wait(10)
        return stage(model, digest)

    device.repository.stage = slow  # type: ignore[method-assign]
    device.deploys.start(second.digest)
    assert eventually(lambda: device.steps(second) == ["begun"])
    device.deploys.close()
    held.set()
    ended = device.ended(second)
    assert (ended["state"], ended["error"]["kind"]) == ("refused", "busy")
    assert device.steps(second) == ["begun"], "another agent has the journal by then"
    assert device.state.current == first.digest

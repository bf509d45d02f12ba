"""Which release is at fault when the agent ended out of order, and what becomes of the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kedge_agent.errors import AgentError
from kedge_agent.measure import scratch
from kedge_agent.runtime.base import LoadedModel, LoadOptions
from kedge_agent.runtime.onnxruntime import OnnxRuntime
from kedge_agent.runtime.pool import Timing
from kedge_agent.serving import repository, staging
from kedge_agent.serving.stability import Stability
from kedge_agent.store.crashes import Marks
from tests.support.bad_models import X, obedient_release, slow_order
from tests.unit.test_deploys import LONG, Device
from tests.unit.test_store import deliver

Make = Callable[..., Any]


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path / "state")


@pytest.fixture
def made(tmp_path: Path) -> Make:
    def make(version: int, probation_s: int = 0, name: str = "digits") -> Any:
        return obedient_release(tmp_path, version=version, probation_s=probation_s, name=name)

    return make


def on_probation(device: Device, release: Any) -> None:
    deliver(device.layout, release)
    device.deploys.activate(release.digest)


def crash(device: Device, *running: Any) -> None:
    """End within runs of these releases, or outside of every run, and begin anew."""
    for release in running:
        device.marks.marker(release.manifest.model, release.digest).enter()
    # What was loaded is not retired: a process that is killed retires nothing.
    device._open()


def rows(device: Device) -> dict[str, dict[str, Any]]:
    return {row["model"]: row for row in device.deploys.status()}


def test_of_two_models_that_ran_at_each_crash_the_one_that_went_live_last_is_taken_back(
    device: Device, made: Make
) -> None:
    first, second = made(1), made(2)
    old, new = made(1, name="speech"), made(2, name="speech")
    for release in (first, second, old, new):
        device.deploy(release)
    for _ in range(3):
        crash(device, second, new)
        assert {row["release"] for row in rows(device).values()} == {second.digest, new.digest}
    crash(device, second, new)
    found = rows(device)
    assert (found["digits"]["release"], found["digits"]["problem"]) == (second.digest, None)
    assert found["speech"]["release"] == old.digest
    assert "was one of those that were running" in found["speech"]["problem"]
    # The other goes free, until it has crashed by itself.
    crash(device, second, old)
    assert {row["release"] for row in rows(device).values()} == {second.digest, old.digest}
    for _ in range(2):
        crash(device, second)
    assert device.live == first.digest
    assert "2 times in a row; the one before serves" in rows(device)["digits"]["problem"]


def test_of_two_models_that_ran_at_a_crash_the_one_on_probation_goes_back_at_the_second(
    device: Device, made: Make
) -> None:
    first, second, other = made(1), made(2, LONG), made(1, name="speech")
    for release in (other, first):
        device.deploy(release)
    on_probation(device, second)
    crash(device, second, other)
    assert device.live == second.digest
    crash(device, second, other)
    assert device.live == first.digest
    assert rows(device)["speech"]["release"] == other.digest


def test_ends_out_of_order_of_an_agent_that_has_a_release_on_probation_take_it_back_at_the_second(
    device: Device, made: Make
) -> None:
    first, second = made(1), made(2, LONG)
    device.deploy(first)
    on_probation(device, second)
    crash(device)
    assert device.live == second.digest, "once may be chance"
    crash(device)
    assert device.live == device.state.current == first.digest
    assert "2 times in a row while the release was on probation" in str(device.journal.history()[-1].body)
    assert device.repository.safe_mode is None


def test_ends_before_the_release_on_probation_is_loaded_are_not_its_doing(
    device: Device, made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = made(1), made(2, LONG)
    device.deploy(first)
    on_probation(device, second)
    device.deploys.close()
    for _ in range(3):
        Marks(device.layout)
    device._open()
    assert device.live == second.digest


def test_crashes_are_forgotten_of_models_that_answer_again_and_of_no_others(device: Device, made: Make) -> None:
    release, other = made(1), made(1, name="speech")
    for each in (release, other):
        device.deploy(each)
    crash(device, release)
    crash(device, other)
    stability = Stability(device.marks, device.repository)
    stability.close()
    stability.look()
    assert device.marks.suspects == {("digits", release.digest), ("speech", other.digest)}
    device.answers()
    stability.look()
    assert device.marks.suspects == {("speech", other.digest)}


class Hanging(OnnxRuntime):
    """A runtime that waits with every load of files whose path has `hangs` in it, until it is told to go on."""

    def __init__(self) -> None:
        self.hangs = ""
        self.go_on = threading.Event()

    def load(self, path: Path, options: LoadOptions) -> LoadedModel:
        if self.hangs and self.hangs in str(path):
            self.go_on.wait()
        return super().load(path, options)


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    monkeypatch.setattr(repository, "_LOOK_S", 0.1)
    monkeypatch.setattr(repository, "_PATIENCE_S", 0.2)
    runtime = Hanging()

    def patience_s(staged: staging.Staged) -> float:
        # The others may take what a busy machine makes them take.
        return 0.0 if staged.manifest.digest == runtime.hangs else 60.0

    monkeypatch.setattr(staging.Staged, "patience_s", property(patience_s))
    yield Device(tmp_path / "state", runtime)
    runtime.go_on.set()


def test_a_load_that_hangs_at_the_start_keeps_no_other_model_from_being_served_and_changed(
    hanging: Device, made: Make
) -> None:
    runtime = hanging.runtime
    assert isinstance(runtime, Hanging)
    bad, first, second = made(1), made(1, name="speech"), made(2, name="speech")
    for release in (bad, first, second):
        hanging.deploy(release)
    hanging.deploys.close()
    runtime.hangs = bad.digest
    hanging._open()
    assert rows(hanging)["digits"]["state"] == "loading"
    assert rows(hanging)["speech"]["release"] == second.digest
    with pytest.raises(AgentError, match="still being loaded"):
        hanging.repository.get("digits")
    hanging.deploys.rollback("speech")
    assert rows(hanging)["speech"]["release"] == first.digest
    hanging.repository.unload("speech")
    with pytest.raises(AgentError, match="another load of digits is under way"):
        hanging.repository.unload("digits")
    # The watchdog hears of it, and so does the next start after an end in order.
    until = time.monotonic() + 30
    while not hanging.repository.stuck_s() and time.monotonic() < until:
        time.sleep(0.01)
    assert hanging.repository.stuck_s() > 0
    hanging.deploys.close()
    assert Marks(hanging.layout).suspects == {("digits", bad.digest)}
    # One that was only slow serves in the end.
    runtime.go_on.set()
    while hanging.live is None and time.monotonic() < until:
        time.sleep(0.01)
    assert hanging.live == bad.digest


def test_whoever_leaves_safe_mode_has_all_models_loaded_and_a_probation_goes_on(device: Device, made: Make) -> None:
    first, second, other = made(1), made(2, LONG), made(1, name="speech")
    for release in (other, first):
        device.deploy(release)
    for _ in range(3):
        crash(device)
    on_probation(device, second)
    for _ in range(2):
        device.marks.pardon("digits", second.digest)
        crash(device)
    assert device.repository.safe_mode is not None
    with pytest.raises(AgentError, match="is on probation, which does not go on in safe mode"):
        device.deploys.watch(second.digest, 0, 0)
    device.repository.load("digits")
    until = time.monotonic() + 30
    while time.monotonic() < until and (len(device.repository.live()) < 2 or not rows(device)["digits"]["probation"]):
        time.sleep(0.01)
    found = rows(device)
    assert found["speech"]["release"] == other.digest
    assert found["digits"]["probation"] is not None
    assert {row["problem"] for row in found.values()} == {None}
    assert device.deploys.watch(second.digest, 0, 0)["state"] == "running"
    device.deploys.close()


def test_where_both_releases_are_damaged_both_are_named(device: Device, made: Make) -> None:
    first, second = made(1), made(2)
    for release in (first, second):
        device.deploy(release)
    for release in (first, second):
        (device.layout.release(release.digest) / "model.onnx").unlink()
    device.again()
    problem = rows(device)["digits"]["problem"]
    assert problem.count("model.onnx") == 2
    assert "nor can the previous release be served" in problem


def test_a_suspect_is_served_where_the_disk_has_no_room_for_its_trial(
    tmp_path: Path, made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(tmp_path / "state")
    release = made(1)
    device.deploy(release)
    monkeypatch.setattr(scratch, "_places", lambda: (tmp_path / "nowhere", Path("/dev/shm")))
    device.repository.rehearses = True
    # Memory takes the files of the child,
    with_trial = device.repository.bring("digits", release.digest, suspected=True)
    assert with_trial.load["rehearsal"] is not None
    # and where there is no room there either, it is loaded as usual.
    monkeypatch.setattr(scratch, "_places", lambda: (tmp_path / "nowhere", tmp_path / "neither"))
    without = device.repository.bring("digits", release.digest, suspected=True)
    assert without.load["rehearsal"] is None
    for live in (with_trial, without):
        live.pool.retire()


def test_a_request_that_hangs_in_probation_takes_the_release_back(
    tmp_path: Path, made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, hangs = made(1), made(2, 1), slow_order(1500)
    device = Device(tmp_path / "state")
    device.deploy(first)
    monkeypatch.setattr(staging, "_CPU_S", 0.2)
    on_probation(device, second)
    live = device.repository.get("digits")

    def ask() -> None:
        with live.pool.request({"x": (4,), "order": (4,)}, Timing()) as binding:
            binding.inputs["x"][...] = X
            binding.inputs["order"][...] = hangs
            live.pool.run(binding, Timing())

    asking = threading.Thread(target=ask)
    asking.start()
    ended = device.ended(second)
    assert ended["state"] == "reverted"
    assert "a request has been computing for" in ended["error"]["error"]
    assert device.live == first.digest
    asking.join()

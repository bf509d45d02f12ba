"""Releases that crash the agent, again and again: the one before serves, then none of that model, and the API lives."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from kedge.release.bundle import Release
from kedge_agent.store import crashes
from tests.support.agents import Device, assert_invariant
from tests.support.bad_models import FOREVER, ask, crash, obedient_release, order
from tests.support.deploys import clients, eventually, history, must_deploy, settled

pytestmark = pytest.mark.slow


def crash_it(device: Device, model: str = "digits") -> None:
    """A client whose request ends the agent."""
    agent = device.agent
    assert agent is not None
    with contextlib.suppress(OSError, http.client.HTTPException):
        agent.request("POST", f"/v2/models/{model}/infer", ask(crash()))
    # Python says where its threads stood, which may itself end in SIGSEGV.
    assert agent.process.wait(30) in (-signal.SIGFPE, -signal.SIGSEGV)


def computing(device: Device, models: int) -> bool:
    """Whether runs of so many models are going on, as the agent marks them for whoever starts it again."""
    seats = (device.state / "running").read_bytes()[crashes._FIRST_SEAT : crashes._FIRST_ENTRY]
    return len(set(seats) - {0}) == models


def up_again(device: Device) -> None:
    """What systemd does."""
    device.restart()


@pytest.fixture
def releases(device: Device, tmp_path: Path) -> list[Release]:
    """Two versions that are or were live, and another model that serves beside them."""
    found = [obedient_release(tmp_path, version=n) for n in (1, 2)]
    other = obedient_release(tmp_path, version=1, name="speech")
    device.start()
    for release in (other, *found):
        must_deploy(device, release)
    return found


def test_a_release_that_crashes_the_agent_twice_gives_way_to_the_one_before(
    device: Device, releases: list[Release]
) -> None:
    crash_it(device)
    up_again(device)
    # Once may have been chance.
    assert_invariant(device.state, device.agent, {releases[1].digest})
    crash_it(device)
    up_again(device)
    row = assert_invariant(device.state, device.agent, {releases[0].digest})
    assert row is not None
    assert "crashed the agent 2 times in a row; the one before serves" in row["problem"]
    entry = history(device)[-1]
    assert entry["step"] in ("reverted", "rolled-back")
    assert "crash" in str(entry)
    assert [each["state"] for each in device.status()["models"]] == ["serving", "serving"]
    # It stays so: the next start does not try the bad one again.
    device.restart()
    assert_invariant(device.state, device.agent, {releases[0].digest})


def test_when_the_one_before_crashes_too_the_model_is_not_served_and_all_else_is(
    device: Device, releases: list[Release], tmp_path: Path
) -> None:
    for _ in range(4):
        crash_it(device)
        up_again(device)
    row = assert_invariant(device.state, device.agent, {release.digest for release in releases}, safe=True)
    assert row is not None
    assert (row["state"], row["release"]) == ("failed", None)
    assert "crash" in row["problem"]
    speech = device.row("speech")
    assert speech is not None
    assert speech["state"] == "serving"
    assert device.agent is not None
    assert device.agent.request("POST", "/v2/models/speech/infer", ask())[0] == 200
    assert device.agent.request("POST", "/v2/models/digits/infer", ask())[0] >= 400
    # A start tries neither again, and a good release mends it.
    device.restart()
    assert (device.row() or {})["state"] == "failed"
    good = obedient_release(tmp_path, version=3)
    must_deploy(device, good)
    assert_invariant(device.state, device.agent, {good.digest})
    device.restart()
    assert_invariant(device.state, device.agent, {good.digest})


def test_a_crash_in_probation_is_one_too_many(device: Device, releases: list[Release], tmp_path: Path) -> None:
    third = obedient_release(tmp_path, version=3, probation_s=60)
    device.push(third)
    assert device.activate(third)[0] == 200
    crash_it(device)
    up_again(device)
    assert_invariant(device.state, device.agent, {releases[1].digest})
    entry = settled(device)
    assert entry is not None
    assert (entry["step"], entry["release"]) == ("reverted", third.digest)
    assert "crash" in str(entry)
    device.restart()
    assert_invariant(device.state, device.agent, {releases[1].digest})


def test_a_crash_in_the_first_probation_of_a_model_leaves_the_api_alive(device: Device, tmp_path: Path) -> None:
    only = obedient_release(tmp_path, version=1, probation_s=60)
    device.start()
    device.push(only)
    assert device.activate(only)[0] == 200
    for _ in range(3):
        if (device.row() or {}).get("release") is None:
            break
        crash_it(device)
        up_again(device)
    assert_invariant(device.state, device.agent, {only.digest, None}, safe=True)
    assert (device.row() or {}).get("release") is None
    good = obedient_release(tmp_path, version=2)
    must_deploy(device, good)
    assert_invariant(device.state, device.agent, {good.digest})


def test_a_crash_is_its_doer_s_and_not_that_of_a_model_which_only_served_beside_it(
    device: Device, releases: list[Release]
) -> None:
    # The other model is asked all the time, but what is long in the runtime is digits.
    for _ in range(2):
        agent = device.agent
        assert agent is not None
        asking = threading.Thread(target=lambda agent=agent: _ignored(agent, FOREVER))
        asking.start()
        assert eventually(lambda: computing(device, 1))
        agent.process.send_signal(signal.SIGSEGV)
        assert agent.process.wait(30) == -signal.SIGSEGV
        asking.join()
        up_again(device)
    assert_invariant(device.state, device.agent, {releases[0].digest})
    speech = device.row("speech")
    assert speech is not None
    assert (speech["state"], speech["problem"]) == ("serving", None)


def _ignored(agent: object, turns: int, model: str = "digits") -> None:
    with contextlib.suppress(OSError, http.client.HTTPException):
        agent.request("POST", f"/v2/models/{model}/infer", ask(order(turns=turns)))  # type: ignore[attr-defined]


def test_a_good_release_is_not_blamed_for_stops_under_load_nor_for_one_kill(
    device: Device, releases: list[Release]
) -> None:
    for _ in range(3):
        with clients(device):
            time.sleep(0.3)
            device.stop()
        device.start()
    with clients(device):
        time.sleep(0.3)
        assert device.agent is not None
        device.agent.process.kill()
        device.agent.process.wait(30)
    up_again(device)
    assert_invariant(device.state, device.agent, {releases[1].digest})
    assert not (device.row() or {})["problem"]


def test_kills_with_a_release_on_probation_take_it_back_at_the_second(
    device: Device, releases: list[Release], tmp_path: Path
) -> None:
    third = obedient_release(tmp_path, version=3, probation_s=60)
    device.push(third)
    assert device.activate(third)[0] == 200
    for expected in (third, releases[1]):
        assert device.agent is not None
        device.agent.process.kill()
        device.agent.process.wait(30)
        up_again(device)
        assert_invariant(device.state, device.agent, {expected.digest})
    entry = settled(device)
    assert entry is not None
    assert (entry["step"], entry["release"]) == ("reverted", third.digest)
    assert not device.status().get("safe_mode")


def test_of_two_models_that_compute_when_the_agent_is_killed_neither_is_taken_back(
    device: Device, releases: list[Release]
) -> None:
    for _ in range(2):
        agent = device.agent
        assert agent is not None
        asking = [
            threading.Thread(target=lambda agent=agent, model=model: _ignored(agent, FOREVER, model))
            for model in ("digits", "speech")
        ]
        for each in asking:
            each.start()
        assert eventually(lambda: computing(device, 2))
        agent.process.kill()
        agent.process.wait(30)
        for each in asking:
            each.join()
        up_again(device)
    assert_invariant(device.state, device.agent, {releases[1].digest})
    assert [row["problem"] for row in device.status()["models"]] == [None, None]


def test_an_agent_that_ends_again_and_again_without_a_model_s_doing_stands_in_safe_mode(
    device: Device, releases: list[Release], tmp_path: Path
) -> None:
    for _ in range(6):
        agent = device.agent
        assert agent is not None
        os.kill(agent.pid, signal.SIGKILL)
        agent.process.wait(30)
        up_again(device)
    status = device.status()
    assert status["safe_mode"]
    assert all(row["release"] is None for row in status["models"])
    assert_invariant(device.state, device.agent, {releases[1].digest}, safe=True)
    # A deploy leaves it.
    third = obedient_release(tmp_path, version=3)
    must_deploy(device, third)
    assert_invariant(device.state, device.agent, {third.digest})
    assert device.stop() == 0
    device.start()
    assert not device.status().get("safe_mode")
    assert_invariant(device.state, device.agent, {third.digest})
    assert (device.row("speech") or {})["state"] == "serving"


def test_safe_mode_is_left_by_loading_a_model_too(device: Device, releases: list[Release]) -> None:
    for _ in range(6):
        agent = device.agent
        assert agent is not None
        os.kill(agent.pid, signal.SIGKILL)
        agent.process.wait(30)
        up_again(device)
    assert device.status()["safe_mode"]
    status, said = device.request("POST", "/v2/repository/models/digits/load", {})
    assert status == 200, said
    assert_invariant(device.state, device.agent, {releases[1].digest})
    assert eventually(lambda: [row["state"] for row in device.status()["models"]] == ["serving", "serving"])

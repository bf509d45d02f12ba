"""Releases that pass their gates and fail at work: the device goes back by itself, once, and the host learns why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kedge.release.bundle import Release
from tests.support.agents import Device, assert_invariant
from tests.support.bad_models import ask, obedient_release, order, slow_order
from tests.support.deploys import clients, deploy, eventually, history, must_deploy, settled

pytestmark = pytest.mark.slow

FAILS = order(index=9)
FAST_ENOUGH = {"latency": {"p99_ms": "100"}}


@pytest.fixture
def live(device: Device, tmp_path: Path) -> Release:
    """What serves before."""
    release = obedient_release(tmp_path, version=1)
    device.start()
    must_deploy(device, release)
    return release


def kedge(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a person runs it."""
    return subprocess.run(
        [sys.executable, "-m", "kedge", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **environment},
    )


def test_errors_over_the_limit_take_the_release_back_once(device: Device, live: Release, tmp_path: Path) -> None:
    second = obedient_release(tmp_path, version=2, probation_s=60)
    device.push(second)
    assert device.begin_deploy(second)[0] == 200
    assert eventually(lambda: (device.row() or {})["release"] == second.digest)
    with clients(device, order=FAILS):
        ended = device.follow_deploy(second)
        assert ended["state"] == "reverted", ended
        # The one before fails on such requests too. It is not on probation, and nothing goes forth and back.
        time.sleep(2)
        assert (device.row() or {})["release"] == live.digest
    steps = [entry["step"] for entry in history(device)]
    assert steps.count("reverted") == 1
    assert steps[-1] == "reverted"
    row = assert_invariant(device.state, device.agent, {live.digest})
    assert row is not None
    assert row["probation"] is None
    assert row["last"]["step"] == "reverted"
    assert row["last"]["reason"]
    device.restart()
    assert_invariant(device.state, device.agent, {live.digest})


def test_the_host_is_told_why_and_exits_with_5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    device = Device(tmp_path / "xdg" / "kedge" / "local")
    first = obedient_release(tmp_path, version=1)
    second = obedient_release(tmp_path, version=2, probation_s=60)
    try:
        device.state.mkdir(parents=True)
        device.start()
        done = kedge("deploy", str(first.folder), "--to", "local", "--json")
        assert done.returncode == 0, done.stderr
        running = subprocess.Popen(
            [sys.executable, "-m", "kedge", "deploy", str(second.folder), "--to", "local"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert eventually(lambda: (device.row() or {})["release"] == second.digest)
        with clients(device, order=FAILS):
            out, errors = running.communicate(timeout=60)
        assert running.returncode == 5, out + errors
        assert "error" in errors
        assert first.digest[:8] in errors + out or "back" in errors + out
        assert_invariant(device.state, device.agent, {first.digest})
        # The same command again says how it ended, or tries it again; it does not say that all is well.
        told = kedge("history", "--on", "local", "--json")
        assert told.returncode == 0, told.stderr
        assert "reverted" in json.dumps(json.loads(told.stdout))
    finally:
        device.kill()


def test_a_p99_over_the_limit_takes_the_release_back(device: Device, live: Release, tmp_path: Path) -> None:
    second = obedient_release(tmp_path, version=2, probation_s=90, gates=FAST_ENOUGH)
    device.push(second)
    assert device.activate(second)[0] == 200
    # A few slow ones among many others are enough: one in a hundred is what the limit is about.
    with clients(device, 4, order=slow_order(300), every=20) as asking:
        ended = device.follow_deploy(second, timeout_s=100)
    assert ended["state"] == "reverted", ended
    assert "p99" in ended["error"]["error"]
    # Slow is not wrong: whoever was served by it was served, and nobody was lost at the way back.
    assert not asking.failed
    assert_invariant(device.state, device.agent, {live.digest})


def test_a_few_errors_among_many_answers_are_below_the_limit(device: Device, live: Release, tmp_path: Path) -> None:
    second = obedient_release(tmp_path, version=2, probation_s=3)
    device.push(second)
    assert device.activate(second)[0] == 200
    assert device.agent is not None
    with clients(device, 2):
        for _ in range(2):
            assert device.agent.request("POST", "/v2/models/digits/infer", ask(FAILS))[0] == 500
        ended = device.follow_deploy(second)
    assert ended["state"] == "done", ended
    assert_invariant(device.state, device.agent, {second.digest})


def test_requests_that_are_themselves_wrong_are_not_held_against_a_release(
    device: Device, live: Release, tmp_path: Path
) -> None:
    second = obedient_release(tmp_path, version=2, probation_s=2)
    device.push(second)
    assert device.activate(second)[0] == 200
    agent = device.agent
    assert agent is not None
    wrong: list[Any] = [{}, {"inputs": []}, {"inputs": [{"name": "x"}]}, {**ask(), "inputs": ask()["inputs"][:1]}]
    for body in wrong * 10:
        assert agent.request("POST", "/v2/models/digits/infer", body)[0] == 400
    ended = device.follow_deploy(second)
    assert ended["state"] == "done", ended
    assert_invariant(device.state, agent, {second.digest})


def test_a_rollback_during_probation_ends_it(device: Device, live: Release, tmp_path: Path) -> None:
    second = obedient_release(tmp_path, version=2, probation_s=60)
    device.push(second)
    assert device.begin_deploy(second)[0] == 200
    assert eventually(lambda: (device.row() or {})["release"] == second.digest)
    assert eventually(lambda: (device.row() or {})["probation"] is not None)
    assert device.rollback()[0] == 200
    ended = device.follow_deploy(second, timeout_s=20)
    assert ended["state"] in ("reverted", "refused"), ended
    entry = settled(device, timeout_s=5)
    assert entry is not None
    assert entry["step"] in ("rolled-back", "reverted")
    assert_invariant(device.state, device.agent, {live.digest})
    device.restart()
    assert_invariant(device.state, device.agent, {live.digest})


def test_another_deploy_during_probation_ends_on_the_later_one(device: Device, live: Release, tmp_path: Path) -> None:
    second = obedient_release(tmp_path, version=2, probation_s=60)
    third = obedient_release(tmp_path, version=3, probation_s=1)
    device.push(second)
    assert device.activate(second)[0] == 200
    device.push(third)
    ended = deploy(device, third)
    assert ended["state"] == "done", ended
    assert_invariant(device.state, device.agent, {third.digest})
    assert settled(device, timeout_s=10) is not None
    # What it goes back to is a release that has proven itself, or the one that served; never itself.
    status, said = device.rollback()
    assert status == 200, said
    assert_invariant(device.state, device.agent, {live.digest, second.digest})


def test_the_first_release_of_a_model_that_fails_in_probation_has_nothing_to_go_back_to_and_says_so(
    device: Device, tmp_path: Path
) -> None:
    only = obedient_release(tmp_path, version=1, probation_s=30)
    device.start()
    device.push(only)
    assert device.activate(only)[0] == 200
    with clients(device, order=FAILS):
        ended = device.follow_deploy(only)
    assert ended["state"] == "refused", ended
    assert "no release to go back to" in ended["error"]["error"]
    assert_invariant(device.state, device.agent, {only.digest, None}, safe=True)
    must_deploy(device, obedient_release(tmp_path, version=2))


def test_a_damaged_previous_release_keeps_what_serves_where_it_is(
    device: Device, live: Release, tmp_path: Path
) -> None:
    second = obedient_release(tmp_path, version=2, probation_s=30)
    device.push(second)
    assert device.activate(second)[0] == 200
    model = device.state / "releases" / live.digest / "model.onnx"
    model.chmod(0o644)
    model.write_bytes(model.read_bytes()[:-1] + b"\xff")
    with clients(device, order=FAILS):
        ended = device.follow_deploy(second)
    assert ended["state"] != "running"
    row = assert_invariant(device.state, device.agent, {second.digest, live.digest}, safe=True)
    assert row is not None

"""The host's copy is gone, or the host is: what the device has is enough to go back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.agents import Device, assert_invariant
from tests.support.bad_models import obedient_release, order
from tests.support.deploys import clients, eventually, must_deploy
from tests.support.receivers import receiver


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    """The device `local` of this test's home."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    state = tmp_path / "xdg" / "kedge" / "local"
    state.mkdir(parents=True)
    return Device(state)


def kedge(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kedge", *arguments], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.slow
def test_a_rollback_needs_nothing_that_the_host_had(local: Device, tmp_path: Path) -> None:
    folder = tmp_path / "host"
    folder.mkdir()
    first, second = (obedient_release(folder, version=n) for n in (1, 2))
    try:
        local.start()
        for release in (first, second):
            done = kedge("deploy", str(release.folder), "--to", "local", "--json")
            assert done.returncode == 0, done.stderr
        digests = first.digest, second.digest
        shutil.rmtree(folder)
        shutil.rmtree(tmp_path / "xdg" / "cache", ignore_errors=True)
        done = kedge("rollback", "--on", "local", "digits", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["release"] == digests[0]
        assert_invariant(local.state, local.agent, {digests[0]})
        local.restart()
        assert_invariant(local.state, local.agent, {digests[0]})
        done = kedge("rollback", "--on", "local", "digits", "--json")
        assert done.returncode == 0, done.stderr
        assert_invariant(local.state, local.agent, {digests[1]})
    finally:
        local.kill()


@pytest.mark.slow
def test_a_host_that_fell_silent_during_its_push_keeps_nobody_from_going_back(device: Device, tmp_path: Path) -> None:
    first = obedient_release(tmp_path, version=1)
    second, third = (obedient_release(tmp_path, version=n, probation_s=60) for n in (2, 3))
    device.start()
    must_deploy(device, first)
    device.push(second)
    assert device.activate(second)[0] == 200
    with receiver(device.state) as silent:
        silent.want(third)
        # By its user, and by the device itself.
        assert device.rollback()[0] == 200
        assert_invariant(device.state, device.agent, {first.digest})
        # Another deploy is told to wait, and by whom.
        status, said = device.activate(second)
        assert (status, said["kind"]) == (503, "busy")
    assert device.activate(second)[0] == 200
    with receiver(device.state) as silent:
        silent.want(third)
        with clients(device, order=order(index=9)):
            assert eventually(lambda: (device.row() or {})["release"] == first.digest)
        assert_invariant(device.state, device.agent, {first.digest})


def test_a_model_with_one_release_says_that_there_is_nothing_to_go_back_to(device: Device, tmp_path: Path) -> None:
    only = obedient_release(tmp_path, version=1)
    device.start()
    must_deploy(device, only)
    status, said = device.rollback()
    assert (status, said["kind"]) == (404, "not_found")
    assert said["hint"]
    assert_invariant(device.state, device.agent, {only.digest})


def test_a_previous_release_that_is_damaged_is_not_gone_back_to(device: Device, tmp_path: Path) -> None:
    first, second = (obedient_release(tmp_path, version=n) for n in (1, 2))
    device.start()
    for release in (first, second):
        must_deploy(device, release)
    model = device.state / "releases" / first.digest / "model.onnx"
    model.chmod(0o644)
    model.write_bytes(model.read_bytes()[:-1] + b"\xff")
    status, said = device.rollback()
    assert (status, said["kind"]) == (422, "integrity")
    assert "model.onnx" in said["error"]
    assert_invariant(device.state, device.agent, {second.digest})
    device.restart()
    assert_invariant(device.state, device.agent, {second.digest})

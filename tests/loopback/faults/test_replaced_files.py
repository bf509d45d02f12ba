"""Files of the store that something else lies in the place of: folders, links, pipes, rubbish."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kedge.release.bundle import Release
from tests.support.agents import Device, assert_invariant
from tests.support.bad_models import obedient_release
from tests.support.deploys import deploy, eventually, must_deploy

pytestmark = pytest.mark.slow


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def folder(path: Path) -> None:
    (path / "x" / "y").mkdir(parents=True)


def elsewhere(path: Path) -> None:
    """A link to a file that is none of the agent's business."""
    path.symlink_to(outside(path))


def outside(path: Path) -> Path:
    found = next(parent for parent in path.parents if parent.name == "state").parent / "outside"
    found.write_text("not the agent's")
    return found


WITH: dict[str, Callable[[Path], None]] = {
    "an empty folder": Path.mkdir,
    "a folder": folder,
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to another file": elsewhere,
    "a link to another folder": lambda path: path.symlink_to("/etc"),
    "nothing": lambda path: None,
    "an empty file": Path.touch,
    "rubbish": lambda path: path.write_bytes(os.urandom(300)),
    "zeros": lambda path: path.write_bytes(bytes(4096)),
    "rubbish that is JSON": lambda path: path.write_text('{"current": "../../../etc", "previous": 7}') and None,
    "endless zeros": lambda path: path.symlink_to("/dev/zero"),
    "a pipe": os.mkfifo,
}

COARSELY = ["a folder", "a link to another file", "nothing", "an empty file", "rubbish", "a pipe"]
"""Where every kind would take too long to try."""

OF_A_MODEL = ["state.json", "state.back", "state.next", "state.undo", "current"]
OF_THE_STORE = ["running", "locks", "locks/digits", "store.lock", "incoming"]


@pytest.fixture
def releases(device: Device, tmp_path: Path) -> list[Release]:
    """Two versions in the store, the second one live; the third is not there yet. The agent is stopped."""
    found = [obedient_release(tmp_path, version=n) for n in (1, 2, 3)]
    device.start()
    for release in found[:2]:
        must_deploy(device, release)
    device.stop()
    return found


def recovers(device: Device, releases: list[Release]) -> None:
    """One of the two serves, or the API lives and says what is wrong; a deploy mends it for good."""
    agent = device.restart()
    assert_invariant(device.state, agent, {release.digest for release in releases[:2]}, safe=True)
    device.push(releases[2])
    ended = deploy(device, releases[2])
    assert ended["state"] == "done", ended
    row = assert_invariant(device.state, agent, {releases[2].digest})
    assert row is not None
    assert not row["problem"], row
    agent = device.restart()
    row = assert_invariant(device.state, agent, {releases[2].digest})
    assert row is not None
    assert not row["problem"], row
    found = device.state.parent / "outside"
    if found.exists():
        assert found.read_text() == "not the agent's"


@pytest.mark.parametrize("what", WITH)
@pytest.mark.parametrize("name", OF_A_MODEL)
def test_what_lies_in_the_place_of_a_models_file_keeps_the_device_neither_from_serving_nor_from_the_next_deploy(
    device: Device, releases: list[Release], name: str, what: str
) -> None:
    path = device.state / "models" / "digits" / name
    remove(path)
    WITH[what](path)
    recovers(device, releases)


@pytest.mark.parametrize("what", [what for what in WITH if what != "nothing"])
def test_a_state_that_cannot_be_read_is_told_by_what_else_the_device_knows(
    device: Device, releases: list[Release], what: str
) -> None:
    path = device.state / "models" / "digits" / "state.json"
    remove(path)
    WITH[what](path)
    agent = device.restart()
    # The journal and the way back still tell which one it was.
    row = assert_invariant(device.state, agent, {releases[1].digest})
    assert row is not None
    # What was live is not gone for that: back to the one before, where the device knows it.
    assert_invariant(device.state, device.restart(), {releases[1].digest})


@pytest.mark.parametrize("what", COARSELY)
@pytest.mark.parametrize("name", OF_THE_STORE)
def test_what_lies_in_the_place_of_a_file_of_the_store_keeps_no_model_from_being_served(
    device: Device, releases: list[Release], name: str, what: str
) -> None:
    path = device.state / name
    if what == "nothing" and not path.exists():
        pytest.skip("it is not there to be removed")
    remove(path)
    path.parent.mkdir(exist_ok=True)
    WITH[what](path)
    agent = device.restart()
    assert_invariant(device.state, agent, {releases[1].digest})
    # What is no file of ours may keep deploys away, with a reason; it may not be followed, and it may not kill.
    assert device.rollback()[0] in (200, 403, 500, 503, 507)
    assert_invariant(device.state, agent, {releases[0].digest, releases[1].digest})
    found = device.state.parent / "outside"
    if found.exists():
        assert found.read_text() == "not the agent's"


@pytest.mark.parametrize("what", COARSELY)
@pytest.mark.parametrize("which", ["the live one", "the one before"])
@pytest.mark.parametrize("name", ["", "manifest.json", "accepted.json", "offer.json", "model.onnx"])
def test_a_release_that_something_else_lies_in_the_place_of_is_not_served_and_a_redeploy_mends_it(
    device: Device, releases: list[Release], name: str, which: str, what: str
) -> None:
    hurt = releases[1] if which == "the live one" else releases[0]
    path = device.state / "releases" / hurt.digest / name
    if name in ("model.onnx", "golden-in-0.bin") and what in ("rubbish", "zeros"):
        # Not in the place of a hard link, but through it: the object is hurt too.
        path.chmod(0o644)
        path.write_bytes(os.urandom(path.stat().st_size))
    else:
        remove(path)
        WITH[what](path)
    agent = device.restart()
    row = assert_invariant(device.state, agent, {release.digest for release in releases[:2]})
    assert row is not None
    if which == "the one before":
        assert row["release"] == releases[1].digest
    elif name not in ("accepted.json", "offer.json"):
        assert row["release"] == releases[0].digest
        assert row["problem"]
    # The same release, pushed again, is whole again.
    device.push(hurt)
    ended = deploy(device, hurt)
    assert ended["state"] == "done", ended
    row = assert_invariant(device.state, agent, {hurt.digest})
    assert row is not None
    assert not row["problem"]
    agent = device.restart()
    assert_invariant(device.state, agent, {hurt.digest})


def test_files_that_something_else_replaces_while_the_agent_runs_are_noticed_when_they_are_used(
    device: Device, releases: list[Release]
) -> None:
    device.start()
    state = device.state / "models" / "digits" / "state.json"
    remove(state)
    folder(state)
    # What serves is in memory.
    assert device.agent is not None
    assert eventually(lambda: device.agent is not None and device.agent.request("GET", "/v2/health/ready")[0] == 200)
    device.push(releases[2])
    ended = deploy(device, releases[2])
    assert ended["state"] == "done", ended
    assert_invariant(device.state, device.agent, {releases[2].digest})
    device.restart()
    assert_invariant(device.state, device.agent, {releases[2].digest})

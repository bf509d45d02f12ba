"""Files of the store that something else lies in the place of: folders, links, pipes, rubbish.

What concerns one model is tried with many models on one device, each of which has something else done to it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from kedge.release.bundle import Release
from tests.support.agents import Device, assert_invariant
from tests.support.bad_models import obedient_release
from tests.support.deploys import deploy, eventually, must_deploy
from tests.support.seeds import Seed, seed

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


class Stock(NamedTuple):
    """A device that has been stopped, and three versions by model: two are there, of which the second one is live."""

    seed: Seed
    versions: dict[str, list[Release]]


def stock(folder: Path, models: list[str]) -> Stock:
    """No two releases have weights in common: what hurts one hurts no other."""
    versions = {
        model: [obedient_release(folder, version=10 * number + each, name=model) for each in (1, 2, 3)]
        for number, model in enumerate(models)
    }
    return Stock(seed(folder, [release for releases in versions.values() for release in releases[:2]]), versions)


def called(what: str) -> str:
    """A model's name of its own for what is done to it."""
    return what.lower().replace(" ", "-")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    """A device of one model, digits."""
    return stock(tmp_path_factory.mktemp("one"), ["digits"])


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    """A device of a model for each thing that may lie in a file's place."""
    return stock(tmp_path_factory.mktemp("many"), [called(what) for what in WITH])


@pytest.fixture
def device(one: Stock, tmp_path: Path) -> Iterator[Device]:
    found = one.seed.device(tmp_path)
    yield found
    found.kill()


@pytest.fixture
def crowd(many: Stock, tmp_path: Path) -> Iterator[Device]:
    found = many.seed.device(tmp_path)
    yield found
    found.kill()


@pytest.fixture
def releases(one: Stock) -> list[Release]:
    return one.versions["digits"]


def nothing_outside_has_changed(device: Device) -> None:
    found = device.state.parent / "outside"
    if found.exists():
        assert found.read_text() == "not the agent's"


def whole(device: Device, model: str, release: Release) -> None:
    """This one is live, it serves, and nothing is said against it."""
    assert device.agent is not None
    row = assert_invariant(device.state, device.agent, {release.digest}, model=model)
    assert row is not None
    assert not row["problem"], row


@pytest.mark.parametrize("name", OF_A_MODEL)
def test_what_lies_in_the_place_of_a_models_file_keeps_the_device_neither_from_serving_nor_from_the_next_deploy(
    crowd: Device, many: Stock, name: str
) -> None:
    for what, act in WITH.items():
        path = crowd.state / "models" / called(what) / name
        remove(path)
        act(path)
    agent = crowd.restart()
    # One of the two serves, or the API lives and says what is wrong;
    for model, releases in many.versions.items():
        expected = {release.digest for release in releases[:2]}
        assert_invariant(crowd.state, agent, expected, model=model, safe=True)
    # a deploy mends it
    for model, releases in many.versions.items():
        must_deploy(crowd, releases[2])
        whole(crowd, model, releases[2])
    # for good.
    crowd.restart()
    for model, releases in many.versions.items():
        whole(crowd, model, releases[2])
    nothing_outside_has_changed(crowd)


def test_a_state_that_cannot_be_read_is_told_by_what_else_the_device_knows(crowd: Device, many: Stock) -> None:
    for what, act in WITH.items():
        if what != "nothing":
            path = crowd.state / "models" / called(what) / "state.json"
            remove(path)
            act(path)
    # The journal and the way back still tell which one it was. What was live is not gone for that: back to the one
    # before, where the device knows it.
    for _ in range(2):
        agent = crowd.restart()
        for model, releases in many.versions.items():
            assert assert_invariant(crowd.state, agent, {releases[1].digest}, model=model) is not None


@pytest.mark.parametrize("what", COARSELY)
@pytest.mark.parametrize("name", OF_THE_STORE)
def test_what_lies_in_the_place_of_a_file_of_the_store_keeps_no_model_from_being_served(
    device: Device, releases: list[Release], name: str, what: str
) -> None:
    path = device.state / name
    remove(path)
    path.parent.mkdir(exist_ok=True)
    WITH[what](path)
    agent = device.restart()
    assert_invariant(device.state, agent, {releases[1].digest})
    # What is no file of ours may keep deploys away, with a reason; it may not be followed, and it may not kill.
    assert device.rollback()[0] in (200, 403, 500, 503, 507)
    assert_invariant(device.state, agent, {releases[0].digest, releases[1].digest})
    nothing_outside_has_changed(device)


@pytest.mark.parametrize("which", ["the live one", "the one before"])
@pytest.mark.parametrize("name", ["", "manifest.json", "accepted.json", "offer.json", "model.onnx"])
def test_a_release_that_something_else_lies_in_the_place_of_is_not_served_and_a_redeploy_mends_it(
    crowd: Device, many: Stock, name: str, which: str
) -> None:
    hurt = {called(what): many.versions[called(what)][which == "the live one"] for what in COARSELY}
    for what in COARSELY:
        path = crowd.state / "releases" / hurt[called(what)].digest / name
        if name == "model.onnx" and what == "rubbish":
            # Not in the place of a hard link, but through it: the object is hurt too.
            path.chmod(0o644)
            path.write_bytes(os.urandom(path.stat().st_size))
        else:
            remove(path)
            WITH[what](path)
    agent = crowd.restart()
    for model, releases in many.versions.items():
        row = assert_invariant(crowd.state, agent, {release.digest for release in releases[:2]}, model=model)
        assert row is not None
        if model not in hurt or which == "the one before":
            assert row["release"] == releases[1].digest
        elif name not in ("accepted.json", "offer.json"):
            assert row["release"] == releases[0].digest
            assert row["problem"]
    # The same release, pushed again, is whole again.
    for model, release in hurt.items():
        must_deploy(crowd, release)
        whole(crowd, model, release)
    agent = crowd.restart()
    for model, release in hurt.items():
        assert_invariant(crowd.state, agent, {release.digest}, model=model)


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

"""SIGKILL at every step of an activation, and a start in each state in which the journal may be found."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kedge.release.bundle import Release
from kedge_agent.failpoints import FAILPOINTS
from kedge_agent.store.journal import FINAL_STEPS, Journal
from kedge_agent.store.layout import Layout
from kedge_agent.store.models import ModelState, write_state
from tests.support.agents import Device, assert_invariant, damaged_files, recorded_state
from tests.support.bad_models import obedient_release, order
from tests.support.deploys import clients, configure, deploy, eventually, history, killed, must_deploy, settled
from tests.support.seeds import Seed, seed

pytestmark = pytest.mark.slow


def places(beginning: str) -> list[str]:
    return [name for name in FAILPOINTS if name.startswith(beginning)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Release]:
    """Two versions; the second one has a probation."""
    folder = tmp_path_factory.mktemp("two")
    return [obedient_release(folder, version=1), obedient_release(folder, version=2, probation_s=1)]


@pytest.fixture(scope="module")
def stopped(two: list[Release], tmp_path_factory: pytest.TempPathFactory) -> Seed:
    """The first one is live, the second one has been pushed, and the agent was stopped."""
    return seed(tmp_path_factory.mktemp("stopped"), two[:1], two[1:])


@pytest.fixture(scope="module")
def cut_off(two: list[Release], tmp_path_factory: pytest.TempPathFactory) -> Seed:
    """As `stopped`, by a kill."""
    return seed(tmp_path_factory.mktemp("cut-off"), two[:1], two[1:], killed=True)


@pytest.fixture
def ready(stopped: Seed, tmp_path: Path) -> Iterator[Device]:
    made = stopped.device(tmp_path)
    yield made
    made.kill()


@pytest.fixture
def fallen(cut_off: Seed, tmp_path: Path) -> Iterator[Device]:
    made = cut_off.device(tmp_path)
    yield made
    made.kill()


def test_every_place_of_an_activation_is_tried_here() -> None:
    tried = ("deploy.", "revert.", "rollback.", "journal.", "start.", "collect.")
    # The others are those of a push and of an upgrade.
    assert {name.split(".")[0] for name in FAILPOINTS if not name.startswith(tried)} <= {"receive", "accept", "upgrade"}


@pytest.mark.parametrize("place", places("deploy."))
def test_a_kill_at_any_step_of_a_deploy_leaves_one_release_live_and_the_deploy_can_be_run_again(
    ready: Device, two: list[Release], place: str
) -> None:
    first, second = two
    # Three times at the same place: nothing that a kill leaves may pile up.
    for turn in range(3):
        if turn:
            # In order, for ends out of order are counted.
            ready.stop()
        ready.start(failpoints=f"{place}=kill")
        killed(ready, lambda: deploy(ready, second))
        agent = ready.restart()
        row = assert_invariant(ready.state, agent, {first.digest, second.digest})
        assert row is not None
        settled(ready)
        row = assert_invariant(ready.state, agent, {first.digest, second.digest})
        assert row is not None
        if row["release"] == second.digest:
            assert ready.rollback()[0] == 200
    ended = deploy(ready, second)
    assert ended["state"] == "done", ended
    assert_invariant(ready.state, ready.agent, {second.digest})
    assert ready.rollback()[0] == 200
    assert_invariant(ready.state, ready.agent, {first.digest})


@pytest.mark.parametrize("place", ["deploy.loaded", "deploy.renamed", "deploy.switched", "deploy.committed"])
def test_a_kill_during_the_first_deploy_of_a_model_leaves_it_or_nothing(
    device: Device, tmp_path: Path, place: str
) -> None:
    only = obedient_release(tmp_path, version=1, probation_s=1)
    device.start(failpoints=f"{place}=kill")
    device.push(only)
    killed(device, lambda: deploy(device, only))
    agent = device.restart()
    assert_invariant(device.state, agent, {only.digest, None}, safe=True)
    ended = deploy(device, only)
    assert ended["state"] == "done", ended
    assert_invariant(device.state, agent, {only.digest})


@pytest.mark.parametrize("place", places("revert."))
def test_a_kill_while_the_device_goes_back_by_itself_ends_on_the_former_release(
    device: Device, tmp_path: Path, place: str
) -> None:
    first = obedient_release(tmp_path, version=1)
    second = obedient_release(tmp_path, version=2, probation_s=30)
    device.start(failpoints=f"{place}=kill")
    must_deploy(device, first)
    device.push(second)
    assert device.activate(second)[0] == 200

    def fail() -> None:
        with clients(device, order=order(index=9)):
            assert device.agent is not None
            device.agent.process.wait(60)

    killed(device, fail)
    agent = device.restart()
    settled(device)
    assert_invariant(device.state, agent, {first.digest})
    assert history(device)[-1]["step"] == "reverted"
    device.restart()
    assert_invariant(device.state, device.agent, {first.digest})


@pytest.mark.parametrize("place", places("rollback."))
def test_a_kill_during_a_rollback_leaves_one_of_the_two_live_and_it_can_be_run_again(
    device: Device, tmp_path: Path, place: str
) -> None:
    first, second = (obedient_release(tmp_path, version=n) for n in (1, 2))
    device.start()
    for release in (first, second):
        must_deploy(device, release)
    # In order, for ends out of order are counted.
    device.stop()
    device.start(failpoints=f"{place}=kill")
    killed(device, device.rollback)
    agent = device.restart()
    done = place != "rollback.begun"
    row = assert_invariant(device.state, agent, {first.digest} if done else {first.digest, second.digest})
    assert row is not None
    settled(device)
    if row["release"] == second.digest:
        assert device.rollback()[0] == 200
    assert_invariant(device.state, agent, {first.digest})
    # And forward again: what it goes back to is what it came from.
    assert device.rollback()[0] == 200
    assert_invariant(device.state, agent, {second.digest})


@pytest.mark.parametrize("turn", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("place", places("journal."))
def test_a_kill_while_any_record_is_written_leaves_one_release_live(
    ready: Device, two: list[Release], place: str, turn: int
) -> None:
    first, second = two
    ready.start(failpoints=f"{place}@{turn}=kill")
    killed(ready, lambda: deploy(ready, second))
    agent = ready.restart()
    assert_invariant(ready.state, agent, {first.digest, second.digest})
    settled(ready)
    assert_invariant(ready.state, agent, {first.digest, second.digest})
    sequences = [entry["sequence"] for entry in history(ready)]
    assert sequences == list(range(sequences[0], sequences[0] + len(sequences)))
    ended = deploy(ready, second)
    assert ended["state"] == "done", ended
    assert_invariant(ready.state, agent, {second.digest})


@pytest.mark.parametrize("before", ["deploy.renamed", "deploy.switched", "deploy.prepared"])
def test_kills_in_a_row_while_the_journal_is_replayed_change_nothing(
    ready: Device, two: list[Release], before: str
) -> None:
    first, second = two
    ready.start(failpoints=f"{before}=kill")
    killed(ready, lambda: deploy(ready, second))
    for _ in range(3):
        ready.kill()
        process = ready.start(failpoints="start.replayed=kill").process
        killed(ready, process.wait)
    agent = ready.restart()
    assert_invariant(ready.state, agent, {first.digest, second.digest})
    settled(ready)
    assert_invariant(ready.state, agent, {first.digest, second.digest})


@pytest.mark.parametrize("place", places("collect."))
def test_a_kill_while_old_releases_are_removed_touches_neither_current_nor_previous(
    device: Device, tmp_path: Path, place: str
) -> None:
    configure(device.state, releases={"keep": 10})
    releases = [obedient_release(tmp_path, version=n) for n in range(1, 5)]
    device.start()
    for release in releases:
        must_deploy(device, release)
    device.stop()
    # From now on the first two are nobody's.
    configure(device.state, releases={"keep": 0})
    for _ in range(3):
        device.kill()
        process = device.start(failpoints=f"{place}=kill").process
        killed(device, process.wait)
    agent = device.restart()
    assert_invariant(device.state, agent, {releases[3].digest})
    folders = [device.state / "releases" / release.digest for release in releases]
    assert eventually(lambda: not any(folder.exists() for folder in folders[:2]))
    assert not damaged_files(device.state, releases[2].digest)
    assert device.rollback()[0] == 200
    assert_invariant(device.state, agent, {releases[2].digest})
    # What was half removed is in nobody's way.
    again = obedient_release(tmp_path, version=5)
    must_deploy(device, again)
    assert_invariant(device.state, agent, {again.digest})


# --- each state of the journal ---------------------------------------------------------------------------------------


def written(state: Path, release: str, steps: list[str]) -> None:
    """A journal that was left after these steps of a deploy."""
    journal = Journal(Layout(state))
    for step in steps:
        journal.append("digits", release, step)


@pytest.mark.parametrize("switched", [False, True])
@pytest.mark.parametrize(
    "steps",
    [
        ["begun"],
        ["begun", "gated"],
        ["begun", "gated", "switching"],
        ["begun", "gated", "switching", "switched"],
        ["begun", "gated", "switching", "switched", "reverting"],
        ["begun", "gated", "switching", "switched", "reverting", "reverted"],
        ["begun", "gated", "switching", "switched", "committed"],
        ["begun", "refused"],
        ["begun", "gated", "switching", "switched", "rolled-back"],
    ],
    ids=lambda steps: steps[-1],
)
def test_whatever_state_the_journal_is_found_in_a_start_ends_it(
    fallen: Device, two: list[Release], steps: list[str], switched: bool
) -> None:
    first, second = two
    written(fallen.state, second.digest, steps)
    if switched:
        before = ModelState(first.digest, None, 1)
        write_state(Layout(fallen.state), "digits", ModelState(second.digest, first.digest, 1), before)
    agent = fallen.restart()
    assert_invariant(fallen.state, agent, {first.digest, second.digest})
    last = settled(fallen)
    assert last is not None
    assert last["step"] in FINAL_STEPS
    row = assert_invariant(fallen.state, agent, {first.digest, second.digest})
    assert row is not None
    if steps[-1] == "reverting":
        assert row["release"] == first.digest
    if not switched:
        assert row["release"] == first.digest
    # Nothing of it is left to be done at the next start.
    before_restart = history(fallen)
    fallen.restart()
    time.sleep(0.2)
    assert history(fallen) == before_restart
    assert recorded_state(fallen.state) is not None
    fallen.push(second)
    ended = deploy(fallen, second)
    assert ended["state"] == "done", ended
    assert_invariant(fallen.state, fallen.agent, {second.digest})

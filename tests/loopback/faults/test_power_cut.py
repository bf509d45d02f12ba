"""The power goes: what was synced is there, the rest may not be, or in part. Whatever was reported as done still is."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kedge_agent.failpoints import FAILPOINTS
from kedge_agent.formats.offer import Offer
from tests.conftest import make_release
from tests.support.agents import Device, assert_invariant, damaged_files, recorded_state
from tests.support.powercut import Disk, mounted
from tests.support.receivers import PushError, frame_message, push, receiver
from tests.support.weights import weighty_release

pytestmark = pytest.mark.slow

SEEDS = [None, 1]
"""None: the disk kept what was synced and nothing else. A number: it also kept a random part of what was not."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path) as made:
        yield made


@pytest.fixture
def device(disk: Disk) -> Iterator[Device]:
    """A device whose state lies on the disk."""
    made = Device(disk.folder / "state")
    yield made
    made.kill()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_frame_that_was_acknowledged_is_there_after_a_power_cut_and_is_not_sent_again(
    disk: Disk, device: Device, tmp_path: Path, seed: int | None
) -> None:
    release = weighty_release(tmp_path, version=1, small_files=3)
    acknowledged: set[tuple[int, int]] = set()
    # Each push is cut off in its middle; the last one is left to end.
    for stop in (2, 3, 2):
        with receiver(device.state) as process:
            wanted = process.want(release, Offer())
            assert not acknowledged & set(wanted)
            for frame in wanted[: stop + 1]:
                process.send(frame_message(release, *frame))
            while len(process.acknowledged) < min(stop, len(wanted)):
                assert process.heard() is not None
            acknowledged |= process.acknowledged
            disk.cut(process.process, seed=seed)
    assert not acknowledged & set(push(device.state, release))
    assert not damaged_files(device.state, release.digest)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_release_whose_push_was_reported_as_done_is_whole_after_a_power_cut(
    disk: Disk, device: Device, tmp_path: Path, seed: int | None
) -> None:
    release = weighty_release(tmp_path, version=1, small_files=3)
    with receiver(device.state) as process:
        for frame in process.want(release, Offer()):
            process.send(frame_message(release, *frame))
        process.commit()
        disk.cut(process.process, seed=seed)
    assert not damaged_files(device.state, release.digest)
    assert push(device.state, release) == []
    device.start()
    assert device.activate(release)[0] == 200
    assert device.agent is not None
    assert_invariant(device.state, device.agent, {release.digest})


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("place", [name for name in FAILPOINTS if name.startswith("accept.")])
def test_a_power_cut_while_a_release_is_accepted_leaves_it_whole_or_not_there(
    disk: Disk, device: Device, tmp_path: Path, place: str, seed: int | None
) -> None:
    first = make_release(tmp_path, version=1)
    second = weighty_release(tmp_path, version=2, seed=2, small_files=3)
    device.start()
    device.serve(first)
    with receiver(device.state, KEDGE_FAILPOINTS=f"{place}=kill") as process:
        wanted = process.want(second, Offer())
        for frame in wanted:
            process.send(frame_message(second, *frame))
        while len(process.acknowledged) < len(wanted):
            assert process.heard() is not None
        with pytest.raises(PushError):
            process.commit()
        assert process.process.wait(60) == -signal.SIGKILL
        assert device.agent is not None
        disk.cut(device.agent.process, seed=seed)
    agent = device.restart()
    assert_invariant(device.state, agent, {first.digest})
    if (device.state / "releases" / second.digest).exists():
        assert not damaged_files(device.state, second.digest)
    # Every frame was acknowledged: none is sent again, whatever the cut has undone.
    assert push(device.state, second, offer=Offer()) == []
    assert device.activate(second)[0] == 200
    assert_invariant(device.state, agent, {second.digest})


@pytest.mark.parametrize("seed", SEEDS)
def test_a_switch_and_a_rollback_that_were_reported_are_in_force_after_a_power_cut(
    disk: Disk, device: Device, tmp_path: Path, seed: int | None
) -> None:
    first, second = (make_release(tmp_path, version=n, seed=n) for n in (1, 2))
    device.start()
    for release in (first, second):
        device.serve(release)
        assert device.agent is not None
        disk.cut(device.agent.process, seed=seed)
        assert_invariant(device.state, device.restart(), {release.digest})
    assert device.rollback()[0] == 200
    assert device.agent is not None
    disk.cut(device.agent.process, seed=seed)
    assert_invariant(device.state, device.restart(), {first.digest})
    recorded = recorded_state(device.state)
    assert recorded is not None
    assert (recorded["current"], recorded["previous"]) == (first.digest, second.digest)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("place", [name for name in FAILPOINTS if name.startswith("deploy.")])
def test_a_power_cut_at_any_step_of_a_deploy_leaves_one_of_both_releases_live(
    disk: Disk, device: Device, tmp_path: Path, place: str, seed: int | None
) -> None:
    first, second = (make_release(tmp_path, version=n, seed=n) for n in (1, 2))
    device.start()
    device.serve(first)
    device.push(second)
    device.restart(failpoints=f"{place}=kill")
    assert device.agent is not None
    process = device.agent.process
    with contextlib.suppress(OSError):
        device.begin_deploy(second)
    assert process.wait(60) == -signal.SIGKILL, f"{place} was not reached"
    disk.cut(process, seed=seed)
    agent = device.restart()
    assert_invariant(device.state, agent, {first.digest, second.digest})
    # The same deploy again: it goes live, whatever was made of it.
    assert device.begin_deploy(second)[0] == 200
    assert device.follow_deploy(second)["state"] == "done"
    assert_invariant(device.state, agent, {second.digest})
    assert device.rollback()[0] == 200
    assert_invariant(device.state, agent, {first.digest})

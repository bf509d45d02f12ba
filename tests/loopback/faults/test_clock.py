"""The device's clock is at 1970, ten years ahead, or jumps while a release is deployed or on probation."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agents import Device, assert_invariant
from tests.support.bad_models import obedient_release, order
from tests.support.clock import YEAR_S, WallClock
from tests.support.deploys import clients, configure, deploy, eventually, history, must_deploy, push, settled
from tests.support.keys import allow, downgrade_of, make_key, offer_of
from tests.support.receivers import PushError

pytestmark = pytest.mark.slow

PROBATION_S = 3
JUMPS = {"to 1970": None, "ten years on": 10 * YEAR_S, "ten years back": -10 * YEAR_S}


@pytest.fixture
def clock(tmp_path: Path) -> WallClock:
    return WallClock(tmp_path / "clock")


@pytest.fixture
def device(tmp_path: Path, clock: WallClock) -> Iterator[Device]:
    device = Device(tmp_path / "state", **clock.environment)
    yield device
    device.kill()


def jump(clock: WallClock, seconds: int | None) -> None:
    if seconds is None:
        clock.set(0)
    else:
        clock.move(seconds)


@pytest.mark.parametrize("where", JUMPS)
def test_accepted_releases_load_serve_and_are_deployed_at_any_time(
    device: Device, clock: WallClock, tmp_path: Path, where: str
) -> None:
    alice = make_key(tmp_path, "alice")
    signers = allow(tmp_path / "allowed_signers", [("digits", alice)])
    configure(device.state, releases={"signatures": "required", "allowed_signers": str(signers)})
    first, second, third, fourth = (obedient_release(tmp_path, version=n, probation_s=1) for n in (1, 2, 3, 4))
    device.start()
    for release in (first, second):
        push(device, release, offer_of(release, alice))
        assert deploy(device, release)["state"] == "done"
    push(device, third, offer_of(third, alice))
    jump(clock, JUMPS[where])
    device.restart()
    assert_invariant(device.state, device.agent, {second.digest})
    assert deploy(device, third)["state"] == "done"
    # A key without a time of its own is good at any time.
    push(device, fourth, offer_of(fourth, alice))
    assert deploy(device, fourth)["state"] == "done"
    assert device.rollback()[0] == 200
    device.restart()
    assert_invariant(device.state, device.agent, {third.digest})


@pytest.mark.parametrize("where", JUMPS)
def test_a_jump_during_a_deploy_changes_nothing_of_how_it_ends(
    device: Device, clock: WallClock, tmp_path: Path, where: str
) -> None:
    first = obedient_release(tmp_path, version=1)
    second = obedient_release(tmp_path, version=2, golden=order(turns=1000))
    device.start()
    must_deploy(device, first)
    device.push(second)
    jumping = threading.Timer(0.3, jump, (clock, JUMPS[where]))
    jumping.start()
    ended = deploy(device, second)
    jumping.join()
    assert ended["state"] == "done", ended
    assert_invariant(device.state, device.agent, {second.digest})
    steps = [(entry["sequence"], entry["step"]) for entry in history(device)]
    assert steps == sorted(steps, key=lambda step: step[0])
    assert steps[-1][1] == "committed"


@pytest.mark.parametrize("where", JUMPS)
def test_probation_ends_neither_early_nor_never_when_the_clock_jumps(
    device: Device, clock: WallClock, tmp_path: Path, where: str
) -> None:
    first = obedient_release(tmp_path, version=1)
    second = obedient_release(tmp_path, version=2, probation_s=PROBATION_S)
    device.start()
    must_deploy(device, first)
    device.push(second)
    assert device.activate(second)[0] == 200
    began = time.monotonic()
    jump(clock, JUMPS[where])
    ended = device.follow_deploy(second)
    took = time.monotonic() - began
    assert ended["state"] == "done", ended
    # It began a moment before we looked at our watch.
    assert PROBATION_S - 0.5 <= took <= PROBATION_S + 20
    assert all(
        0 <= event["elapsed_s"] <= PROBATION_S + 20 for event in ended["events"] if event["event"] == "probation"
    )
    assert_invariant(device.state, device.agent, {second.digest})


def test_a_probation_that_fails_is_noticed_whatever_the_clock_says(
    device: Device, clock: WallClock, tmp_path: Path
) -> None:
    first = obedient_release(tmp_path, version=1)
    second = obedient_release(tmp_path, version=2, probation_s=30)
    device.start()
    must_deploy(device, first)
    device.push(second)
    assert device.activate(second)[0] == 200
    jump(clock, None)
    with clients(device, order=order(index=9)):
        assert eventually(lambda: (device.row() or {})["release"] == first.digest)
    last = settled(device)
    assert last is not None
    assert last["step"] == "reverted"


def test_a_restart_in_probation_at_another_time_watches_it_anew_and_ends(
    device: Device, clock: WallClock, tmp_path: Path
) -> None:
    first = obedient_release(tmp_path, version=1)
    second = obedient_release(tmp_path, version=2, probation_s=PROBATION_S)
    device.start()
    must_deploy(device, first)
    device.push(second)
    assert device.activate(second)[0] == 200
    device.stop()
    clock.set(0)
    device.start()
    assert_invariant(device.state, device.agent, {second.digest})
    last = settled(device)
    assert last is not None
    assert (last["step"], last["release"]) == ("committed", second.digest)


def test_a_clock_that_is_surely_wrong_is_named_where_a_key_has_a_time_of_its_own(
    device: Device, clock: WallClock, tmp_path: Path
) -> None:
    alice = make_key(tmp_path, "alice")
    signers = allow(tmp_path / "allowed_signers", [("digits", alice, 'valid-after="20200101"')])
    configure(device.state, releases={"signatures": "required", "allowed_signers": str(signers)})
    first, second = (obedient_release(tmp_path, version=n) for n in (1, 2))
    device.start()
    push(device, first, offer_of(first, alice))
    assert deploy(device, first)["state"] == "done"
    clock.set(0)
    with pytest.raises(PushError, match="is not valid yet") as caught:
        push(device, second, offer_of(second, alice))
    assert "1970" in caught.value.hint
    assert "wrong" in caught.value.hint
    device.restart()
    assert_invariant(device.state, device.agent, {first.digest})


def test_a_downgrade_is_taken_by_its_number_and_not_by_the_devices_clock(
    device: Device, clock: WallClock, tmp_path: Path
) -> None:
    alice = make_key(tmp_path, "alice")
    signers = allow(tmp_path / "allowed_signers", [("digits", alice)])
    configure(device.state, releases={"signatures": "required", "allowed_signers": str(signers), "keep": 10})
    first, second, third = (obedient_release(tmp_path, version=n) for n in (1, 2, 3))
    device.start()
    clock.set(0)
    for release in (second, third):
        push(device, release, offer_of(release, alice))
        assert deploy(device, release)["state"] == "done"
    statement = downgrade_of(first, int(time.time()), alice)
    push(device, first, offer_of(first, alice, downgrade=statement))
    assert deploy(device, first)["state"] == "done"
    # Twice, for what was live last may be gone back to.
    for release in (second, third):
        push(device, release, offer_of(release, alice))
        assert deploy(device, release)["state"] == "done"
    for seconds in (-20 * YEAR_S, 20 * YEAR_S):
        clock.move(seconds)
        with pytest.raises(PushError, match="was used before"):
            push(device, first, offer_of(first, alice, downgrade=statement))
    assert_invariant(device.state, device.agent, {third.digest})

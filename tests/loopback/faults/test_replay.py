"""Older releases that were signed once are offered again; the floor of versions, and the downgrades that lower it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kedge.release.bundle import Release
from kedge_agent.formats.offer import Offer, Signed
from tests.support.agents import Device, assert_invariant, recorded_state
from tests.support.bad_models import obedient_release
from tests.support.deploys import configure, deploy, must_deploy, push
from tests.support.keys import RELEASE, Key, allow, downgrade_of, make_key, offer_of, signed
from tests.support.receivers import PushError

NOW = int(time.time())


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Key]:
    folder = tmp_path_factory.mktemp("keys")
    return {name: make_key(folder, name) for name in ("alice", "mallory")}


@pytest.fixture
def device(tmp_path: Path, keys: dict[str, Key]) -> Iterator[Device]:
    """A device that asks for Alice's signatures, with an agent."""
    signers = allow(tmp_path / "allowed_signers", [("digits", keys["alice"])])
    configure(tmp_path / "state", releases={"signatures": "required", "allowed_signers": str(signers), "keep": 10})
    device = Device(tmp_path / "state")
    device.start()
    yield device
    device.kill()


@pytest.fixture
def releases(tmp_path: Path) -> list[Release]:
    """Versions 1 to 4."""
    return [obedient_release(tmp_path, version=n) for n in range(1, 5)]


def served(device: Device, release: Release, key: Key, downgrade: Signed | None = None) -> dict[str, Any]:
    push(device, release, offer_of(release, key, downgrade=downgrade))
    ended = deploy(device, release)
    assert ended["state"] == "done", ended
    return ended


def floor(device: Device) -> int:
    state = recorded_state(device.state)
    assert state is not None
    return int(state["floor"])


def test_an_older_release_is_refused_however_well_it_is_signed(
    device: Device, releases: list[Release], keys: dict[str, Key]
) -> None:
    served(device, releases[1], keys["alice"])
    assert floor(device) == 2
    with pytest.raises(PushError, match=r"has been at version 2 .* this is version 1") as caught:
        push(device, releases[0], offer_of(releases[0], keys["alice"]))
    assert caught.value.kind == "integrity"
    assert "--allow-downgrade" in caught.value.hint
    assert not (device.state / "releases" / releases[0].digest).exists()
    device.restart()
    row = assert_invariant(device.state, device.agent, {releases[1].digest})
    assert row is not None
    assert row["version_floor"] == 2


@pytest.mark.slow
def test_an_older_release_that_lies_in_the_store_from_before_is_refused_when_it_is_to_go_live(
    device: Device, releases: list[Release], keys: dict[str, Key]
) -> None:
    # Taken while it was new enough, and never deployed.
    push(device, releases[0], offer_of(releases[0], keys["alice"]))
    for release in releases[1:3]:
        served(device, release, keys["alice"])
    ended = deploy(device, releases[0])
    assert (ended["state"], ended["error"]["kind"]) == ("refused", "integrity"), ended
    status, said = device.activate(releases[0])
    assert (status, said["kind"]) == (422, "integrity")
    assert_invariant(device.state, device.agent, {releases[2].digest})
    assert floor(device) == 3


@pytest.mark.slow
def test_a_rollback_goes_below_the_floor_and_does_not_lower_it(
    device: Device, releases: list[Release], keys: dict[str, Key]
) -> None:
    for release in releases[:2]:
        served(device, release, keys["alice"])
    assert device.rollback()[0] == 200
    assert_invariant(device.state, device.agent, {releases[0].digest})
    assert floor(device) == 2
    device.restart()
    assert_invariant(device.state, device.agent, {releases[0].digest})
    # The recorded two are exempt, in both directions; nothing else is.
    assert deploy(device, releases[1])["state"] == "done"
    assert deploy(device, releases[0])["state"] == "done"
    assert floor(device) == 2
    assert_invariant(device.state, device.agent, {releases[0].digest})


@pytest.mark.slow
def test_a_signed_downgrade_is_taken_once_and_its_replay_is_refused(
    device: Device, releases: list[Release], keys: dict[str, Key]
) -> None:
    for release in releases[:3]:
        served(device, release, keys["alice"])
    statement = downgrade_of(releases[0], NOW, keys["alice"])
    served(device, releases[0], keys["alice"], statement)
    assert_invariant(device.state, device.agent, {releases[0].digest})
    assert floor(device) == 1
    for release in releases[2:4]:
        served(device, release, keys["alice"])
    assert floor(device) == 4
    with pytest.raises(PushError, match="was used before") as caught:
        push(device, releases[0], offer_of(releases[0], keys["alice"], downgrade=statement))
    assert caught.value.kind == "integrity"
    # It is in the store, with the record that once let it in: that lets it in no more.
    ended = deploy(device, releases[0])
    assert (ended["state"], ended["error"]["kind"]) == ("refused", "integrity"), ended
    device.restart()
    assert deploy(device, releases[0])["state"] == "refused"
    assert_invariant(device.state, device.agent, {releases[3].digest})
    # One that was made later is another.
    served(device, releases[0], keys["alice"], downgrade_of(releases[0], NOW + 1, keys["alice"]))
    assert_invariant(device.state, device.agent, {releases[0].digest})
    older = downgrade_of(releases[1], NOW, keys["alice"])
    served(device, releases[2], keys["alice"])
    with pytest.raises(PushError, match="was used before"):
        push(device, releases[1], offer_of(releases[1], keys["alice"], downgrade=older))


@pytest.mark.slow
def test_a_downgrade_that_is_not_for_this_release_or_not_signed_for_it_is_refused(
    device: Device, releases: list[Release], keys: dict[str, Key]
) -> None:
    for release in releases[:3]:
        served(device, release, keys["alice"])
    old = releases[0]
    statements = {
        "for another release": downgrade_of(releases[1], NOW, keys["alice"]),
        "distinct keys|no signature": downgrade_of(old, NOW),
        "is not one of": downgrade_of(old, NOW, keys["mallory"]),
        "for kedge-release, not for kedge-downgrade": downgrade_of(old, NOW, keys["alice"], namespace=RELEASE),
        "another release than": downgrade_of(old, NOW, keys["alice"], floor=4),
        "refused: downgrade": signed(b"{}", [keys["alice"]], "kedge-downgrade"),
        "not valid JSON": signed(b'{"kedge": "downgrade"', [keys["alice"]], "kedge-downgrade"),
        "duplicate key": signed(b'{"kedge": "downgrade", "kedge": "downgrade"}', [keys["alice"]], "kedge-downgrade"),
    }
    for why, statement in statements.items():
        with pytest.raises(PushError, match=why) as caught:
            push(device, old, offer_of(old, keys["alice"], downgrade=statement))
        assert caught.value.kind in ("integrity", "bad_input")
    assert floor(device) == 3
    assert_invariant(device.state, device.agent, {releases[2].digest})


@pytest.mark.slow
def test_a_downgrade_that_failed_on_the_device_leaves_the_floor_and_may_be_tried_again(
    device: Device, tmp_path: Path, keys: dict[str, Key]
) -> None:
    good = obedient_release(tmp_path, version=2)
    bad = obedient_release(tmp_path, version=1, gates={"memory": {"peak_bytes": 1}})
    served(device, good, keys["alice"])
    statement = downgrade_of(bad, NOW, keys["alice"])
    push(device, bad, offer_of(bad, keys["alice"], downgrade=statement))
    for _ in range(2):
        ended = deploy(device, bad)
        assert (ended["state"], ended["error"]["kind"]) == ("refused", "gate"), ended
        assert floor(device) == 2
        push(device, bad, offer_of(bad, keys["alice"], downgrade=statement))
    assert_invariant(device.state, device.agent, {good.digest})


@pytest.mark.slow
def test_the_floor_holds_without_signatures_too(tmp_path: Path) -> None:
    device = Device(tmp_path / "state")
    configure(device.state, releases={"signatures": "off"})
    first, second, third = (obedient_release(tmp_path, version=n) for n in (1, 2, 3))
    try:
        device.start()
        for release in (second, third):
            must_deploy(device, release)
        with pytest.raises(PushError, match="version 3 on this device"):
            push(device, first, Offer())
        push(device, first, Offer(downgrade=downgrade_of(first, NOW)))
        assert deploy(device, first)["state"] == "done"
        assert_invariant(device.state, device.agent, {first.digest})
        assert floor(device) == 1
    finally:
        device.kill()


@pytest.mark.slow
def test_the_floor_rises_when_probation_is_passed_and_not_before(tmp_path: Path) -> None:
    device = Device(tmp_path / "state")
    configure(device.state, releases={"signatures": "off"})
    first = obedient_release(tmp_path, version=1)
    second = obedient_release(tmp_path, version=2, probation_s=3)
    try:
        device.start()
        must_deploy(device, first)
        device.push(second)
        assert device.activate(second)[0] == 200
        assert floor(device) == 1
        assert device.follow_deploy(second)["state"] == "done"
        assert floor(device) == 2
    finally:
        device.kill()

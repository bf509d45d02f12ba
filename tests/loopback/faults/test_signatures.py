"""Signatures that are missing, wrong, too few or too old: what the device takes, and what it goes on serving."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kedge.release.bundle import Release
from kedge_agent.formats.offer import AGENT, Offer, offer_bytes
from kedge_agent.wire import FAULTS, Message
from tests.support.agents import Device, assert_invariant
from tests.support.bad_models import obedient_release
from tests.support.clock import YEAR_S, WallClock
from tests.support.daemon import as_nobody
from tests.support.deploys import configure, deploy, must_deploy, push, settled
from tests.support.keys import AGENT as AGENT_NAMESPACE
from tests.support.keys import DOWNGRADE, ENGINE, RELEASE, Key, allow, make_key, offer_of, revoke, sign
from tests.support.receivers import PushError, message, receiver

NO_SUCH_USER = 234567


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Key]:
    folder = tmp_path_factory.mktemp("keys")
    return {name: make_key(folder, name) for name in ("alice", "bob", "mallory")}


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return obedient_release(tmp_path, version=1)


def require(device: Device, *signers: tuple[str, Key] | tuple[str, Key, str], **rules: Any) -> Path:
    """Have the device ask for signatures of these; its file of allowed signers."""
    path = device.state.parent / "allowed_signers"
    configure(device.state, releases={"signatures": "required", "allowed_signers": str(path), **rules})
    return allow(path, signers)


def refused(device: Device, release: Release, offer: Offer | None) -> PushError:
    """The device must refuse the release before anything of it travels, and have nothing of it."""
    with receiver(device.state, **device.environment) as process:
        with pytest.raises(PushError) as caught:
            process.want(release, offer)
        assert process.ends()[0] == FAULTS[str(caught.value.kind)].exit_code
    assert not (device.state / "releases" / release.digest).exists()
    return caught.value


# --- what is taken ---------------------------------------------------------------------------------------------------


def test_a_signed_release_is_taken_deployed_and_known_as_signed(
    device: Device, release: Release, keys: dict[str, Key]
) -> None:
    require(device, ("digits", keys["alice"]))
    push(device, release, offer_of(release, keys["alice"]))
    device.start()
    assert deploy(device, release)["state"] == "done"
    row = assert_invariant(device.state, device.agent, {release.digest})
    assert row is not None
    assert row["signed"] is True
    info = device.request("GET", "/kedge/v1/info")[1]["signatures"]
    assert (info["required"], info["problem"]) == (True, None)


def test_signatures_of_two_keys_meet_a_threshold_of_two(device: Device, release: Release, keys: dict[str, Key]) -> None:
    require(device, ("*", keys["alice"]), ("digits,other", keys["bob"]), threshold=2)
    push(device, release, offer_of(release, keys["alice"], keys["bob"]))
    device.start()
    assert deploy(device, release)["state"] == "done"
    assert_invariant(device.state, device.agent, {release.digest})


def test_a_good_signature_among_bad_ones_counts(device: Device, release: Release, keys: dict[str, Key]) -> None:
    require(device, ("digits", keys["alice"]))
    mixed = sign(keys["mallory"], release.manifest_bytes) + sign(keys["alice"], release.manifest_bytes)
    push(device, release, Offer(signatures=mixed))
    assert (device.state / "releases" / release.digest).is_dir()


# --- what is not -----------------------------------------------------------------------------------------------------


def one_key_twice(release: Release, keys: dict[str, Key]) -> bytes:
    return sign(keys["alice"], release.manifest_bytes) * 2


def by(*names: str, namespace: str = RELEASE, document: bytes = b"") -> Callable[[Release, dict[str, Key]], bytes]:
    def make(release: Release, keys: dict[str, Key]) -> bytes:
        return b"".join(sign(keys[name], document or release.manifest_bytes, namespace) for name in names)

    return make


def cut(release: Release, keys: dict[str, Key]) -> bytes:
    return sign(keys["alice"], release.manifest_bytes)[:-60]


def one_bit_off(release: Release, keys: dict[str, Key]) -> bytes:
    lines = sign(keys["alice"], release.manifest_bytes).splitlines(keepends=True)
    line = lines[-2]
    lines[-2] = (b"A" if line[5:6] != b"A" else b"B").join([line[:5], line[6:]])
    return b"".join(lines)


@pytest.mark.parametrize(
    ("signers", "rules", "signatures", "why"),
    [
        ([("digits", "alice")], {}, lambda *_: b"", "no signature came"),
        ([("digits", "alice")], {}, by("mallory"), "is not one of"),
        ([("digits", "alice")], {}, by("alice", document=b'{"kedge": 1}'), "not of these bytes"),
        ([("digits", "alice")], {}, by("alice", namespace=ENGINE), "for kedge-engine, not for kedge-release"),
        ([("digits", "alice")], {}, by("alice", namespace=DOWNGRADE), "for kedge-downgrade, not for kedge-release"),
        ([("digits", "alice")], {}, by("alice", namespace=AGENT_NAMESPACE), "for kedge-agent, not"),
        ([("digits", "alice")], {}, by("alice", namespace="file"), "for file, not for kedge-release"),
        ([("digits", "alice", f'namespaces="{ENGINE}"')], {}, by("alice"), "may not sign for kedge-release"),
        ([("speech,other-*", "alice")], {}, by("alice"), "may sign .*, not digits"),
        ([("!digits,*", "alice")], {}, by("alice"), "not digits|is not one of"),
        ([("digits", "alice", 'valid-before="20200101"')], {}, by("alice"), "has expired"),
        ([("digits", "alice", 'valid-after="21000101"')], {}, by("alice"), "is not valid yet"),
        ([("digits", "alice", "cert-authority")], {}, by("alice"), "is not one of|may not"),
        ([("digits", "alice")], {"threshold": 2}, by("alice"), "1 of the 2 distinct keys"),
        ([("digits", "alice"), ("dig*", "alice")], {"threshold": 2}, one_key_twice, "1 of the 2 distinct keys"),
        ([("digits", "alice"), ("digits", "bob")], {"threshold": 2}, by("alice", "mallory"), "1 of 2 good"),
        ([("digits", "alice"), ("speech", "bob")], {"thresholds": {"digits": 2}}, by("alice", "bob"), "1 of 2 good"),
        ([("digits", "alice")], {}, lambda *_: b"trust me", "no armoured SSH signature"),
        ([("digits", "alice")], {}, cut, "no armoured SSH signature|truncated|base64"),
        ([("digits", "alice")], {}, one_bit_off, "not of these bytes|not one of|not as long|truncated"),
        ([("digits", "alice")], {}, lambda release, keys: by("mallory")(release, keys) * 17, "more than 16"),
        ([], {}, by("alice"), "is not one of"),
    ],
)
def test_a_release_without_the_signatures_that_the_device_asks_for_is_refused_before_it_travels(
    device: Device,
    release: Release,
    keys: dict[str, Key],
    signers: list[tuple[str, ...]],
    rules: dict[str, Any],
    signatures: Callable[[Release, dict[str, Key]], bytes],
    why: str,
) -> None:
    require(device, *[(principals, keys[name], *options) for principals, name, *options in signers], **rules)
    error = refused(device, release, Offer(signatures=signatures(release, keys)))
    assert error.kind == "integrity"
    assert error.hint
    with pytest.raises(PushError, match=why):
        raise error


@pytest.mark.slow
def test_a_key_that_was_revoked_signs_nothing_more_and_what_it_signed_before_is_served_on(
    device: Device, release: Release, keys: dict[str, Key], tmp_path: Path
) -> None:
    revoked = tmp_path / "revoked"
    require(device, ("digits", keys["alice"]), revoked_keys=str(revoked))
    push(device, release, offer_of(release, keys["alice"]))
    device.start()
    assert deploy(device, release)["state"] == "done"
    waiting = obedient_release(tmp_path, version=3)
    push(device, waiting, offer_of(waiting, keys["alice"]))
    revoke(revoked, keys["alice"])
    second = obedient_release(tmp_path, version=2)
    error = refused(device, second, offer_of(second, keys["alice"]))
    assert (error.kind, "is revoked" in str(error)) == ("integrity", True)
    # What was accepted by it before and waits is not put live any more.
    ended = deploy(device, waiting)
    assert (ended["state"], ended["error"]["kind"]) == ("refused", "integrity")
    assert "is revoked" in ended["error"]["error"]
    device.restart()
    assert_invariant(device.state, device.agent, {release.digest})
    # A list of revoked keys that cannot be read revokes everything rather than nothing.
    revoked.write_bytes(b"\xff not a list of anything")
    assert refused(device, second, offer_of(second, keys["alice"])).kind == "integrity"


def test_what_was_accepted_unsigned_is_neither_put_live_nor_compiled_once_signatures_are_required(
    device: Device, release: Release, keys: dict[str, Key]
) -> None:
    push(device, release)
    require(device, ("digits", keys["alice"]))
    device.start()
    assert deploy(device, release)["error"]["kind"] == "integrity"
    status, answer = device.request("POST", "/kedge/v1/build", {"release": release.digest})
    assert (status, answer["kind"]) == (422, "integrity"), answer
    assert "accepted without signatures" in answer["error"]
    # To one that asks for none it says what is the matter with this release.
    configure(device.state, releases={"signatures": "off"})
    device.restart()
    assert "nothing to compile" in device.request("POST", "/kedge/v1/build", {"release": release.digest})[1]["error"]


def test_a_host_that_offers_nothing_is_refused_where_signatures_are_required(
    device: Device, release: Release, keys: dict[str, Key]
) -> None:
    require(device, ("digits", keys["alice"]))
    assert refused(device, release, None).kind == "integrity"


def test_a_release_that_is_offered_as_an_agent_is_refused(
    device: Device, release: Release, keys: dict[str, Key]
) -> None:
    require(device, ("*", keys["alice"]))
    signatures = sign(keys["alice"], release.manifest_bytes, AGENT_NAMESPACE)
    assert refused(device, release, Offer(kind=AGENT, signatures=signatures)).kind in ("bad_input", "integrity")


# --- the file of allowed signers -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", ["missing", "a folder", "a link to nowhere"])
def test_signers_that_cannot_be_read_allow_nobody_and_the_live_release_is_served_on(
    device: Device, release: Release, keys: dict[str, Key], tmp_path: Path, how: str
) -> None:
    signers = require(device, ("digits", keys["alice"]))
    push(device, release, offer_of(release, keys["alice"]))
    device.start()
    assert deploy(device, release)["state"] == "done"
    signers.unlink()
    if how == "a folder":
        signers.mkdir()
    elif how == "a link to nowhere":
        signers.symlink_to("/nowhere/at/all")
    second = obedient_release(tmp_path, version=2)
    error = refused(device, second, offer_of(second, keys["alice"]))
    assert error.kind == "incompatible"
    assert str(signers) in str(error)
    device.restart()
    row = assert_invariant(device.state, device.agent, {release.digest})
    assert row is not None
    assert row["signed"] is True
    assert "cannot be read" in device.request("GET", "/kedge/v1/info")[1]["signatures"]["problem"]


def test_signers_full_of_rubbish_allow_nobody(device: Device, release: Release, keys: dict[str, Key]) -> None:
    signers = require(device, ("digits", keys["alice"]))
    signers.write_bytes(os.urandom(4096))
    assert refused(device, release, offer_of(release, keys["alice"])).kind == "integrity"


def test_a_user_without_an_entry_in_passwd_is_told_so_before_anything_travels(
    device: Device, release: Release, keys: dict[str, Key]
) -> None:
    become = [word.replace("65534", str(NO_SUCH_USER)) for word in as_nobody()]
    signers = require(device, ("digits", keys["alice"]))
    for path in (device.state.parent, device.state):
        path.chmod(0o755)
    for path in (device.state, device.state / "agent.json"):
        os.chown(path, NO_SUCH_USER, NO_SUCH_USER)
    offer = offer_of(release, keys["alice"])
    done = subprocess.run(
        [*become, sys.executable, "-m", "kedge_agent", "--state", str(device.state), "receive"],
        input=message(Message.OFFER, offer_bytes(offer)) + message(Message.MANIFEST, release.manifest_bytes),
        capture_output=True,
        check=False,
        cwd="/",
        timeout=60,
    )
    assert done.returncode == FAULTS["incompatible"].exit_code, done.stderr
    said = json.loads(done.stdout[done.stdout.index(b"{", done.stdout.index(b"\n")) :])
    assert said["kind"] == "incompatible"
    assert f"user {NO_SUCH_USER}, who has no entry in /etc/passwd" in said["error"]
    assert "entry" in said["error"] + said["hint"]
    assert signers.exists()
    assert not (device.state / "releases" / release.digest).exists()


# --- after acceptance ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_signer_who_expires_after_acceptance_keeps_nothing_from_loading_or_going_back(
    tmp_path: Path, keys: dict[str, Key]
) -> None:
    clock = WallClock(tmp_path / "clock")
    device = Device(tmp_path / "state", **clock.environment)
    until = time.strftime("%Y%m%d", time.gmtime(time.time() + YEAR_S))
    require(device, ("digits", keys["alice"], f'valid-before="{until}"'))
    first, second, third, fourth = (obedient_release(tmp_path, version=n) for n in (1, 2, 3, 4))
    try:
        device.start()
        for release in (first, second):
            push(device, release, offer_of(release, keys["alice"]))
            assert deploy(device, release)["state"] == "done"
        push(device, third, offer_of(third, keys["alice"]))
        clock.move(10 * YEAR_S)
        device.restart()
        assert_invariant(device.state, device.agent, {second.digest})
        assert device.rollback()[0] == 200
        assert_invariant(device.state, device.agent, {first.digest})
        assert device.rollback()[0] == 200
        # It was accepted while the key was good: that was recorded, and counts.
        assert deploy(device, third)["state"] == "done"
        device.restart()
        assert_invariant(device.state, device.agent, {third.digest})
        error = refused(device, fourth, offer_of(fourth, keys["alice"]))
        assert (error.kind, "has expired" in str(error)) == ("integrity", True)
        assert "the clock says 2036" in error.hint
    finally:
        device.kill()


@pytest.mark.slow
def test_without_the_mode_nothing_is_asked_for_and_nothing_is_called_signed(
    device: Device, release: Release, keys: dict[str, Key], tmp_path: Path
) -> None:
    configure(device.state, releases={"signatures": "off"})
    device.start()
    must_deploy(device, release)
    assert (device.row() or {})["signed"] is False
    # A bad signature is no better than none, and no worse.
    second = obedient_release(tmp_path, version=2)
    push(device, second, Offer(signatures=sign(keys["mallory"], b"something else")))
    assert deploy(device, second)["state"] == "done"
    assert (device.row() or {})["signed"] is False
    info = device.request("GET", "/kedge/v1/info")[1]["signatures"]
    assert info["required"] is False


@pytest.mark.slow
def test_what_was_accepted_unsigned_is_not_deployed_once_signatures_are_required_and_is_served_on_where_it_is_live(
    device: Device, release: Release, keys: dict[str, Key], tmp_path: Path
) -> None:
    configure(device.state, releases={"signatures": "off"})
    second = obedient_release(tmp_path, version=2)
    device.start()
    must_deploy(device, release)
    device.push(second)
    require(device, ("digits", keys["alice"]))
    device.restart()
    assert_invariant(device.state, device.agent, {release.digest})
    ended = deploy(device, second)
    assert (ended["state"], ended["error"]["kind"]) == ("refused", "integrity"), ended
    assert_invariant(device.state, device.agent, {release.digest})
    # Pushed again with its signature, it is the same release and may.
    push(device, second, offer_of(second, keys["alice"]))
    assert deploy(device, second)["state"] == "done"
    row = assert_invariant(device.state, device.agent, {second.digest})
    assert row is not None
    assert row["signed"] is True


@pytest.mark.slow
def test_a_record_of_acceptance_that_was_forged_by_hand_does_not_make_a_release_signed(
    device: Device, release: Release, keys: dict[str, Key], tmp_path: Path
) -> None:
    configure(device.state, releases={"signatures": "off"})
    second = obedient_release(tmp_path, version=2)
    device.start()
    must_deploy(device, release)
    device.push(second)
    accepted = device.state / "releases" / second.digest / "accepted.json"
    accepted.write_bytes(accepted.read_bytes().replace(b'"signed": false', b'"signed": true '))
    require(device, ("digits", keys["alice"]))
    device.restart()
    ended = deploy(device, second)
    assert (ended["state"], ended["error"]["kind"]) == ("refused", "integrity"), ended
    assert_invariant(device.state, device.agent, {release.digest})


def test_where_the_settings_say_nothing_signatures_are_required_from_the_moment_signers_are_there(
    device: Device, release: Release, keys: dict[str, Key], tmp_path: Path
) -> None:
    signers = tmp_path / "allowed_signers"
    configure(device.state, releases={"allowed_signers": str(signers)})
    push(device, release)
    second = obedient_release(tmp_path, version=2)
    allow(signers, [("digits", keys["alice"])])
    assert refused(device, second, Offer()).kind == "integrity"
    # One that cannot even be looked for is not one that is not there.
    signers.unlink()
    signers.symlink_to(signers)
    assert refused(device, second, offer_of(second, keys["alice"])).kind == "incompatible"
    signers.unlink()
    allow(signers, [("digits", keys["alice"])])
    push(device, second, offer_of(second, keys["alice"]))


def test_settings_that_ask_for_signatures_are_obeyed_by_the_next_push_without_a_restart(
    device: Device, release: Release, keys: dict[str, Key]
) -> None:
    device.start()
    require(device, ("digits", keys["alice"]))
    assert refused(device, release, Offer()).kind == "integrity"
    assert settled(device) is None

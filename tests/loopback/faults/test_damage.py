"""Bytes that change on the disk are found before they are served, told by name, and mended by just the bad frames."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from kedge_agent.formats.offer import Offer
from kedge_agent.store import receive as receive_module
from kedge_agent.store.layout import Layout
from kedge_agent.wire import FRAME_BYTES
from tests.support.agents import Device, assert_invariant, damaged_files
from tests.support.receivers import PushError, frame_message, push, receiver
from tests.support.weights import weighty_release
from tests.unit.test_store import deliver

pytestmark = pytest.mark.slow


def flip(path: Path, offset: int, bit: int = 3) -> None:
    """Turn over one bit, in the file itself: whatever is linked to it has it too."""
    mode = stat.S_IMODE(path.stat().st_mode)
    path.chmod(0o644)
    with path.open("r+b") as handle:
        handle.seek(offset)
        value = handle.read(1)[0]
        handle.seek(offset)
        handle.write(bytes([value ^ 1 << bit]))
    path.chmod(mode)


def file_number(release, name: str) -> int:
    return [entry.name for entry in release.manifest.files].index(name)


@pytest.mark.parametrize("frame", [0, 2])
def test_a_bit_that_flips_in_a_staged_frame_between_two_pushes_has_that_frame_sent_again(
    device: Device, tmp_path: Path, frame: int
) -> None:
    release = weighty_release(tmp_path, version=1)
    bulk = file_number(release, "bulk.bin")
    with receiver(device.state) as process:
        for each in process.want(release, Offer()):
            process.send(frame_message(release, *each))
        while not {(bulk, n) for n in range(3)} <= process.acknowledged:
            assert process.heard() is not None
    # The host went away before it said that all was sent.
    staged = next(device.state.glob(f"incoming/*/{release.manifest.file('bulk.bin').sha256}"))
    flip(staged, frame * FRAME_BYTES + 77)
    assert (bulk, frame) in push(device.state, release, offer=Offer())
    assert not damaged_files(device.state, release.digest)
    device.start()
    assert device.activate(release)[0] == 200
    assert device.agent is not None
    assert_invariant(device.state, device.agent, {release.digest})


@pytest.mark.parametrize("frame", [1, 2])
def test_a_bit_that_flips_in_a_frame_that_was_not_read_yet_is_refused_at_the_acceptance_and_mended_by_that_frame(
    device: Device, tmp_path: Path, frame: int
) -> None:
    first, second = (weighty_release(tmp_path, version=n, seed=n) for n in (1, 2))
    device.start()
    device.serve(first)
    bulk = file_number(second, "bulk.bin")
    with receiver(device.state) as process:
        wanted = process.want(second, Offer())
        # The agent reads behind what arrives, in order: nothing of the file before its first frame is there.
        before = [each for each in wanted if each != (bulk, 0)]
        for each in before:
            process.send(frame_message(second, *each))
        while process.acknowledged != set(before):
            assert process.heard() is not None
        staged = device.state / "incoming" / second.digest / second.manifest.file("bulk.bin").sha256
        flip(staged, frame * FRAME_BYTES + 77)
        process.send(frame_message(second, bulk, 0))
        with pytest.raises(PushError, match=r"bulk.bin: 1 frames have other bytes on the device's disk") as caught:
            process.commit()
    assert caught.value.kind == "integrity"
    assert not (device.state / "releases" / second.digest).exists()
    assert push(device.state, second, offer=Offer()) == [(bulk, frame)]
    assert device.activate(second)[0] == 200
    assert device.agent is not None
    assert_invariant(device.state, device.agent, {second.digest})


def test_a_bit_that_flips_after_it_was_read_and_before_the_acceptance_is_refused_before_it_is_served(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (weighty_release(tmp_path, version=n, seed=n) for n in (1, 2))
    device.start()
    device.serve(first)
    staged = device.state / "incoming" / second.digest / second.manifest.file("bulk.bin").sha256
    with monkeypatch.context() as patched:
        patched.setattr(
            receive_module,
            "reached",
            lambda name: flip(staged, FRAME_BYTES + 77) if name == "receive.committed" else None,
        )
        deliver(Layout(device.state), second)
    status, said = device.activate(second)
    assert (status, said["kind"]) == (422, "integrity")
    assert "bulk.bin" in said["error"]
    assert device.agent is not None
    assert_invariant(device.state, device.agent, {first.digest})
    assert push(device.state, second, offer=Offer()) == [(file_number(second, "bulk.bin"), 1)]
    assert device.activate(second)[0] == 200
    assert_invariant(device.state, device.restart(), {second.digest})


@pytest.mark.parametrize("name", ["model.onnx", "bulk.bin"])
def test_a_bit_that_flips_between_push_and_activation_is_refused_by_name_and_mended_by_one_frame(
    device: Device, tmp_path: Path, name: str
) -> None:
    first, second = (weighty_release(tmp_path, version=n, seed=n) for n in (1, 2))
    device.start()
    device.serve(first)
    device.push(second)
    flip(device.state / "releases" / second.digest / name, 9)
    status, said = device.activate(second)
    assert (status, said["kind"]) == (422, "integrity")
    assert name in said["error"]
    assert device.agent is not None
    assert_invariant(device.state, device.agent, {first.digest})
    assert push(device.state, second, offer=Offer()) == [(file_number(second, name), 0)]
    assert device.activate(second)[0] == 200
    assert_invariant(device.state, device.restart(), {second.digest})


def test_bit_rot_in_the_live_release_is_found_at_the_start_and_the_previous_one_serves(
    device: Device, tmp_path: Path
) -> None:
    first, second = (weighty_release(tmp_path, version=n, seed=n) for n in (1, 2))
    device.start()
    device.serve(first)
    device.serve(second)
    device.kill()
    flip(device.state / "releases" / second.digest / "bulk.bin", FRAME_BYTES + 5)
    row = assert_invariant(device.state, device.restart(), {first.digest})
    assert row is not None
    assert "bulk.bin" in row["problem"]
    # A redeploy sends the one frame that is bad, and the release serves again.
    assert push(device.state, second, offer=Offer()) == [(file_number(second, "bulk.bin"), 1)]
    assert device.activate(second)[0] == 200
    row = assert_invariant(device.state, device.restart(), {second.digest})
    assert row is not None
    assert row["problem"] is None


def test_bit_rot_in_an_object_that_live_and_previous_share_is_told_of_both_and_mended_by_its_frame(
    device: Device, tmp_path: Path
) -> None:
    shared = os.urandom(2 * FRAME_BYTES + 99)
    first, second = (weighty_release(tmp_path, version=n, seed=n, bulk=shared) for n in (1, 2))
    device.start()
    device.serve(first)
    device.serve(second)
    # The same file: the second push had nothing of it to send.
    paths = [device.state / "releases" / release.digest / "bulk.bin" for release in (first, second)]
    assert paths[0].stat().st_ino == paths[1].stat().st_ino
    device.kill()
    flip(paths[0], 2 * FRAME_BYTES + 98)
    row = assert_invariant(device.state, device.restart(), set(), safe=True)
    assert row is not None
    assert "bulk.bin" in row["problem"]
    assert device.request("POST", "/v2/models/digits/infer", {"inputs": []}, door="infer")[0] == 422
    # Frame 2 alone is bad; the file is mended in both releases at once.
    assert push(device.state, second, offer=Offer()) == [(file_number(second, "bulk.bin"), 2)]
    assert not damaged_files(device.state, first.digest) + damaged_files(device.state, second.digest)
    assert device.activate(second)[0] == 200
    assert device.agent is not None
    assert_invariant(device.state, device.agent, {second.digest})
    assert_invariant(device.state, device.restart(), {second.digest})
    assert device.rollback()[0] == 200
    assert device.agent is not None
    assert_invariant(device.state, device.agent, {first.digest})


def test_a_file_of_the_live_release_that_is_gone_cut_or_a_folder_is_found_and_put_back(
    device: Device, tmp_path: Path
) -> None:
    first, second = (weighty_release(tmp_path, version=n, seed=n) for n in (1, 2))
    device.start()
    device.serve(first)
    device.serve(second)
    path = device.state / "releases" / second.digest / "small-03.bin"
    for spoil in (path.unlink, lambda: os.truncate(path, 3), lambda: (path.unlink(), path.mkdir())):
        device.stop()
        spoil()
        row = assert_invariant(device.state, device.restart(), {first.digest})
        assert row is not None
        assert "small-03.bin" in row["problem"]
        sent = push(device.state, second, offer=Offer())
        assert set(sent) <= {(file_number(second, "small-03.bin"), 0)}
        assert device.activate(second)[0] == 200
        assert_invariant(device.state, device.restart(orderly=True), {second.digest})

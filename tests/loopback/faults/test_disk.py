"""A disk that is full or cannot write: nothing is reported as done that is not, and what serves goes on serving."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kedge_agent.formats.offer import Offer
from kedge_agent.wire import Message
from tests.conftest import make_release
from tests.support.agents import Device, assert_invariant, damaged_files
from tests.support.powercut import Disk, mounted
from tests.support.receivers import PushError, frame_message, push, receiver
from tests.support.stores import small_disk
from tests.support.weights import weighty_release

pytestmark = pytest.mark.slow

MIB = 1024 * 1024


class SmallDisk:
    """A disk that can be filled to its last byte: `folder` is on it, and nothing else but what fills it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    @property
    def free_bytes(self) -> int:
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def fill(self, leave_bytes: int = 0) -> None:
        # Whoever writes here beside us may give a page back meanwhile.
        for _ in range(20):
            take = self.free_bytes - leave_bytes
            if take <= 0:
                return
            with self._ballast.open("ab") as out:
                os.posix_fallocate(out.fileno(), out.tell(), take)
        raise AssertionError(f"{self.free_bytes} bytes are free again each time")

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "small", 96 * MIB) as folder:
        yield SmallDisk(folder)


@pytest.fixture
def cramped(small: SmallDisk) -> Iterator[Device]:
    """A device whose state lies on the small disk."""
    made = Device(small.folder / "state")
    yield made
    made.kill()


def test_a_release_that_does_not_fit_is_refused_before_a_byte_travels_and_fits_when_there_is_room(
    small: SmallDisk, cramped: Device, tmp_path: Path
) -> None:
    first, second = (weighty_release(tmp_path, version=n, seed=n) for n in (1, 2))
    cramped.start()
    cramped.serve(first)
    small.fill(leave_bytes=20 * MIB)
    with receiver(cramped.state) as process, pytest.raises(PushError) as refused:
        process.want(second, Offer())
    assert refused.value.kind == "space"
    assert cramped.agent is not None
    assert_invariant(cramped.state, cramped.agent, {first.digest})
    small.free()
    cramped.serve(second)
    assert_invariant(cramped.state, cramped.restart(), {second.digest})


def test_a_disk_that_fills_up_during_an_upload_takes_every_frame_it_has_reserved_and_finishes_when_there_is_room(
    small: SmallDisk, cramped: Device, tmp_path: Path
) -> None:
    first, second = (weighty_release(tmp_path, version=n, seed=n) for n in (1, 2))
    cramped.start()
    cramped.serve(first)
    acknowledged = set()
    with receiver(cramped.state) as process, contextlib.suppress(PushError, BrokenPipeError):
        wanted = process.want(second, Offer())
        # The first acknowledgement tells that the device has reserved what it will write.
        process.send(frame_message(second, *wanted[0]))
        while not process.acknowledged:
            assert process.heard() is not None
        small.fill()
        for frame in wanted[1:]:
            process.send(frame_message(second, *frame))
        try:
            process.commit()
        except PushError as error:
            assert error.kind == "space"  # noqa: PT017  (it may also have gone well: all of its room was reserved)
        acknowledged = process.acknowledged
    assert acknowledged == set(wanted)
    assert cramped.agent is not None
    assert_invariant(cramped.state, cramped.agent, {first.digest})
    small.free()
    assert push(cramped.state, second, offer=Offer()) == []
    assert cramped.activate(second)[0] == 200
    assert_invariant(cramped.state, cramped.agent, {second.digest})


@pytest.mark.parametrize("error", ["enospc", "eio"])
@pytest.mark.parametrize(
    "place", ["receive.reserved", "receive.written", "accept.judged", "accept.objects", "accept.folder"]
)
def test_an_error_of_the_disk_at_any_step_of_a_push_is_told_and_the_next_push_goes_on(
    device: Device, tmp_path: Path, place: str, error: str
) -> None:
    first, second = (weighty_release(tmp_path, version=n, seed=n, small_files=2) for n in (1, 2))
    device.start()
    device.serve(first)
    with pytest.raises(PushError) as refused:
        push(device.state, second, offer=Offer(), KEDGE_FAILPOINTS=f"{place}={error}")
    assert refused.value.kind == ("space" if error == "enospc" else "internal")
    assert device.agent is not None
    assert_invariant(device.state, device.agent, {first.digest})
    push(device.state, second, offer=Offer())
    assert not damaged_files(device.state, second.digest)
    assert device.activate(second)[0] == 200
    assert_invariant(device.state, device.restart(), {second.digest})


def test_a_full_disk_keeps_nobody_from_rolling_back_or_from_starting(
    small: SmallDisk, cramped: Device, tmp_path: Path
) -> None:
    first, second = (make_release(tmp_path, version=n, seed=n) for n in (1, 2))
    cramped.start()
    cramped.serve(first)
    cramped.serve(second)
    small.fill()
    status, said = cramped.rollback()
    assert status == 200, said
    assert cramped.agent is not None
    assert_invariant(cramped.state, cramped.agent, {first.digest})
    assert_invariant(cramped.state, cramped.restart(), {first.digest})
    # And forward again, on a disk that is still full.
    status, said = cramped.rollback()
    assert status == 200, said
    assert_invariant(cramped.state, cramped.restart(), {second.digest})


def test_a_deploy_on_a_full_disk_is_refused_for_want_of_space_or_goes_live_and_the_live_release_never_stops(
    small: SmallDisk, cramped: Device, tmp_path: Path
) -> None:
    first, second = (make_release(tmp_path, version=n, seed=n) for n in (1, 2))
    cramped.start()
    cramped.serve(first)
    cramped.push(second)
    small.fill()
    status, said = cramped.activate(second)
    assert (status, said.get("kind")) in {(200, None), (507, "space")}, said
    assert cramped.agent is not None
    live = second if status == 200 else first
    assert_invariant(cramped.state, cramped.agent, {live.digest})
    assert_invariant(cramped.state, cramped.restart(), {live.digest})
    small.free()
    status, said = cramped.activate(second)
    assert status == 200, said
    assert_invariant(cramped.state, cramped.restart(), {second.digest})


@pytest.mark.parametrize("error", ["enospc", "eio"])
@pytest.mark.parametrize("place", ["journal.append", "journal.written"])
@pytest.mark.parametrize("turn", [1, 2, 3])
def test_a_journal_that_cannot_be_written_ends_the_deploy_and_not_what_serves(
    device: Device, tmp_path: Path, place: str, turn: int, error: str
) -> None:
    first, second = (make_release(tmp_path, version=n, seed=n) for n in (1, 2))
    device.start()
    device.serve(first)
    device.push(second)
    agent = device.restart(failpoints=f"{place}@{turn}={error}")
    status, said = device.begin_deploy(second)
    ended = device.follow_deploy(second) if status == 200 else {"state": "refused", "error": said}
    assert ended["state"] in ("done", "refused", "reverted"), ended
    if ended["state"] != "done":
        assert ended["error"]["kind"] == ("space" if error == "enospc" else "internal")
    live = second if ended["state"] == "done" else first
    assert_invariant(device.state, agent, {live.digest})
    assert_invariant(device.state, device.restart(), {live.digest})
    assert device.begin_deploy(second)[0] == 200
    assert device.follow_deploy(second)["state"] == "done"
    assert_invariant(device.state, device.restart(), {second.digest})


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path) as made:
        yield made


@pytest.fixture
def on_faulty(faulty: Disk) -> Iterator[Device]:
    """A device whose state lies on a disk that fails when it is told to."""
    made = Device(faulty.folder / "state")
    yield made
    made.kill()


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_frame_that_could_not_be_synced_is_never_acknowledged(
    faulty: Disk, on_faulty: Device, tmp_path: Path, nth: int
) -> None:
    release = weighty_release(tmp_path, version=1, small_files=1)
    bulk = next(file for file, (entry, _) in enumerate(release.files()) if entry.name == "bulk.bin")
    sha256 = release.manifest.file("bulk.bin").sha256
    faulty.fail_sync(f"/state/incoming/*/{sha256}", nth)
    with receiver(on_faulty.state) as process:
        wanted = process.want(release, Offer())
        for frame in wanted:
            process.send(frame_message(release, *frame))
            # One at a time, so that each has a sync of its own.
            said = process.heard()
            assert said is not None
            if said[0] is Message.ERROR:
                break
        acknowledged = {frame for frame in process.acknowledged if frame[0] == bulk}
        code, errors = process.ends()
    assert code == 1, errors
    assert len(acknowledged) == nth - 1
    # The disk forgot what it could not write; what it wrote before, it may have written in full.
    faulty.cut()
    again = push(on_faulty.state, release, offer=Offer())
    assert {(bulk, frame) for frame in range(3)} - acknowledged <= set(again)
    assert not damaged_files(on_faulty.state, release.digest)
    faulty.cut()
    assert not damaged_files(on_faulty.state, release.digest)


@pytest.mark.parametrize(
    "pattern",
    [
        "/state/incoming/*",
        "/state/objects/sha256",
        "/state/objects/sha256/??",
        "/state/releases",
        "/state/releases/*.partial*",
        "/state/releases/*manifest.json*",
    ],
)
@pytest.mark.parametrize("nth", [1, 2])
def test_a_push_during_which_the_disk_fails_is_not_done_and_the_next_one_is_whole(
    faulty: Disk, on_faulty: Device, tmp_path: Path, pattern: str, nth: int
) -> None:
    first, second = (weighty_release(tmp_path, version=n, seed=n, small_files=2) for n in (1, 2))
    on_faulty.start()
    on_faulty.serve(first)
    faulty.fail_sync(pattern, nth)
    try:
        push(on_faulty.state, second, offer=Offer())
    except PushError as error:
        assert error.kind == "internal"  # noqa: PT017  (not every push syncs this path twice)
    else:
        assert nth == 2
    assert on_faulty.agent is not None
    assert_invariant(on_faulty.state, on_faulty.agent, {first.digest})
    with contextlib.suppress(PushError):
        # Where the first push synced this path once, it is this one that fails.
        push(on_faulty.state, second, offer=Offer())
    push(on_faulty.state, second, offer=Offer())
    faulty.cut(on_faulty.agent.process)
    assert not damaged_files(on_faulty.state, second.digest)
    on_faulty.restart()
    assert on_faulty.activate(second)[0] == 200
    assert on_faulty.agent is not None
    assert_invariant(on_faulty.state, on_faulty.agent, {second.digest})


@pytest.mark.parametrize("pattern", ["/state/models/digits/.state*", "/state/models/digits", "/state/journal"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_switch_that_could_not_be_synced_is_not_reported_and_one_release_serves(
    faulty: Disk, on_faulty: Device, tmp_path: Path, pattern: str, nth: int
) -> None:
    first, second = (make_release(tmp_path, version=n, seed=n) for n in (1, 2))
    on_faulty.start()
    on_faulty.serve(first)
    on_faulty.push(second)
    faulty.fail_sync(pattern, nth)
    status, said = on_faulty.activate(second)
    assert on_faulty.agent is not None
    row = assert_invariant(on_faulty.state, on_faulty.agent, {first.digest, second.digest})
    assert row is not None
    # What it reports as switched is in force after the power went; what it reports as failed did not go live.
    assert row["release"] == (second if status == 200 else first).digest, said
    faulty.cut(on_faulty.agent.process)
    assert_invariant(on_faulty.state, on_faulty.restart(), {row["release"]})
    status, said = on_faulty.activate(second)
    assert status == 200, said
    faulty.cut(on_faulty.agent.process)
    assert_invariant(on_faulty.state, on_faulty.restart(), {second.digest})

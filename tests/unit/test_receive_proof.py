"""What a push reads of its files while their frames arrive, and what that spares its acceptance."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kedge.release.bundle import Release
from kedge_agent.errors import AgentError
from kedge_agent.formats.manifest import FileEntry
from kedge_agent.formats.offer import AGENT, Offer, offer_bytes
from kedge_agent.store import objects
from kedge_agent.store import receive as receive_module
from kedge_agent.store.layout import Layout
from kedge_agent.store.objects import store_files
from kedge_agent.store.proof import RunningProof
from kedge_agent.store.releases import DamagedError, read_release, verify_release
from kedge_agent.store.slots import has_slot
from kedge_agent.wire import ENCODING_RAW, FRAME_BYTES, FRAME_HEADER, Message
from tests.support.upgrades import bundle_of
from tests.unit.test_receive import COMMIT, OFFER, manifest, place, want_of, with_weights
from tests.unit.test_store import frames_of, message, push, whole

FRAMES = 3
SIZE = 2 * FRAME_BYTES + 1001


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state")


@pytest.fixture(scope="module")
def weighty(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return with_weights(tmp_path_factory.mktemp("weighty"), 1, os.urandom(SIZE))


@pytest.fixture
def entry(weighty: Release) -> FileEntry:
    return weighty.manifest.file("weights.bin")


@pytest.fixture
def gathered(weighty: Release, tmp_path: Path) -> Iterator[int]:
    """The weights, in a file that is open as one that gathers frames."""
    path = tmp_path / "gathered"
    path.write_bytes(weighty.files()[place(weighty)[0]][1].read_bytes())
    handle = os.open(path, os.O_RDWR)
    yield handle
    os.close(handle)


def flip(path: Path | int, offset: int) -> None:
    """Change a bit, without the chmod that a file of the store needs."""
    handle = path if isinstance(path, int) else os.open(path, os.O_RDWR)
    os.pwrite(handle, bytes([os.pread(handle, 1, offset)[0] ^ 1]), offset)
    if handle != path:
        os.close(handle)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1,), ()])
def test_a_file_is_whole_in_whatever_order_its_frames_land_and_whichever_were_there(
    entry: FileEntry, gathered: int, order: tuple[int, ...]
) -> None:
    proof = RunningProof([entry], {0: gathered}, [(0, frame) for frame in order])
    for frame in order:
        proof.landed(0, frame)
    assert proof.finish() == {entry.sha256}


def test_frames_of_which_nobody_told_are_read_at_the_end(entry: FileEntry, gathered: int) -> None:
    proof = RunningProof([entry], {0: gathered}, [(0, frame) for frame in range(FRAMES)])
    proof.landed(0, 0)
    assert proof.finish() == {entry.sha256}


@pytest.mark.parametrize("frame", range(FRAMES))
def test_a_bit_that_flips_in_a_frame_that_was_not_read_yet_is_found(
    entry: FileEntry, gathered: int, frame: int
) -> None:
    # Frame 0 is not there yet, so none is read.
    proof = RunningProof([entry], {0: gathered}, [(0, 0)])
    flip(gathered, frame * FRAME_BYTES + 7)
    proof.landed(0, 0)
    assert proof.finish() == frozenset()


@pytest.mark.parametrize("size", [0, SIZE - 1, SIZE + 1])
def test_a_file_of_another_length_is_not_whole(entry: FileEntry, gathered: int, size: int) -> None:
    os.ftruncate(gathered, size)
    assert RunningProof([entry], {0: gathered}, []).finish() == frozenset()


def test_what_cannot_be_read_is_not_whole(entry: FileEntry, gathered: int, tmp_path: Path) -> None:
    closed = os.open(tmp_path / "gathered", os.O_WRONLY)
    try:
        assert RunningProof([entry], {0: closed}, []).finish() == frozenset()
    finally:
        os.close(closed)


def test_files_of_no_more_than_a_frame_have_no_thread(release: Release, weighty: Release, gathered: int) -> None:
    before = threading.active_count()
    small, path = release.files()[0]
    with path.open("rb") as handle:
        proof = RunningProof([small], {0: handle.fileno()}, [(0, 0)])
        assert threading.active_count() == before
        assert proof.finish() == {small.sha256}
    proof = RunningProof(weighty.manifest.files, {place(weighty)[0]: gathered}, [(place(weighty)[0], 0)])
    assert threading.active_count() == before + 1
    proof.close()
    assert threading.active_count() == before


def test_a_push_reads_no_file_again_that_it_has_read(
    layout: Layout, weighty: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = objects.is_whole

    def is_whole(path: Path, entry: FileEntry) -> bool:
        if layout.incoming in path.parents:
            read.append(entry.name)
        return real(path, entry)

    monkeypatch.setattr(objects, "is_whole", is_whole)
    assert push(layout, [OFFER, *whole(weighty)])[-1][0] is Message.DONE
    assert read == []
    verify_release(layout, read_release(layout, weighty.digest))


def test_a_file_that_an_earlier_push_left_whole_is_read_by_the_acceptance(layout: Layout, weighty: Release) -> None:
    file, sha256 = place(weighty)
    with pytest.raises(AgentError, match="went away"):
        push(layout, [OFFER, manifest(weighty), *frames_of(weighty, only=[(file, n) for n in range(FRAMES)])])
    rest = frames_of(weighty, only=[(other, 0) for other in range(len(weighty.files())) if other != file])
    flipped = layout.staging(weighty.digest) / sha256
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            receive_module, "reached", lambda name: flip(flipped, 9) if name == "receive.committed" else None
        )
        with pytest.raises(AgentError, match="1 frames have other bytes on the device's disk than arrived"):
            push(layout, [OFFER, manifest(weighty), *rest, COMMIT])
    said = push(layout, [OFFER, manifest(weighty), *frames_of(weighty, only=[(file, 0)]), COMMIT])
    assert want_of(said)["files"] == [{"file": file, "frames": [0]}]
    verify_release(layout, read_release(layout, weighty.digest))


def test_a_bit_that_flips_after_it_was_read_is_found_when_the_release_is_proven_and_mended_by_its_frame(
    layout: Layout, weighty: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, sha256 = place(weighty)
    staged = layout.staging(weighty.digest) / sha256
    with monkeypatch.context() as patched:
        patched.setattr(
            receive_module,
            "reached",
            lambda name: flip(staged, FRAME_BYTES + 3) if name == "receive.committed" else None,
        )
        assert push(layout, [OFFER, *whole(weighty)])[-1][0] is Message.DONE
    with pytest.raises(DamagedError, match=r"weights.bin has other bytes than the manifest names in frame 1 of 3"):
        verify_release(layout, read_release(layout, weighty.digest))
    said = push(layout, [OFFER, manifest(weighty), *frames_of(weighty, only=[(file, 1)]), COMMIT])
    assert want_of(said)["files"] == [{"file": file, "frames": [1]}]
    verify_release(layout, read_release(layout, weighty.digest))


def test_wheels_which_nobody_hashes_again_are_read_again_when_they_are_accepted(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_of(tmp_path, "2.0.0")
    ((entry, wheel),) = bundle.files
    frame = message(Message.FRAME, FRAME_HEADER.pack(0, 0, ENCODING_RAW) + wheel.read_bytes())
    parts = [
        message(Message.OFFER, offer_bytes(Offer(AGENT))),
        message(Message.MANIFEST, bundle.manifest),
        frame,
        COMMIT,
    ]
    staged = layout.staging(bundle.digest) / entry.sha256
    with monkeypatch.context() as patched:
        patched.setattr(
            receive_module, "reached", lambda name: flip(staged, 9) if name == "receive.committed" else None
        )
        with pytest.raises(AgentError, match="1 frames have other bytes on the device's disk than arrived"):
            push(layout, parts)
    assert not has_slot(layout, bundle.digest)
    assert push(layout, parts)[-1][0] is Message.DONE
    assert has_slot(layout, bundle.digest)


def test_frames_that_do_not_add_up_are_refused_though_each_is_good(layout: Layout, weighty: Release) -> None:
    data = weighty.manifest_bytes.replace(place(weighty)[1].encode(), b"0" * 64)
    with pytest.raises(AgentError, match=r"the frames of weights.bin do not add up"):
        push(layout, [OFFER, message(Message.MANIFEST, data), *frames_of(weighty), COMMIT])
    assert not (layout.root / "releases").exists()


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_a_push_that_breaks_off_leaves_no_thread(layout: Layout, weighty: Release, cut: int) -> None:
    before = set(threading.enumerate())
    frames = frames_of(weighty)
    with pytest.raises(AgentError, match="went away"):
        push(layout, [OFFER, manifest(weighty), *frames[:cut], frames[cut][:-1]])
    assert set(threading.enumerate()) == before


def test_only_what_is_proven_and_of_its_length_goes_unread(layout: Layout, weighty: Release) -> None:
    staging = layout.staging(weighty.digest)

    def stage(name: str, data: bytes) -> FileEntry:
        entry = weighty.manifest.file(name)
        (staging / entry.sha256).write_bytes(data)
        return entry

    staging.mkdir(parents=True)
    contents = {entry.name: path.read_bytes() for entry, path in weighty.files()}
    entries = [stage(name, data) for name, data in contents.items()]
    model = weighty.manifest.file("model.onnx")
    others = {entry.sha256 for entry in entries if entry != model}
    stage("model.onnx", b"rot" + contents["model.onnx"][3:])
    with pytest.raises(AgentError, match=r"model.onnx: 1 frames have other bytes"):
        store_files(layout, entries, staging, others)
    stage("model.onnx", contents["model.onnx"] + b"x")
    with pytest.raises(AgentError, match=r"model.onnx"):
        store_files(layout, entries, staging, {*others, model.sha256})
    (staging / model.sha256).unlink()
    with pytest.raises(AgentError, match=r"model.onnx is neither here nor in the store"):
        store_files(layout, entries, staging, {*others, model.sha256})
    assert not (layout.root / "objects").exists()


@pytest.mark.parametrize("left", [(), (0,), (0, 1), (0, 1, 2)])
def test_all_that_was_written_is_synced_before_a_file_is_moved_though_an_earlier_push_left_it_unsynced(
    layout: Layout, weighty: Release, monkeypatch: pytest.MonkeyPatch, left: tuple[int, ...]
) -> None:
    file, sha256 = place(weighty)
    staging = layout.staging(weighty.digest)
    staging.mkdir(parents=True)
    dirty: set[int] = set()
    if left:
        # As one leaves it that was killed between writing and syncing.
        content = weighty.files()[file][1].read_bytes()
        (staging / sha256).write_bytes(content[: (left[-1] + 1) * FRAME_BYTES])
        dirty.add((staging / sha256).stat().st_ino)
    moved: list[str] = []
    real_pwrite, real_place = os.pwrite, objects.place_object

    def pwrite(handle: int, data: bytes | memoryview, offset: int) -> int:
        dirty.add(os.fstat(handle).st_ino)
        return real_pwrite(handle, data, offset)

    def synced(real):
        def sync(handle: int) -> None:
            real(handle)
            dirty.discard(os.fstat(handle).st_ino)

        return sync

    def place_object(layout: Layout, entry: FileEntry, staged: Path) -> None:
        assert staged.stat().st_ino not in dirty
        moved.append(entry.name)
        real_place(layout, entry, staged)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "fsync", synced(os.fsync))
    monkeypatch.setattr(os, "fdatasync", synced(os.fdatasync))
    monkeypatch.setattr(objects, "place_object", place_object)
    sent = [(other, 0) for other in range(len(weighty.files())) if other != file]
    sent += [(file, frame) for frame in range(FRAMES) if frame not in left]
    assert push(layout, [OFFER, manifest(weighty), *frames_of(weighty, only=sent), COMMIT])[-1][0] is Message.DONE
    assert sorted(moved) == sorted(entry.name for entry in weighty.manifest.files)


def test_the_folders_of_objects_are_on_disk_before_a_file_is_in_one(
    layout: Layout, weighty: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = layout.root / "objects" / "sha256"
    folders = {layout.object(entry.sha256).parent for entry in weighty.manifest.files}
    durable: list[set[Path]] = []
    real, real_place = os.fsync, objects.place_object

    def fsync(handle: int) -> None:
        real(handle)
        if os.readlink(f"/proc/self/fd/{handle}") == str(parent):
            durable.append(set(parent.iterdir()))

    def place_object(layout: Layout, entry: FileEntry, staged: Path) -> None:
        assert folders <= durable[-1]
        real_place(layout, entry, staged)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(objects, "place_object", place_object)
    for _ in range(2):
        # The second time, all are there: the first one may have been killed before they were on disk.
        push(layout, [OFFER, *whole(weighty)])
        assert len(durable) == 1
        durable.clear()
        for entry in weighty.manifest.files:
            layout.object(entry.sha256).unlink()

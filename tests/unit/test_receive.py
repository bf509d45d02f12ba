from __future__ import annotations

import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from kedge.release.bundle import Release, write_release
from kedge_agent.errors import AgentError
from kedge_agent.formats.delta import BASE_INDEX, compress, slice_of
from kedge_agent.formats.frames import frame_length
from kedge_agent.formats.offer import Offer, offer_bytes
from kedge_agent.store import holdings
from kedge_agent.store.layout import Layout
from kedge_agent.store.models import ModelState, write_state
from kedge_agent.store.receive import receive
from kedge_agent.store.releases import read_release, verify_release
from kedge_agent.store.rules import ReleaseRules
from kedge_agent.wire import ENCODING_DELTA, ENCODING_RAW, ENCODING_ZSTD, FRAME_BYTES, FRAME_HEADER, Message
from tests.conftest import make_release
from tests.unit.test_archive import released
from tests.unit.test_store import deliver, frames_of, message, push, whole

OFFER = message(Message.OFFER, offer_bytes(Offer(encodings=(ENCODING_RAW, ENCODING_ZSTD, ENCODING_DELTA))))
COMMIT = message(Message.COMMIT)


def with_weights(folder: Path, version: int, weights: bytes) -> Release:
    """A release of the small classifier that carries a large file besides; it is its last."""
    small = make_release(folder, version=version)
    body = json.loads(small.manifest_bytes)
    del body["files"]
    sources: dict[str, Path | bytes] = {entry.name: path for entry, path in small.files()}
    return write_release(folder / f"weights-{version}", sources | {"weights.bin": weights}, body)


def place(release: Release) -> tuple[int, str]:
    """Which file the weights are, and their sha256."""
    names = [entry.name for entry in release.manifest.files]
    return names.index("weights.bin"), release.manifest.file("weights.bin").sha256


def manifest(release: Release) -> bytes:
    return message(Message.MANIFEST, release.manifest_bytes)


def frame(file: int, index: int, encoding: int, data: bytes) -> bytes:
    return message(Message.FRAME, FRAME_HEADER.pack(file, index, encoding) + data)


def want_of(said: list[tuple[Message, bytes]]) -> dict[str, Any]:
    assert said[0][0] is Message.WANT
    return json.loads(said[0][1])


def test_a_sender_of_protocol_2_is_told_encodings_and_bases(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state")
    weights = os.urandom(FRAME_BYTES + 100)
    first = with_weights(tmp_path, 1, weights)
    deliver(layout, first)
    second = with_weights(tmp_path, 2, b"x" + weights[1:])
    file, sha256 = place(second)
    said = push(layout, [OFFER, manifest(second), *frames_of(second, only=[(file, 0)]), COMMIT])
    assert want_of(said) == {
        "files": [{"file": file, "frames": [0]}],
        "bytes": FRAME_BYTES,
        "copied": 100,
        "encodings": [ENCODING_RAW, ENCODING_ZSTD, ENCODING_DELTA],
        "bases": [{"file": file, "objects": [{"sha256": place(first)[1], "bytes": len(weights)}]}],
        "joins": True,
    }
    assert sha256 != place(first)[1]
    verify_release(layout, read_release(layout, second.digest))


def test_a_frame_is_rebuilt_from_what_the_live_release_has(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state")
    weights = os.urandom(2 * FRAME_BYTES)
    first = with_weights(tmp_path, 1, weights)
    deliver(layout, first)
    write_state(layout, "digits", ModelState(first.digest, None))
    changed = os.urandom(1000) + weights[1000:]
    second = with_weights(tmp_path, 2, changed)
    file, _ = place(second)
    offset, length = slice_of(0, len(weights))
    packed = BASE_INDEX.pack(0) + compress(changed[:FRAME_BYTES], weights[offset : offset + length])
    assert len(packed) < 10_000
    said = push(layout, [OFFER, manifest(second), frame(file, 0, ENCODING_DELTA, packed), COMMIT])
    assert [kind for kind, _ in said] == [Message.WANT, Message.ACK, Message.DONE]
    verify_release(layout, read_release(layout, second.digest))


def test_a_difference_to_other_bytes_is_asked_for_again_raw_and_only_raw(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state")
    weights = os.urandom(4096) * (FRAME_BYTES // 4096)
    deliver(layout, with_weights(tmp_path, 1, weights))
    second = with_weights(tmp_path, 2, b"x" + weights[1:])
    file, _ = place(second)
    wrong = frame(file, 0, ENCODING_DELTA, BASE_INDEX.pack(0) + compress(weights, os.urandom(FRAME_BYTES)))
    for again in (wrong, frame(file, 0, ENCODING_ZSTD, compress(b"x" + weights[1:]))):
        with pytest.raises(AgentError, match="was not asked for"):
            push(layout, [OFFER, manifest(second), wrong, again, COMMIT])
    said = push(layout, [OFFER, manifest(second), wrong, *frames_of(second, only=[(file, 0)]), COMMIT])
    assert [kind for kind, _ in said] == [Message.WANT, Message.AGAIN, Message.ACK, Message.DONE]
    assert FRAME_HEADER.unpack(said[1][1]) == (file, 0, ENCODING_RAW)
    verify_release(layout, read_release(layout, second.digest))


@pytest.mark.parametrize(
    "bad",
    [
        b"\0",
        compress(bytes(64 << 20)),
        compress(bytes(FRAME_BYTES - 1)),
        compress(b"\1" * FRAME_BYTES),
    ],
)
def test_a_compressed_frame_that_is_damaged_or_a_bomb_is_asked_for_again(tmp_path: Path, bad: bytes) -> None:
    layout = Layout(tmp_path / "state")
    release = with_weights(tmp_path, 1, b"\2" * FRAME_BYTES)
    file, _ = place(release)
    rest = frames_of(release, only=[(other, 0) for other in range(4) if other != file])
    good = frame(file, 0, ENCODING_RAW, b"\2" * FRAME_BYTES)
    said = push(layout, [OFFER, manifest(release), frame(file, 0, ENCODING_ZSTD, bad), *rest, good, COMMIT])
    assert [kind for kind, _ in said].count(Message.AGAIN) == 1
    assert said[-1][0] is Message.DONE


def test_a_compressed_frame_is_taken_for_what_it_was(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state")
    release = with_weights(tmp_path, 1, b"\2" * FRAME_BYTES)
    file, _ = place(release)
    rest = frames_of(release, only=[(other, 0) for other in range(4) if other != file])
    packed = frame(file, 0, ENCODING_ZSTD, compress(b"\2" * FRAME_BYTES))
    assert push(layout, [OFFER, manifest(release), *rest, packed, COMMIT])[-1][0] is Message.DONE
    verify_release(layout, read_release(layout, release.digest))


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([OFFER, OFFER], "expected MANIFEST, got OFFER"),
        ([COMMIT], "expected MANIFEST, got COMMIT"),
        ([message(Message.OFFER, b"[]")], "offer"),
        ([message(Message.OFFER, b'{"kind": "x", "encodings": [0], "signatures": ""}')], "offer"),
        ([message(Message.ACK)], "expected MANIFEST, got ACK"),
    ],
)
def test_a_push_that_begins_otherwise_is_refused(tmp_path: Path, parts: list[bytes], reason: str) -> None:
    with pytest.raises(AgentError, match=reason) as caught:
        push(Layout(tmp_path / "state"), parts)
    assert caught.value.kind == "bad_input"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (lambda file: frame(file, 0, ENCODING_DELTA, BASE_INDEX.pack(0) + b"x"), "not offered"),
        (lambda file: frame(file, 0, ENCODING_ZSTD, b""), "came in 0 bytes"),
        (lambda file: frame(file, 0, ENCODING_ZSTD, bytes(1000)), "came in 1000 bytes"),
        (lambda file: frame(file, 0, ENCODING_RAW, bytes(99)), "other bytes"),
        (lambda file: frame(file, 1, ENCODING_RAW, bytes(100)), "was not asked for"),
        (lambda file: frame(file, 0, 3, bytes(100)), "was not asked for"),
        (lambda file: message(Message.COMMIT, b"x"), "got COMMIT of 1 bytes"),
        (lambda file: OFFER, "got OFFER"),
    ],
)
def test_a_frame_that_nobody_asked_for_so_ends_the_push(tmp_path: Path, bad: Any, reason: str) -> None:
    layout = Layout(tmp_path / "state")
    release = with_weights(tmp_path, 1, bytes(100))
    with pytest.raises(AgentError, match=reason):
        push(layout, [OFFER, manifest(release), bad(place(release)[0]), COMMIT])
    assert not layout.release(release.digest).exists()


def test_a_sender_of_protocol_1_may_send_raw_frames_only(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state")
    release = with_weights(tmp_path, 1, b"x" * 1000)
    with pytest.raises(AgentError, match="was not asked for"):
        push(layout, [manifest(release), frame(place(release)[0], 0, ENCODING_ZSTD, compress(b"x" * 1000))])
    said = push(layout, whole(release))
    assert set(want_of(said)) == {"files", "bytes"}


def test_frames_that_the_store_has_in_another_file_or_place_are_not_asked_for(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state")
    frames = [os.urandom(FRAME_BYTES) for _ in range(2)]
    deliver(layout, with_weights(tmp_path, 1, frames[0] + frames[1] + b"end"))
    second = with_weights(tmp_path, 2, frames[1] + frames[0] + b"end")
    said = push(layout, [OFFER, manifest(second), COMMIT])
    assert (want_of(said)["bytes"], want_of(said)["copied"]) == (0, 2 * FRAME_BYTES + 3)
    verify_release(layout, read_release(layout, second.digest))


def test_of_an_object_that_rotted_only_the_bad_frames_are_asked_for_and_all_releases_are_mended(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state")
    weights = os.urandom(3 * FRAME_BYTES)
    releases = [with_weights(tmp_path, version, weights) for version in (1, 2)]
    for release in releases:
        deliver(layout, release)
    file, sha256 = place(releases[0])
    stored = layout.object(sha256)
    stored.chmod(0o644)
    with stored.open("r+b") as handle:
        handle.seek(FRAME_BYTES + 17)
        handle.write(b"rot")
    said = push(layout, [OFFER, manifest(releases[0]), *frames_of(releases[0], only=[(file, 1)]), COMMIT])
    assert want_of(said)["files"] == [{"file": file, "frames": [1]}]
    for release in releases:
        verify_release(layout, read_release(layout, release.digest))


def test_a_frame_whose_sync_failed_is_never_acknowledged_and_its_file_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(tmp_path / "state")
    release = with_weights(tmp_path, 1, os.urandom(100))
    file, sha256 = place(release)

    def fails(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(holdings.os, "fdatasync", fails)
    with pytest.raises(AgentError, match="Input/output error") as caught:
        push(layout, [OFFER, manifest(release), *frames_of(release, only=[(file, 0)])])
    assert caught.value.kind == "internal"
    assert not (layout.staging(release.digest) / sha256).exists()
    monkeypatch.undo()
    assert push(layout, [OFFER, *whole(release)])[-1][0] is Message.DONE


def test_one_file_under_two_names_is_asked_for_once(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state")
    small = make_release(tmp_path, version=1)
    body = json.loads(small.manifest_bytes)
    del body["files"]
    sources: dict[str, Path | bytes] = {entry.name: path for entry, path in small.files()}
    release = write_release(tmp_path / "twins", sources | {"a.bin": b"same", "b.bin": b"same"}, body)
    names = [entry.name for entry in release.manifest.files]
    absent = [(index, 0) for index, name in enumerate(names) if name != "b.bin"]
    said = push(layout, [OFFER, manifest(release), *frames_of(release, only=absent), COMMIT])
    assert said[-1][0] is Message.DONE
    verify_release(layout, read_release(layout, release.digest))
    assert all(frame_length(entry.size_bytes, 0) == entry.size_bytes for entry in release.manifest.files)


def test_what_is_refused_locks_nothing(tmp_path: Path) -> None:
    signers = tmp_path / "allowed_signers"
    signers.write_text("")
    layout = Layout(tmp_path / "state")
    release = released(tmp_path / "net.release")
    with pytest.raises(AgentError, match="no signature"):
        receive(layout, io.BytesIO(manifest(release)), io.BytesIO(), ReleaseRules(allowed_signers=signers))
    assert not layout.root.exists() or os.listdir(layout.root) == []

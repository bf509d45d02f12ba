from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from kedge.errors import IncompatibleError, UnreachableError
from kedge.release.bundle import Release, write_release
from kedge.transport import link as link_module
from kedge.transport.base import Channel, Deadline
from kedge.transport.encoding import Base, Encoder
from kedge.transport.known import KnownObjects
from kedge.transport.link import Link, Pace
from kedge.transport.listening import parse_want
from kedge.transport.local import LocalAgent
from kedge.transport.upload import UploadResult, upload
from kedge_agent.formats.frames import hash_file
from kedge_agent.formats.manifest import FileEntry
from kedge_agent.formats.offer import AGENT, Offer
from kedge_agent.store.layout import Layout
from kedge_agent.store.releases import read_release, verify_release
from kedge_agent.wire import ENCODING_DELTA, ENCODING_RAW, ENCODING_ZSTD, FRAME_BYTES, Message
from tests.conftest import make_release

MIB = 1 << 20


def with_weights(folder: Path, version: int, weights: bytes) -> Release:
    small = make_release(folder, version=version)
    body = json.loads(small.manifest_bytes)
    del body["files"]
    sources: dict[str, Path | bytes] = {entry.name: path for entry, path in small.files()}
    return write_release(folder / f"weights-{version}", sources | {"weights.bin": weights}, body)


def opened(state: Path) -> tuple[Channel, int]:
    return LocalAgent(state).open_receive(Deadline.after(60, "the test"))


def push(state: Path, release: Release, *, protocol: int | None = None, limit: int | None = None) -> UploadResult:
    channel, spoken = opened(state)
    return upload(
        channel,
        "local",
        release.manifest_bytes,
        release.files(),
        protocol=protocol or spoken,
        limit_bytes_per_s=limit,
    )


def scattered(weights: bytes) -> bytes:
    """One of twenty values is another, here and there."""
    values = np.frombuffer(weights, np.uint32).copy()
    some = np.random.default_rng(0).choice(values.size, values.size // 20, replace=False)
    values[some] += 1
    return values.tobytes()


def is_whole(state: Path, release: Release) -> bool:
    layout = Layout(state)
    verify_release(layout, read_release(layout, release.digest))
    return True


def entry_of(path: Path) -> FileEntry:
    found = hash_file(path)
    return FileEntry(path.name, found.size_bytes, found.sha256, found.frames)


def test_after_a_change_of_five_percent_in_one_place_no_more_than_that_travels(tmp_path: Path) -> None:
    weights = os.urandom(20 * MIB)
    push(tmp_path / "device", with_weights(tmp_path, 1, weights))
    changed = weights[: 9 * MIB] + os.urandom(MIB) + weights[10 * MIB :]
    second = with_weights(tmp_path, 2, changed)
    done = push(tmp_path / "device", second)
    assert (done.sent_bytes, done.delta_frames, done.resent_frames) == (8 * MIB, 1, 0)
    assert done.copied_bytes == 12 * MIB
    assert done.wire_bytes < 1.01 * MIB
    assert is_whole(tmp_path / "device", second)


def test_a_base_that_was_damaged_here_costs_a_repetition_and_nothing_else(tmp_path: Path) -> None:
    weights = os.urandom(2 * MIB)
    first = with_weights(tmp_path, 1, weights)
    push(tmp_path / "device", first)
    kept = KnownObjects().folder / first.manifest.file("weights.bin").sha256
    kept.unlink()
    changed = weights[:MIB] + b"x" + weights[MIB + 1 :]
    # What is the same in both may be damaged unnoticed; this is as bad as it gets.
    kept.write_bytes(changed)
    second = with_weights(tmp_path, 2, changed)
    done = push(tmp_path / "device", second)
    assert (done.delta_frames, done.resent_frames) == (1, 1)
    assert is_whole(tmp_path / "device", second)
    assert not kept.exists()


def test_without_what_the_device_has_the_frame_itself_travels(tmp_path: Path) -> None:
    weights = os.urandom(2 * MIB)
    push(tmp_path / "device", with_weights(tmp_path, 1, weights))
    KnownObjects().gc(keep_bytes=0)
    second = with_weights(tmp_path, 2, b"x" + weights[1:])
    done = push(tmp_path / "device", second)
    assert (done.wire_bytes, done.delta_frames) == (2 * MIB, 0)
    assert is_whole(tmp_path / "device", second)


def test_an_agent_of_protocol_1_gets_raw_frames_and_no_offer(tmp_path: Path) -> None:
    weights = os.urandom(MIB)
    push(tmp_path / "device", with_weights(tmp_path, 1, weights), protocol=1)
    second = with_weights(tmp_path, 2, b"x" + weights[1:])
    done = push(tmp_path / "device", second, protocol=1)
    assert done.wire_bytes == MIB
    assert is_whole(tmp_path / "device", second)
    channel, _ = opened(tmp_path / "device")
    with pytest.raises(IncompatibleError, match="too old"):
        upload(channel, "local", b"{}", [], protocol=1, offer=Offer(kind=AGENT))


class Broken:
    """A channel whose link breaks after so many bytes."""

    def __init__(self, channel: Channel, size: int) -> None:
        self._channel = channel
        self._left = size

    def __getattr__(self, name: str) -> object:
        return getattr(self._channel, name)

    def sendall(self, data: bytes | memoryview) -> None:
        self._channel.sendall(data[: self._left])
        self._left -= len(data)
        if self._left <= 0:
            # What is under way arrives, as on a link that is cut behind it.
            time.sleep(0.5)
            raise BrokenPipeError("cut")


def test_an_interrupted_push_sends_again_no_more_than_the_frames_in_flight(tmp_path: Path) -> None:
    release = with_weights(tmp_path, 1, os.urandom(3 * FRAME_BYTES))
    acknowledged = 0

    def progress(done: int, total: int) -> None:
        nonlocal acknowledged
        acknowledged = done

    channel, protocol = opened(tmp_path / "device")
    with pytest.raises(UnreachableError, match="broke off"):
        upload(
            Broken(channel, 2 * FRAME_BYTES + 5 * MIB),  # type: ignore[arg-type]
            "local",
            release.manifest_bytes,
            release.files(),
            progress,
            protocol=protocol,
        )
    assert acknowledged >= FRAME_BYTES
    done = push(tmp_path / "device", release)
    total = release.manifest.total_bytes
    assert done.sent_bytes <= total - acknowledged
    assert done.skipped_bytes >= acknowledged
    assert is_whole(tmp_path / "device", release)


def test_a_limited_push_waits_as_long_as_its_bytes_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 0.0
        most = 0

        def monotonic(self) -> float:
            return self.now

        def sleep(self, seconds: float) -> None:
            self.now += seconds

    class Sink:
        def sendall(self, data: bytes) -> None:
            clock.most = max(clock.most, len(data))

    clock = Clock()
    monkeypatch.setattr(link_module, "time", clock)
    link = Link(Sink(), Pace(1_000_000))  # type: ignore[arg-type]
    for _ in range(2):
        link.send(Message.FRAME, b"header", bytes(5_000_000))
    assert clock.now == pytest.approx(10, rel=0.02)
    assert clock.most <= 50_000
    assert link.rate() == pytest.approx(1_000_000, rel=0.02)


def test_on_a_slow_link_what_compresses_is_compressed(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes((os.urandom(MIB) + bytes(MIB)) * 8)
    files = [(entry_of(path), path)]
    encoder = Encoder(files, (ENCODING_RAW, ENCODING_ZSTD), {}, lambda: 1e6)
    sent = list(encoder.encode([(0, 0), (0, 1)]))
    encoder.close()
    assert [frame.encoding for frame in sent] == [ENCODING_ZSTD] * 2
    assert len(sent[-1].data) < 0.6 * FRAME_BYTES


@pytest.mark.parametrize("rate", [None, 1e9])
def test_on_a_fast_link_nothing_waits_for_a_compressor_that_has_nothing_to_compare_with(
    tmp_path: Path, rate: float | None
) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(2 * MIB))
    encoder = Encoder([(entry_of(path), path)], (ENCODING_RAW, ENCODING_ZSTD), {}, lambda: rate)
    assert [frame.encoding for frame in encoder.encode([(0, 0)])] == [ENCODING_RAW]
    encoder.close()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda weights: os.urandom(4 * MIB), ENCODING_RAW),
        (lambda weights: weights[: 2 * MIB] + os.urandom(2 * MIB), ENCODING_DELTA),
        (lambda weights: os.urandom(MIB + 7) + weights[: 3 * MIB - 7], ENCODING_DELTA),
        (scattered, ENCODING_DELTA),
    ],
    ids=["other", "half", "moved", "scattered"],
)
def test_a_difference_is_made_to_what_is_alike_in_its_place_or_near_it(tmp_path: Path, change, expected: int) -> None:
    weights = os.urandom(4 * MIB)
    base, path = tmp_path / "base.bin", tmp_path / "weights.bin"
    base.write_bytes(weights)
    path.write_bytes(change(weights))
    files = [(entry_of(path), path)]
    encoder = Encoder(files, (ENCODING_RAW, ENCODING_DELTA), {0: Base(0, "a" * 64, base)}, lambda: None)
    assert [frame.encoding for frame in encoder.encode([(0, 0)])] == [expected]
    assert encoder.distrust(0) == ("a" * 64 if expected == ENCODING_DELTA else None)
    assert [frame.encoding for frame in encoder.encode([(0, 0)])] == [ENCODING_RAW]
    encoder.close()


def test_pushed_files_are_kept_by_their_hash_and_the_longest_unused_go_first(tmp_path: Path) -> None:
    known = KnownObjects(tmp_path / "cache")
    kept = []
    for name in "abc":
        path = tmp_path / f"{name}.bin"
        path.write_bytes(os.urandom(MIB))
        kept.append((entry_of(path), path))
    small = tmp_path / "small.bin"
    small.write_bytes(b"small")
    known.remember([*kept, (entry_of(small), small)])
    first = kept[0][0]
    assert {each.sha256 for each in known.entries()} == {entry.sha256 for entry, _ in kept}
    for age, (entry, _) in enumerate(kept):
        os.utime(tmp_path / "cache" / f"{entry.sha256}.used", (1000 - age, 1000 - age))
    assert known.find(first.sha256, MIB) is not None
    assert known.find(first.sha256, MIB - 1) is None
    assert known.find("b" * 64, MIB) is None
    assert known.find("../escape", MIB) is None
    gone = known.gc(keep_bytes=2 * MIB)
    assert [each.sha256 for each in gone] == [kept[2][0].sha256]
    assert [each.sha256 for each in known.gc(older_than_s=3600)] == [kept[1][0].sha256]
    assert [each.sha256 for each in known.entries()] == [first.sha256]


def test_a_file_that_is_kept_again_leaves_no_second_name(tmp_path: Path) -> None:
    known = KnownObjects(tmp_path / "cache")
    path = tmp_path / "a.bin"
    path.write_bytes(os.urandom(MIB))
    entry = entry_of(path)
    for _ in range(2):
        known.remember([(entry, path)])
        assert sorted(os.listdir(known.folder)) == [entry.sha256, f"{entry.sha256}.used"]
    assert path.stat().st_nlink == 2


def test_what_an_ended_process_was_about_to_keep_goes_and_what_a_running_one_is_stays(tmp_path: Path) -> None:
    known = KnownObjects(tmp_path / "cache")
    known.folder.mkdir()
    with subprocess.Popen(["true"]) as ended:
        pass
    for name in (f".{'a' * 64}.{ended.pid}", f".{'b' * 64}.{os.getpid()}", ".note.1.txt"):
        (known.folder / name).write_bytes(b"x")
    known.gc(keep_bytes=0)
    assert sorted(os.listdir(known.folder)) == [f".{'b' * 64}.{os.getpid()}", ".note.1.txt"]


@pytest.mark.parametrize(
    "body",
    [
        None,
        {},
        {"files": [{"file": 0, "frames": [1]}]},
        {"files": [{"file": -1, "frames": [0]}]},
        {"files": [{"file": 1, "frames": [0]}]},
        {"files": [{"file": 0, "frames": [0, 0]}]},
        {"files": []},
        {"files": [], "copied": 0, "encodings": [0], "bases": [{"file": 0, "objects": [{"sha256": "x", "bytes": 1}]}]},
    ],
)
def test_a_device_that_asks_for_what_there_is_not_is_refused(tmp_path: Path, body: object) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"a")
    with pytest.raises(IncompatibleError):
        parse_want(body, [entry_of(path)], 2)

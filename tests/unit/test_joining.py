"""More channels of one push: what the agent does with them, and what the host does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kedge.errors import UnreachableError
from kedge.release.bundle import Release
from kedge.transport import lanes
from kedge.transport.base import Channel, Deadline
from kedge.transport.local import LocalAgent
from kedge.transport.upload import UploadResult, upload
from kedge_agent.formats.delta import compress
from kedge_agent.formats.offer import Offer, offer_bytes
from kedge_agent.store.layout import Layout
from kedge_agent.store.releases import read_release, verify_release
from kedge_agent.wire import (
    ENCODING_DELTA,
    ENCODING_RAW,
    ENCODING_ZSTD,
    FRAME_BYTES,
    FRAME_HEADER,
    MESSAGE_HEADER,
    Message,
    read_message,
)
from tests.unit.test_receive import place, with_weights

MIB = 1 << 20


class Process:
    """A `receive` process, spoken to message by message."""

    def __init__(self, state: Path, release: Release, *, join: bool) -> None:
        self.channel, _ = LocalAgent(state).open_receive(Deadline.after(60, "the test"))
        self.channel.settimeout(60)
        self._reader = self.channel.makefile("rb")
        offer = Offer(encodings=(ENCODING_RAW, ENCODING_ZSTD, ENCODING_DELTA), join=join)
        self.say(Message.OFFER, offer_bytes(offer))
        self.say(Message.MANIFEST, release.manifest_bytes)

    def say(self, kind: Message, payload: bytes = b"") -> None:
        self.channel.sendall(MESSAGE_HEADER.pack(kind, len(payload)) + payload)

    def frame(self, file: int, index: int, data: bytes, encoding: int = ENCODING_RAW) -> None:
        self.say(Message.FRAME, FRAME_HEADER.pack(file, index, encoding) + data)

    def hear(self) -> tuple[Message, Any]:
        kind, payload = read_message(self._exactly)
        if kind in (Message.ACK, Message.AGAIN):
            return kind, FRAME_HEADER.unpack(payload)
        return kind, json.loads(bytes(payload))

    def heard_all(self) -> bool:
        """Whether the process said nothing more, and ended well."""
        return self._reader.read() == b"" and self.channel.end(30)[0] == 0

    def kill(self) -> None:
        self._reader.close()
        self.channel.close()

    def _exactly(self, size: int) -> bytes:
        data = self._reader.read(size)
        if len(data) < size:
            raise EOFError
        return data


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "device"


@pytest.fixture
def started(state: Path) -> Iterator[Callable[..., Process]]:
    running: list[Process] = []

    def start(release: Release, *, join: bool = False) -> Process:
        running.append(Process(state, release, join=join))
        return running[-1]

    yield start
    for process in running:
        process.kill()


def is_whole(state: Path, release: Release) -> bool:
    layout = Layout(state)
    verify_release(layout, read_release(layout, release.digest))
    return True


def parts(release: Release) -> dict[tuple[int, int], bytes]:
    """All frames."""
    return {
        (file, start // FRAME_BYTES): path.read_bytes()[start : start + FRAME_BYTES]
        for file, (entry, path) in enumerate(release.files())
        for start in range(0, entry.size_bytes, FRAME_BYTES)
    }


def test_frames_of_a_joined_process_count_for_the_one_that_leads(
    tmp_path: Path, state: Path, started: Callable[..., Process]
) -> None:
    release = with_weights(tmp_path, 1, os.urandom(FRAME_BYTES) + b"\2" * FRAME_BYTES + os.urandom(100))
    frames = parts(release)
    leader = started(release)
    kind, want = leader.hear()
    assert (kind, want["joins"]) == (Message.WANT, True)
    joined = started(release, join=True)
    kind, want = joined.hear()
    assert kind is Message.WANT
    assert (want["files"], want["bytes"], want["bases"]) == ([], 0, [])
    assert want["encodings"] == [ENCODING_RAW, ENCODING_ZSTD]
    weights, _ = place(release)
    for key, data in frames.items():
        if key == (weights, 1):
            joined.frame(*key, compress(data), ENCODING_ZSTD)
        else:
            (joined if key[0] == weights else leader).frame(*key, data)
    acknowledged = {joined.hear()[1][:2] for _ in range(3)}
    assert acknowledged == {(weights, 0), (weights, 1), (weights, 2)}
    joined.say(Message.COMMIT)
    assert joined.heard_all()
    leader.say(Message.COMMIT)
    said = [leader.hear() for _ in range(len(frames) - 3 + 1)]
    assert said[-1] == (Message.DONE, {"release": release.digest})
    assert is_whole(state, release)


def test_what_neither_of_them_was_sent_is_missing(tmp_path: Path, started: Callable[..., Process]) -> None:
    release = with_weights(tmp_path, 1, os.urandom(2 * FRAME_BYTES))
    weights, _ = place(release)
    frames = parts(release)
    leader = started(release)
    leader.hear()
    joined = started(release, join=True)
    joined.hear()
    joined.frame(weights, 0, frames[weights, 0])
    assert joined.hear()[0] is Message.ACK
    leader.say(Message.COMMIT)
    kind, error = leader.hear()
    assert kind is Message.ERROR
    assert f"with {len(frames) - 1} frames missing" in error["error"]


def test_there_is_nothing_to_join_where_nobody_leads(tmp_path: Path, started: Callable[..., Process]) -> None:
    release = with_weights(tmp_path, 1, os.urandom(100))
    kind, error = started(release, join=True).hear()
    assert (kind, error["kind"]) == (Message.ERROR, "not_found")
    leader = started(release)
    leader.hear()
    leader.kill()
    # Its files are there, and nobody gathers them.
    kind, error = started(release, join=True).hear()
    assert (kind, error["kind"]) == (Message.ERROR, "not_found")


def test_a_joined_process_whose_leader_is_gone_takes_no_frame(
    tmp_path: Path, state: Path, started: Callable[..., Process]
) -> None:
    release = with_weights(tmp_path, 1, os.urandom(100))
    weights, sha256 = place(release)
    leader = started(release)
    leader.hear()
    joined = started(release, join=True)
    joined.hear()
    leader.kill()
    joined.frame(weights, 0, parts(release)[weights, 0])
    kind, error = joined.hear()
    assert (kind, error["kind"]) == (Message.ERROR, "not_found")
    assert (Layout(state).staging(release.digest) / sha256).read_bytes() == bytes(100)
    # It is in nobody's way either.
    again = started(release)
    assert again.hear()[0] is Message.WANT


def test_a_file_that_was_given_up_gets_no_acknowledged_frame(
    tmp_path: Path, state: Path, started: Callable[..., Process]
) -> None:
    release = with_weights(tmp_path, 1, os.urandom(100))
    weights, sha256 = place(release)
    started(release).hear()
    joined = started(release, join=True)
    joined.hear()
    # As the leader does when the disk fails.
    (Layout(state).staging(release.digest) / sha256).unlink()
    joined.frame(weights, 0, parts(release)[weights, 0])
    assert joined.hear()[0] is Message.ERROR


def test_a_joined_process_spoils_nothing_that_is_good(
    tmp_path: Path, state: Path, started: Callable[..., Process]
) -> None:
    release = with_weights(tmp_path, 1, os.urandom(1000))
    weights, _ = place(release)
    frames = parts(release)
    leader = started(release)
    leader.hear()
    joined = started(release, join=True)
    joined.hear()
    for key, data in frames.items():
        leader.frame(*key, data)
        assert leader.hear()[0] is Message.ACK
    joined.frame(weights, 0, bytes(999), ENCODING_ZSTD)
    assert joined.hear() == (Message.AGAIN, (weights, 0, ENCODING_RAW))
    joined.frame(weights, 0, bytes(1000))
    kind, error = joined.hear()
    assert (kind, error["kind"]) == (Message.ERROR, "integrity")
    leader.say(Message.COMMIT)
    assert leader.hear()[0] is Message.DONE
    assert is_whole(state, release)


@pytest.mark.parametrize("frame", [(0, 99, ENCODING_RAW), (99, 0, ENCODING_RAW), (0, 0, ENCODING_DELTA)])
def test_a_joined_process_takes_frames_of_the_release_alone(
    tmp_path: Path, started: Callable[..., Process], frame: tuple[int, int, int]
) -> None:
    release = with_weights(tmp_path, 1, os.urandom(1000))
    started(release).hear()
    joined = started(release, join=True)
    joined.hear()
    joined.say(Message.FRAME, FRAME_HEADER.pack(*frame) + bytes(1000))
    kind, error = joined.hear()
    assert kind is Message.ERROR
    assert "was not asked for" in error["error"]


class Bound:
    """A channel whose window lets 20 MB/s through."""

    window_bytes_per_s = 20e6

    def __init__(self, channel: Channel, *, breaks_after: float = float("inf")) -> None:
        self._channel = channel
        self._left = breaks_after

    def __getattr__(self, name: str) -> object:
        return getattr(self._channel, name)

    def sendall(self, data: bytes | memoryview) -> None:
        time.sleep(len(data) / self.window_bytes_per_s)
        self._left -= len(data)
        if self._left < 0:
            raise BrokenPipeError("cut")
        self._channel.sendall(data)


def push(state: Path, release: Release, open_more: lanes.OpenMore, **options: Any) -> UploadResult:
    channel, protocol = LocalAgent(state).open_receive(Deadline.after(60, "the test"))
    told: list[tuple[int, int]] = []
    options = {"protocol": protocol} | options
    done = upload(
        Bound(channel),  # type: ignore[arg-type]
        "local",
        release.manifest_bytes,
        release.files(),
        lambda done, total: told.append((done, total)),
        open_more=open_more,
        **options,
    )
    total = release.manifest.total_bytes
    assert told == sorted(told)
    assert told[-1] == (total, total)
    assert is_whole(state, release)
    return done


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    """Worth more channels, and still sent within seconds."""
    monkeypatch.setattr(lanes, "_WORTH_BYTES", 0)
    monkeypatch.setattr(lanes, "_WORTH_S", 0.0)
    return with_weights(tmp_path, 1, os.urandom(5 * FRAME_BYTES))


def test_a_channel_that_its_window_binds_gets_company(state: Path, large: Release) -> None:
    def more(deadline: Deadline) -> tuple[Channel, int]:
        channel, protocol = LocalAgent(state).open_receive(deadline)
        return Bound(channel), protocol  # type: ignore[return-value]

    done = push(state, large, more)
    assert done.channels > 1
    assert (done.sent_bytes, done.wire_bytes, done.resent_frames) == (
        large.manifest.total_bytes,
        large.manifest.total_bytes,
        0,
    )


def test_frames_of_a_channel_that_breaks_go_through_the_others(state: Path, large: Release) -> None:
    def more(deadline: Deadline) -> tuple[Channel, int]:
        channel, protocol = LocalAgent(state).open_receive(deadline)
        return Bound(channel, breaks_after=2 * MIB), protocol  # type: ignore[return-value]

    done = push(state, large, more)
    assert done.channels == 1
    assert done.resent_frames >= 1


def test_without_more_channels_one_brings_all(state: Path, large: Release) -> None:
    tried = 0

    def more(deadline: Deadline) -> tuple[Channel, int]:
        nonlocal tried
        tried += 1
        raise UnreachableError("no more sessions")

    assert push(state, large, more).channels == 1
    # As many as a link is worth that a window of 20 MB/s binds.
    assert tried == 3


def test_an_agent_of_protocol_1_and_a_push_that_is_limited_have_one_channel(state: Path, large: Release) -> None:
    def more(deadline: Deadline) -> tuple[Channel, int]:
        raise AssertionError("asked for another channel")

    assert push(state, large, more, protocol=1).channels == 1
    assert push(state.with_name("other"), large, more, limit_bytes_per_s=20_000_000).channels == 1


def test_a_process_that_receives_imports_no_server_and_no_runtime() -> None:
    script = (
        "import sys, kedge_agent.cli, kedge_agent.settings, kedge_agent.store.receive as _; "
        "print(*(name for name in sys.modules if name.startswith(('kedge_agent.runtime.', 'kedge_agent.serving.'))))"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "kedge_agent.serving.limits" in said
    assert not {"kedge_agent.serving.server", "kedge_agent.runtime.pool"} & set(said)

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from kedge.release.bundle import Release
from kedge_agent.errors import AgentError
from kedge_agent.formats.frames import frame_length
from kedge_agent.store.files import exclusive_lock, write_atomic
from kedge_agent.store.layout import Layout, socket_directory
from kedge_agent.store.models import ModelState, list_models, read_state, write_state
from kedge_agent.store.receive import receive
from kedge_agent.store.releases import read_release, verify_release
from kedge_agent.wire import ENCODING_RAW, FRAME_BYTES, FRAME_HEADER, MESSAGE_HEADER, Message, read_message
from tests.conftest import make_release


def message(kind: Message, payload: bytes = b"") -> bytes:
    return MESSAGE_HEADER.pack(kind, len(payload)) + payload


def frames_of(release: Release, *, only: Iterable[tuple[int, int]] | None = None) -> list[bytes]:
    out = []
    for index, (entry, path) in enumerate(release.files()):
        data = path.read_bytes()
        for frame in range(len(entry.frames)):
            if only is None or (index, frame) in only:
                start = frame * FRAME_BYTES
                part = data[start : start + frame_length(entry.size_bytes, frame)]
                out.append(message(Message.FRAME, FRAME_HEADER.pack(index, frame, ENCODING_RAW) + part))
    return out


def push(layout: Layout, parts: Iterable[bytes]) -> list[tuple[Message, bytes]]:
    """Run the agent's half on prepared input; its messages, and whatever it raised, re-raised after."""
    sink = io.BytesIO()
    failure: AgentError | None = None
    try:
        receive(layout, io.BytesIO(b"".join(parts)), sink)
    except AgentError as error:
        failure = error
    sink.seek(0)
    said: list[tuple[Message, bytes]] = []

    def exactly(size: int) -> bytes:
        data = sink.read(size)
        if len(data) < size:
            raise EOFError
        return data

    while sink.tell() < len(sink.getbuffer()):
        kind, payload = read_message(exactly)
        said.append((kind, bytes(payload)))
    if failure is not None:
        assert said[-1][0] is Message.ERROR
        assert json.loads(said[-1][1])["error"] == failure.message
        raise failure
    return said


def whole(release: Release) -> list[bytes]:
    return [message(Message.MANIFEST, release.manifest_bytes), *frames_of(release), message(Message.COMMIT)]


def deliver(layout: Layout, release: Release) -> None:
    """Push a release to a store that may have some of its files."""
    absent = [
        (index, frame)
        for index, (entry, _) in enumerate(release.files())
        for frame in range(len(entry.frames))
        if not layout.object(entry.sha256).exists()
    ]
    push(
        layout,
        [message(Message.MANIFEST, release.manifest_bytes), *frames_of(release, only=absent), message(Message.COMMIT)],
    )


def test_a_pushed_release_lies_in_the_store_whole_and_read_only(tmp_path: Path, release: Release) -> None:
    layout = Layout(tmp_path / "state")
    said = push(layout, whole(release))
    assert said[0][0] is Message.WANT
    assert [kind for kind, _ in said[1:-1]] == [Message.ACK] * 3
    assert json.loads(said[-1][1]) == {"release": release.digest}
    manifest = read_release(layout, release.digest)
    verify_release(layout, manifest)
    for entry in manifest.files:
        linked = layout.release(release.digest) / entry.name
        assert linked.stat().st_ino == layout.object(entry.sha256).stat().st_ino
        assert stat.S_IMODE(linked.stat().st_mode) == 0o444
    assert not layout.staging(release.digest).exists()


def test_a_second_push_of_the_same_release_sends_nothing(tmp_path: Path, release: Release) -> None:
    layout = Layout(tmp_path / "state")
    push(layout, whole(release))
    said = push(layout, [message(Message.MANIFEST, release.manifest_bytes), message(Message.COMMIT)])
    assert json.loads(said[0][1]) == {"files": [], "bytes": 0}


def test_an_interrupted_push_resumes_from_its_acknowledged_frames(tmp_path: Path, release: Release) -> None:
    layout = Layout(tmp_path / "state")
    frames = frames_of(release)
    with pytest.raises(AgentError, match="went away"):
        push(layout, [message(Message.MANIFEST, release.manifest_bytes), frames[0], frames[1][:-5]])
    said = push(layout, [message(Message.MANIFEST, release.manifest_bytes), *frames[1:], message(Message.COMMIT)])
    want = json.loads(said[0][1])
    assert [item["file"] for item in want["files"]] == [1, 2]
    verify_release(layout, read_release(layout, release.digest))


def test_an_interrupted_push_goes_on_when_another_release_brought_its_file_meanwhile(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state")
    first, second = (make_release(tmp_path, version=version) for version in (1, 2))
    data = frames_of(first)[0]
    with pytest.raises(AgentError):
        push(layout, [message(Message.MANIFEST, first.manifest_bytes), data[:-5]])
    push(layout, whole(second))
    push(layout, [message(Message.MANIFEST, first.manifest_bytes), message(Message.COMMIT)])
    verify_release(layout, read_release(layout, first.digest))


def test_a_frame_damaged_on_disk_is_asked_for_again(tmp_path: Path, release: Release) -> None:
    layout = Layout(tmp_path / "state")
    frames = frames_of(release)
    with pytest.raises(AgentError):
        push(layout, [message(Message.MANIFEST, release.manifest_bytes), frames[0]])
    staged = layout.staging(release.digest) / release.manifest.files[0].sha256
    data = bytearray(staged.read_bytes())
    data[10] ^= 1
    staged.write_bytes(data)
    said = push(layout, whole(release))
    assert [item["file"] for item in json.loads(said[0][1])["files"]] == [0, 1, 2]


def test_files_the_device_has_from_another_release_are_not_sent_again(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state")
    first, second = (make_release(tmp_path, version=version) for version in (1, 2))
    push(layout, whole(first))
    said = push(layout, [message(Message.MANIFEST, second.manifest_bytes), message(Message.COMMIT)])
    assert first.digest != second.digest
    assert json.loads(said[0][1])["bytes"] == 0
    verify_release(layout, read_release(layout, second.digest))


def test_a_damaged_release_is_repaired_by_pushing_it_again(tmp_path: Path, release: Release) -> None:
    layout = Layout(tmp_path / "state")
    push(layout, whole(release))
    broken = layout.release(release.digest) / "model.onnx"
    broken.chmod(0o644)
    broken.write_bytes(b"rot" + broken.read_bytes()[3:])
    with pytest.raises(AgentError, match="other bytes"):
        verify_release(layout, read_release(layout, release.digest))
    said = push(
        layout,
        [
            message(Message.MANIFEST, release.manifest_bytes),
            *frames_of(release, only=[(0, 0)]),
            message(Message.COMMIT),
        ],
    )
    assert [item["file"] for item in json.loads(said[0][1])["files"]] == [0]
    verify_release(layout, read_release(layout, release.digest))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda frames: [frames[0][:-1] + bytes([frames[0][-1] ^ 1])], "other bytes"),
        (lambda frames: [frames[0], frames[0]], "not asked for"),
        (lambda frames: frames[:-1], "1 frames missing"),
        (lambda frames: [message(Message.FRAME, FRAME_HEADER.pack(7, 0, ENCODING_RAW))], "not asked for"),
        (lambda frames: [message(Message.FRAME, FRAME_HEADER.pack(0, 0, 9) + b"x")], "not asked for"),
        (lambda frames: [message(Message.FRAME, b"short")], "expected FRAME or COMMIT"),
        (lambda frames: [message(Message.MANIFEST, b"{}")], "expected FRAME or COMMIT"),
        (lambda frames: [MESSAGE_HEADER.pack(Message.FRAME, 1 << 31)], "exceeds the limit"),
        (lambda frames: [MESSAGE_HEADER.pack(77, 0)], "unknown message"),
    ],
)
def test_a_push_that_breaks_the_rules_is_refused_and_nothing_is_accepted(
    tmp_path: Path, release: Release, change, reason: str
) -> None:
    layout = Layout(tmp_path / "state")
    parts = [message(Message.MANIFEST, release.manifest_bytes), *change(frames_of(release)), message(Message.COMMIT)]
    with pytest.raises(AgentError, match=reason):
        push(layout, parts)
    assert not layout.release(release.digest).exists()


def test_frames_that_do_not_add_up_to_the_file_s_hash_are_refused(tmp_path: Path, release: Release) -> None:
    body = json.loads(release.manifest_bytes)
    body["files"][0]["sha256"] = hashlib.sha256(b"something else").hexdigest()
    manifest = json.dumps(body).encode()
    layout = Layout(tmp_path / "state")
    with pytest.raises(AgentError, match="do not add up"):
        push(layout, [message(Message.MANIFEST, manifest), *frames_of(release), message(Message.COMMIT)])


def test_a_device_without_room_says_so_before_a_byte_travels(
    tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(tmp_path / "state")
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=1000, f_frsize=1))
    with pytest.raises(AgentError, match="1000 free") as caught:
        push(layout, whole(release))
    assert caught.value.kind == "space"


def test_a_resumed_push_needs_only_the_room_that_is_not_reserved_yet(
    tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(tmp_path / "state")
    frames = frames_of(release)
    with pytest.raises(AgentError):
        push(layout, [message(Message.MANIFEST, release.manifest_bytes), frames[0]])
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=1000, f_frsize=1))
    push(layout, [message(Message.MANIFEST, release.manifest_bytes), *frames[1:], message(Message.COMMIT)])


def test_two_pushes_of_one_release_at_once_are_told_apart(tmp_path: Path, release: Release) -> None:
    layout = Layout(tmp_path / "state")
    layout.staging(release.digest).mkdir(parents=True)
    with (
        exclusive_lock(layout.staging(release.digest) / ".lock", "held"),
        pytest.raises(AgentError, match="somebody else") as caught,
    ):
        push(layout, whole(release))
    assert caught.value.kind == "busy"


def test_a_model_s_state_is_switched_whole_and_current_points_to_it(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    first, second = "a" * 64, "b" * 64
    assert read_state(layout, "digits") is None
    write_state(layout, "digits", ModelState(first, None))
    write_state(layout, "digits", ModelState(second, first))
    assert read_state(layout, "digits") == ModelState(second, first)
    assert os.readlink(layout.model("digits") / "current") == f"../../releases/{second}"
    assert list_models(layout) == ["digits"]
    assert sorted(os.listdir(layout.model("digits"))) == ["current", "state.json"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"current": "x", "previous": null}', b'{"current": 1}', b"[]", b"0" * 70000]
)
def test_a_damaged_state_is_reported_not_guessed_at(tmp_path: Path, content: bytes) -> None:
    layout = Layout(tmp_path)
    layout.model("digits").mkdir(parents=True)
    (layout.model("digits") / "state.json").write_bytes(content)
    with pytest.raises(AgentError) as caught:
        read_state(layout, "digits")
    assert caught.value.kind == "integrity"


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["state.json"]


@pytest.mark.parametrize("name", ["../x", "a/b", "", "A", "x" * 65, ".."])
def test_names_that_could_leave_the_store_never_become_paths(tmp_path: Path, name: str) -> None:
    layout = Layout(tmp_path)
    for make in (layout.model, layout.release, layout.object, layout.staging):
        with pytest.raises(AgentError):
            make(name)


def test_a_socket_folder_that_somebody_else_made_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4_242_424)
    trap = Path("/tmp/kedge-4242424")
    trap.mkdir(mode=0o700)
    try:
        with pytest.raises(AgentError, match="not a private folder") as caught:
            socket_directory(tmp_path)
        assert caught.value.kind == "forbidden"
    finally:
        trap.rmdir()


def test_socket_paths_are_short_private_and_the_same_for_every_process(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    folder = socket_directory(deep)
    assert folder == socket_directory(deep)
    assert len(os.fsencode(folder / "control.sock")) < 60
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert socket_directory(tmp_path / "other") != folder

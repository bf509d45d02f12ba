from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pytest

from kedge.errors import BadInputError, IncompatibleError, KedgeError
from kedge.release.bundle import Release
from kedge.transport.upload import upload
from kedge_agent.wire import FRAME_HEADER, MESSAGE_HEADER, Message, read_message

WANTED = {"files": [{"file": 0, "frames": [0]}], "bytes": 1, "copied": 0, "encodings": [0], "bases": []}


class Scripted:
    """One end of a pair of sockets; at the other, a device that says its lines, whatever it hears."""

    window_bytes_per_s: float | None = None

    def __init__(self, *lines: tuple[Message, Any]) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._lines = lines
        self._thread = threading.Thread(target=self._play)
        self._thread.start()

    def _play(self) -> None:
        # The host may hang up at any line: that is what is tested.
        with contextlib.suppress(OSError, struct.error), self._theirs, self._theirs.makefile("rb") as ear:
            for kind, body in self._lines:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self._theirs.sendall(MESSAGE_HEADER.pack(kind, len(data)) + data)
                if kind is Message.WANT:
                    # Everything that the host has to say before the next line may matter.
                    while read_message(ear.read)[0] not in (Message.FRAME, Message.COMMIT):
                        pass
            while ear.read(65536):
                pass

    def sendall(self, data: bytes | memoryview, /) -> None:
        self._ours.sendall(data)

    def recv(self, size: int, /) -> bytes:
        return self._ours.recv(size)

    def makefile(self, mode: Literal["rb"], /) -> BinaryIO:
        return self._ours.makefile(mode)

    def settimeout(self, seconds: float | None, /) -> None:
        self._ours.settimeout(20)

    def end(self, timeout_s: float) -> tuple[int | None, str]:
        return 0, ""

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)
        self._ours.close()
        self._thread.join(10)


def told(release: Release, *lines: tuple[Message, Any]) -> KedgeError:
    with pytest.raises(KedgeError) as caught:
        upload(Scripted(*lines), "bench1", release.manifest_bytes, release.files(), protocol=2)
    return caught.value


def ack(file: int, frame: int) -> tuple[Message, bytes]:
    return Message.ACK, FRAME_HEADER.pack(file, frame, 0)


@pytest.mark.parametrize(
    "lines",
    [
        [(Message.DONE, {"release": "0" * 64})],
        [(Message.WANT, {})],
        [(Message.WANT, [1])],
        [(Message.WANT, {**WANTED, "copied": -5})],
        [(Message.WANT, {**WANTED, "copied": 1 << 50})],
        [(Message.WANT, WANTED), ack(7, 0)],
        [(Message.WANT, WANTED), ack(0, 9)],
        [(Message.WANT, WANTED), ack(1, 0)],
        [ack(0, 0)],
        [(Message.WANT, WANTED), (Message.DONE, {"release": "0" * 64})],
        [(Message.WANT, WANTED), (Message.DONE, [])],
        [(Message.WANT, WANTED), (Message.WANT, WANTED)],
    ],
    ids=lambda lines: " ".join(kind.name for kind, _ in lines),
)
def test_a_device_that_breaks_the_protocol_is_told_at_once_and_not_tried_again(
    release: Release, lines: list[tuple[Message, Any]]
) -> None:
    assert isinstance(told(release, *lines), IncompatibleError)


def test_done_without_the_acknowledgements_is_no_success(release: Release) -> None:
    error = told(release, (Message.WANT, WANTED), (Message.DONE, {"release": release.digest}))
    assert isinstance(error, IncompatibleError)


@pytest.mark.parametrize("kind", [["a"], None, {}, "weather"])
def test_an_error_of_a_kind_that_there_is_not_is_an_error_all_the_same(release: Release, kind: object) -> None:
    error = told(release, (Message.ERROR, {"error": "no", "hint": "see DEVICE", "kind": kind}))
    assert error.message == "bench1: no"
    assert error.hint == "see bench1"


def test_a_file_that_goes_away_meanwhile_is_the_host_s_fault(release: Release, tmp_path: Path) -> None:
    files = [(entry, tmp_path / "gone") for entry, _ in release.files()]
    with pytest.raises(BadInputError, match="cannot be read any more"):
        upload(Scripted((Message.WANT, WANTED)), "bench1", release.manifest_bytes, files, protocol=2)

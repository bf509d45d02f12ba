"""A push message by message, as a host does it, into a real receiving process; any message may be wrong or missing."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kedge.release.bundle import Release
from kedge_agent.formats.frames import frame_length
from kedge_agent.formats.offer import Offer, offer_bytes
from kedge_agent.wire import (
    ENCODING_RAW,
    FRAME_BYTES,
    FRAME_HEADER,
    GREETING_PREFIX,
    MESSAGE_HEADER,
    Message,
    read_message,
)


class PushError(Exception):
    """The device refused the push, or its process went. `kind` is the device's; None where it said nothing."""

    def __init__(self, said: dict[str, Any] | None) -> None:
        super().__init__(said["error"] if said else "the receiving process ended and said nothing")
        self.kind = said["kind"] if said else None
        self.hint = said["hint"] if said else ""


def message(kind: int, payload: bytes = b"") -> bytes:
    """A whole message of the protocol."""
    return MESSAGE_HEADER.pack(kind, len(payload)) + payload


def frame_message(release: Release, file: int, frame: int) -> bytes:
    """One frame of a release, raw, as it travels."""
    entry, path = release.files()[file]
    with path.open("rb") as handle:
        handle.seek(frame * FRAME_BYTES)
        data = handle.read(frame_length(entry.size_bytes, frame))
    return message(Message.FRAME, FRAME_HEADER.pack(file, frame, ENCODING_RAW) + data)


class Receiver:
    """A process that receives, as the host runs it: its standard input and output, and what it said so far.

    environment: its own, beside this process's; KEDGE_FAILPOINTS makes it fail.
    """

    def __init__(self, state: Path, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kedge_agent", "--state", str(state), "receive"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
            cwd="/",
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in, self._out = self.process.stdin, self.process.stdout
        self.acknowledged: set[tuple[int, int]] = set()
        self._ended: tuple[int, str] | None = None
        self.greeting = self._out.readline()
        assert self.greeting.startswith(GREETING_PREFIX), self.process.communicate()

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, data: bytes) -> None:
        """These very bytes; BrokenPipeError where the process has ended."""
        self._in.write(data)
        self._in.flush()

    def heard(self) -> tuple[Message, bytes] | None:
        """The next message; None when the process has ended without one more."""
        try:
            kind, payload = read_message(self._exactly)
        except EOFError:
            return None
        if kind is Message.ACK:
            file, frame, _ = FRAME_HEADER.unpack(payload)
            self.acknowledged.add((file, frame))
        return kind, bytes(payload)

    def expect(self, kind: Message) -> bytes:
        """The next message that is no ACK, which must be of this kind.

        Raises:
            PushError: it is an ERROR, or the process ended.
        """
        while True:
            said = self.heard()
            if said is None:
                raise PushError(None)
            if said[0] is Message.ACK and kind is not Message.ACK:
                continue
            if said[0] is Message.ERROR and kind is not Message.ERROR:
                raise PushError(json.loads(said[1]))
            assert said[0] is kind, f"{said[0].name} came where {kind.name} was to come: {said[1][:500]!r}"
            return said[1]

    def want(self, release: Release, offer: Offer | None = None) -> list[tuple[int, int]]:
        """Offer a release; the frames that the device asks for. Raises as `expect`."""
        with contextlib.suppress(BrokenPipeError):
            if offer is not None:
                self.send(message(Message.OFFER, offer_bytes(offer)))
            self.send(message(Message.MANIFEST, release.manifest_bytes))
        asked = json.loads(self.expect(Message.WANT))
        return [(item["file"], frame) for item in asked["files"] for frame in item["frames"]]

    def commit(self) -> str:
        """Say that all was sent; the digest that was accepted. Raises as `expect`."""
        with contextlib.suppress(BrokenPipeError):
            self.send(message(Message.COMMIT))
        return str(json.loads(self.expect(Message.DONE))["release"])

    def _exactly(self, size: int) -> bytes:
        data = self._out.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def ends(self, timeout_s: float = 60) -> tuple[int, str]:
        """Hang up; the exit status and the standard error. Idempotent."""
        if self._ended is None:
            with contextlib.suppress(OSError):
                self._in.close()
            code = self.process.wait(timeout_s)
            assert self.process.stderr is not None
            with self._out, self.process.stderr as errors:
                self._ended = code, errors.read().decode(errors="replace")
        return self._ended

    def close(self) -> None:
        """See it off, whatever it does; idempotent."""
        if self.process.poll() is None:
            self.process.kill()
        self.ends()


@contextlib.contextmanager
def receiver(state: Path, **environment: str) -> Iterator[Receiver]:
    """A receiving process that is gone when the context ends."""
    made = Receiver(state, **environment)
    try:
        yield made
    finally:
        made.close()


def push(
    state: Path,
    release: Release,
    *,
    offer: Offer | None = None,
    before_commit: Callable[[Receiver], None] = lambda process: None,
    **environment: str,
) -> list[tuple[int, int]]:
    """A whole push; the frames that were sent.

    Raises:
        PushError: the device refused it.
    """
    with receiver(state, **environment) as process:
        frames = process.want(release, offer)
        with contextlib.suppress(BrokenPipeError):
            for file, frame in frames:
                process.send(frame_message(release, file, frame))
            before_commit(process)
        assert process.commit() == release.digest
        code, errors = process.ends()
        assert code == 0, errors
    return frames

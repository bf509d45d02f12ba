"""Devices that exist as far as a transport shows: hundreds of them, in the process that deploys to them.

What they say is what an agent says, in the real codecs: greetings, messages of a push, HTTP. They hash what they
receive against the manifest, and check its order. Nothing runs on them and no time passes there, so what a rollout to
them takes is the host's own cost, and that of checking what it sends. Each has a small file as its disk, so that
whichever worker comes next finds it as it was left.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kedge.errors import UnreachableError
from kedge.transport.address import SshAddress
from kedge.transport.base import Channel, Deadline, Door, Transport, agreed, greet
from kedge_agent.formats.delta import DeltaError, decompress, encodings
from kedge_agent.formats.digests import sha256, sha256_hex
from kedge_agent.formats.frames import frame_count, frame_length
from kedge_agent.formats.manifest import Manifest, ManifestError, parse_manifest
from kedge_agent.formats.offer import parse_offer
from kedge_agent.wire import (
    ENCODING_DELTA,
    ENCODING_RAW,
    FAULTS,
    FRAME_HEADER,
    MESSAGE_HEADER,
    PROTOCOLS_SPOKEN,
    Greeting,
    Message,
    WireError,
    message_limit,
    parse_json,
    render_greeting,
)
from tests.support.simulated_answers import AnswerError, Disk, answer
from tests.support.simulated_channel import MemoryChannel

__all__ = ["SimulatedTransport", "open_simulated", "plant", "simulated_way"]

VERSION = "0.1.0"
_GREETING = render_greeting(Greeting(PROTOCOLS_SPOKEN, VERSION))
_HTTP_END = b"\r\n\r\n"


def simulated_way(folder: Path) -> dict[str, Any]:
    """The way to any device of a simulated fleet whose disks lie in this folder: it has the form of a real one."""
    return SshAddress("simulated.invalid", 22, "nobody", state=str(folder)).to_json()


def plant(folder: Path, device: str, fault: str) -> None:
    """Break a device: `unreachable`; `cut` (each push breaks off after its first frame); `gate` (it refuses)."""
    disk = Disk.read(folder, device)
    disk.fault = fault
    disk.write()


@contextmanager
def open_simulated(device: str, way: Mapping[str, Any]) -> Iterator[Transport]:
    """A transport to a device, in the place of `kedge.fleet.way.open_way`."""
    transport = SimulatedTransport(device, Path(str(way["state"])))
    try:
        yield transport
    finally:
        transport.close()


class SimulatedTransport:
    """A way to one device."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._disk = Disk.read(folder, name)
        self._channels: list[MemoryChannel] = []

    def open_door(self, door: Door, deadline: Deadline) -> Channel:
        """See `Transport.open_door`."""
        return self._open(lambda say: _Http(self._disk, say), deadline)[0]

    def open_receive(self, deadline: Deadline) -> tuple[Channel, int]:
        """See `Transport.open_receive`."""
        return self._open(lambda say: _Receiver(self._disk, say), deadline)

    def open_diagnose(self, words: Sequence[str], deadline: Deadline) -> Channel:
        """Nothing can be diagnosed of what is not there."""
        raise NotImplementedError

    def close(self) -> None:
        """See `Transport.close`."""
        channels, self._channels = self._channels, []
        for channel in channels:
            channel.close()

    def _open(self, make: Callable[[Callable[[bytes], None]], _Reader], deadline: Deadline) -> tuple[Channel, int]:
        if self._disk.fault == "unreachable":
            raise UnreachableError(
                f"{self.name} cannot be reached: No route to host",
                hint="check the address, the link and that sshd runs there",
            )
        channel = MemoryChannel()
        channel.attach(make(channel.say).take)
        channel.say(_GREETING)
        self._channels.append(channel)
        return channel, agreed(greet(channel, self.name, deadline))


class _Reader:
    """Takes bytes as they come, and cuts them into what `_next` wants."""

    def __init__(self, say: Callable[[bytes], None]) -> None:
        self._say = say
        self._buffer = bytearray()

    def take(self, data: memoryview) -> None:
        """What the host sent. OSError: this end hangs up."""
        self._buffer += data
        while self._next():
            pass

    def _next(self) -> bool:
        """Act upon what the buffer begins with, if it is all there."""
        raise NotImplementedError


class _Http(_Reader):
    """A door: requests one after another, on a connection that stays open."""

    def __init__(self, disk: Disk, say: Callable[[bytes], None]) -> None:
        super().__init__(say)
        self._disk = disk

    def _next(self) -> bool:
        end = self._buffer.find(_HTTP_END)
        if end < 0:
            return False
        head, *lines = bytes(self._buffer[:end]).decode("ascii").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size, start = int(headers.get("content-length", 0)), end + len(_HTTP_END)
        if len(self._buffer) < start + size:
            return False
        body = bytes(self._buffer[start : start + size])
        del self._buffer[: start + size]
        method, target, _ = head.split(" ")
        try:
            status, told = 200, answer(self._disk, method, target, parse_json(body) if body else None)
        except AnswerError as error:
            status, told = FAULTS[error.kind].status, {"error": str(error), "hint": error.hint, "kind": error.kind}
        data = told.encode() if isinstance(told, str) else json.dumps(told).encode()
        self._say(f"HTTP/1.1 {status} -\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        return True


class _Receiver(_Reader):
    """A receiving process: OFFER, MANIFEST, FRAMEs and COMMIT, each checked as an agent does."""

    def __init__(self, disk: Disk, say: Callable[[bytes], None]) -> None:
        super().__init__(say)
        self._disk = disk
        self._manifest: Manifest | None = None
        self._missing: list[tuple[int, int]] = []
        self._whole: dict[int, Any] = {}

    def _next(self) -> bool:
        if len(self._buffer) < MESSAGE_HEADER.size:
            return False
        code, size = MESSAGE_HEADER.unpack_from(self._buffer)
        try:
            kind = Message(code)
            if size > message_limit(kind):
                raise WireError(f"{kind.name} of {size} bytes")
            if len(self._buffer) < MESSAGE_HEADER.size + size:
                return False
            with memoryview(self._buffer) as view, view[MESSAGE_HEADER.size : MESSAGE_HEADER.size + size] as payload:
                self._act(kind, payload)
        except (WireError, ManifestError, ValueError, IndexError) as error:
            self._tell(Message.ERROR, json.dumps({"error": str(error), "hint": "", "kind": "bad_input"}).encode())
            raise BrokenPipeError("the push was refused") from error
        del self._buffer[: MESSAGE_HEADER.size + size]
        return True

    def _act(self, kind: Message, payload: memoryview) -> None:
        if kind is Message.OFFER and self._manifest is None:
            parse_offer(payload)
        elif kind is Message.MANIFEST and self._manifest is None:
            self._manifest = parse_manifest(payload)
            self._want(self._manifest)
        elif kind is Message.FRAME and self._manifest is not None:
            self._frame(self._manifest, payload)
        elif kind is Message.COMMIT and self._manifest is not None:
            if self._missing:
                raise WireError(f"the push ended with {len(self._missing)} frames missing")
            self._disk.accept(self._manifest)
            self._tell(Message.DONE, json.dumps({"release": self._manifest.digest}).encode())
        else:
            raise WireError(f"{kind.name} comes out of its order")

    def _want(self, manifest: Manifest) -> None:
        have = self._disk.objects
        asked = [
            {"file": index, "frames": list(range(frame_count(entry.size_bytes)))}
            for index, entry in enumerate(manifest.files)
            if entry.sha256 not in have
        ]
        self._missing = [(each["file"], frame) for each in asked for frame in each["frames"]]
        total = sum(manifest.files[each["file"]].size_bytes for each in asked)
        taken = [each for each in encodings() if each != ENCODING_DELTA]
        more = {"copied": 0, "encodings": taken, "bases": [], "joins": False}
        self._tell(Message.WANT, json.dumps({"files": asked, "bytes": total, **more}).encode())

    def _frame(self, manifest: Manifest, payload: memoryview) -> None:
        file, frame, encoding = FRAME_HEADER.unpack_from(payload)
        if (file, frame) not in self._missing:
            raise WireError(f"frame {frame} of file {file} was not asked for")
        entry = manifest.files[file]
        size = frame_length(entry.size_bytes, frame)
        with payload[FRAME_HEADER.size :] as sent:
            try:
                data = sent if encoding == ENCODING_RAW else decompress(sent, size)
            except DeltaError as error:
                raise WireError(str(error)) from error
            if len(data) != size or sha256_hex(data) != entry.frames[frame]:
                raise WireError(f"frame {frame} of {entry.name} has another hash")
            whole = self._whole.setdefault(file, sha256())
            whole.update(data)
        self._missing.remove((file, frame))
        if frame == frame_count(entry.size_bytes) - 1 and whole.hexdigest() != entry.sha256:
            raise WireError(f"{entry.name} has another hash, or its frames came in another order")
        if self._disk.fault == "cut":
            raise ConnectionResetError("Connection reset by peer")
        self._tell(Message.ACK, FRAME_HEADER.pack(file, frame, encoding))

    def _tell(self, kind: Message, payload: bytes) -> None:
        self._say(MESSAGE_HEADER.pack(kind, len(payload)) + payload)

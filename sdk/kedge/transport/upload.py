"""The host's half of a push: stream the frames the device lacks, collect its acknowledgements."""

from __future__ import annotations

import mmap
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kedge_agent.formats.frames import frame_length
from kedge_agent.formats.manifest import FileEntry
from kedge_agent.formats.offer import Offer
from kedge_agent.wire import (
    ENCODING_RAW,
    FRAME_BYTES,
    FRAME_HEADER,
    MESSAGE_HEADER,
    Message,
    WireError,
    parse_json,
    read_message,
)

from ..errors import IncompatibleError, KedgeError, UnreachableError, error_of_kind
from .base import Channel, Deadline

__all__ = ["Progress", "UploadResult", "upload"]

# Hashing what a slow device has already may take minutes a gigabyte.
_PATIENCE_S = 900.0

Progress = Callable[[int, int], None]
"""Called with bytes acknowledged and bytes to send."""


@dataclass(frozen=True)
class UploadResult:
    """What a push did.

    sent_bytes: of content that the device lacked. wire_bytes: payload that travelled for it, encodings and repetitions
    included. skipped_bytes: of files or frames that were in their place. copied_bytes: that the device made of what it
    had elsewhere. delta_frames: that travelled as a difference. resent_frames: that were sent a second time.
    """

    sent_bytes: int
    wire_bytes: int
    skipped_bytes: int
    copied_bytes: int
    delta_frames: int
    resent_frames: int
    seconds: float


class _Incoming(threading.Thread):
    """Reads the device's messages while we send, so that its refusal is heard at once."""

    def __init__(self, channel: Channel, device: str) -> None:
        super().__init__(daemon=True)
        self._reader = channel.makefile("rb")
        self._device = device
        self._changed = threading.Condition()
        self._want: Any = None
        self._done = False
        self._error: KedgeError | None = None
        self.acknowledged = 0
        self.on_ack: Callable[[int, int], None] = lambda file, frame: None

    def run(self) -> None:
        """Until DONE, ERROR or the end of the stream."""
        try:
            while not self._done:
                kind, payload = read_message(self._exactly)
                self._take(kind, payload)
        except KedgeError as error:
            self._fail(error)
        except (WireError, struct.error, AttributeError) as error:
            self._fail(IncompatibleError(f"{self._device}: {error}", hint="provision the device again"))
        except (OSError, EOFError) as error:
            reason = str(error) or "the connection closed"
            self._fail(UnreachableError(f"{self._device}: {reason} during the push", hint="run it again: it resumes"))
        except Exception as error:  # a thread's exception would vanish
            self._fail(UnreachableError(f"{self._device}: {type(error).__name__}: {error}"))

    def _take(self, kind: Message, payload: memoryview) -> None:
        with self._changed:
            if kind is Message.WANT:
                self._want = parse_json(payload)
            elif kind is Message.ACK:
                file, frame, _ = FRAME_HEADER.unpack(payload)
                self.acknowledged += 1
                self.on_ack(file, frame)
            elif kind is Message.DONE:
                self._done = True
            elif kind is Message.ERROR:
                body = parse_json(payload)
                raise error_of_kind(
                    body.get("kind"), f"{self._device}: {body.get('error')}", str(body.get("hint") or "")
                )
            else:
                raise WireError(f"unexpected message {kind.name}")
            self._changed.notify_all()

    def _exactly(self, size: int) -> bytes:
        data = self._reader.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def _fail(self, error: KedgeError) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def check(self) -> None:
        """Raise what the device reported, if it did."""
        with self._changed:
            if self._error is not None:
                raise self._error

    def wait_for(self, condition: Callable[[], Any], deadline: Deadline) -> Any:
        """Wait until `condition()` is truthy; return it. Raises what the device reports meanwhile."""
        with self._changed:
            while self._error is None and not condition():
                self._changed.wait(min(deadline.remaining(), 1.0))
            if self._error is not None:
                raise self._error
            return condition()

    def want(self) -> Any:
        """The device's WANT, None until it came."""
        return self._want

    def done(self) -> bool:
        """Whether DONE came."""
        return self._done


def upload(
    channel: Channel,
    device: str,
    manifest: bytes,
    files: Sequence[tuple[FileEntry, Path]],
    progress: Progress = lambda done, total: None,
    *,
    offer: Offer | None = None,
    protocol: int,
    limit_bytes_per_s: int | None = None,
) -> UploadResult:
    """Push a release through a channel to a `receive` process.

    Args:
        files: entries in manifest order, each with the path of its bytes on this machine.
        offer: what comes with the manifest; None: nothing does.
        protocol: that the channel speaks (`Transport.open_receive`).
        limit_bytes_per_s: send no faster; None: as fast as it goes.

    Raises:
        KedgeError: what the device reports (no space, integrity, busy), or that the link broke.
            Frames acknowledged by then are on the device's disk and are not sent again.
    """
    begin = time.monotonic()
    incoming = _Incoming(channel, device)
    channel.settimeout(_PATIENCE_S)
    try:
        _send(channel, incoming, Message.MANIFEST, [manifest])
        incoming.start()
        want = incoming.wait_for(incoming.want, Deadline.after(_PATIENCE_S, f"{device}: checking what it has"))
        frames = _wanted(want, files)
        total = sum(frame_length(files[file][0].size_bytes, frame) for file, frame in frames)
        acknowledged = 0

        def on_ack(file: int, frame: int) -> None:
            nonlocal acknowledged
            acknowledged += frame_length(files[file][0].size_bytes, frame)
            progress(acknowledged, total)

        incoming.on_ack = on_ack
        progress(0, total)
        _send_frames(channel, incoming, files, frames)
        _send(channel, incoming, Message.COMMIT, [])
        incoming.wait_for(incoming.done, Deadline.after(_PATIENCE_S, f"{device}: accepting the release"))
    except OSError as error:
        # What the device said before it hung up explains more than the broken pipe does.
        incoming.join(2.0) if incoming.is_alive() else None
        incoming.check()
        raise UnreachableError(f"{device}: the push broke off: {error}", hint="run it again: it resumes") from error
    finally:
        channel.close()
    everything = sum(entry.size_bytes for entry, _ in files)
    return UploadResult(total, total, everything - total, 0, 0, 0, time.monotonic() - begin)


def _wanted(want: Any, files: Sequence[tuple[FileEntry, Path]]) -> list[tuple[int, int]]:
    try:
        frames = [(int(item["file"]), int(frame)) for item in want["files"] for frame in item["frames"]]
        for file, frame in frames:
            if file < 0:
                raise IndexError(file)
            frame_length(files[file][0].size_bytes, frame)
        if len(set(frames)) != len(frames):
            raise ValueError("a frame twice")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise IncompatibleError("the device asks for frames the release does not have") from error
    return frames


def _send_frames(
    channel: Channel,
    incoming: _Incoming,
    files: Sequence[tuple[FileEntry, Path]],
    frames: Sequence[tuple[int, int]],
) -> None:
    opened: dict[int, memoryview] = {}
    with ExitStack() as stack:
        for file, frame in frames:
            entry, path = files[file]
            if file not in opened:
                handle = stack.enter_context(path.open("rb"))
                data = stack.enter_context(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))
                opened[file] = stack.enter_context(memoryview(data))
            start = frame * FRAME_BYTES
            with opened[file][start : start + frame_length(entry.size_bytes, frame)] as view:
                _send(channel, incoming, Message.FRAME, [FRAME_HEADER.pack(file, frame, ENCODING_RAW), view])


def _send(channel: Channel, incoming: _Incoming, kind: Message, parts: Sequence[bytes | memoryview]) -> None:
    incoming.check()
    channel.sendall(MESSAGE_HEADER.pack(kind, sum(len(part) for part in parts)))
    for part in parts:
        channel.sendall(part)

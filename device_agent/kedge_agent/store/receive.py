"""Receive a parcel over standard input, frame by frame, and accept it when every byte is proven.

A frame is acknowledged only after fdatasync, so an acknowledged frame survives a power cut. What an interrupted push
left behind is hashed again when the push resumes: no separate record of progress could disagree with the bytes.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import AgentError
from ..failpoints import reached
from ..formats.delta import encodings
from ..formats.manifest import FileEntry, ManifestError
from ..formats.offer import AGENT, Offer, parse_offer
from ..wire import ENCODING_DELTA, ENCODING_RAW, FRAME_HEADER, MESSAGE_HEADER, Message, WireError, message_limit
from .accept import ReleaseParcel
from .agents import AgentParcel
from .files import exclusive_lock, fsync_directory, make_directory, translate_os_error
from .holdings import Frames, copy_frames, find_bases, find_joined, missing_bytes, staged
from .incoming import IncomingFrames
from .joining import join
from .layout import Layout
from .parcel import Parcel
from .proof import RunningProof
from .room import room_for
from .rules import ReleaseRules

__all__ = ["receive"]


def receive(layout: Layout, source: BinaryIO, sink: BinaryIO, rules: ReleaseRules = ReleaseRules()) -> str:  # noqa: B008
    """Run the agent's half of a push; returns the digest of what was accepted.

    Args:
        rules: what the device's owner decided about releases.

    Raises:
        AgentError: the push failed; it has also been reported to the host as an ERROR message.
    """
    voice = _Voice(sink)
    try:
        return _Push(layout, rules, _Ear(source), voice).run()
    except Exception as error:
        raise voice.fail(error) from error


class _Voice:
    """Says messages, from any thread, each whole; and says one error at most."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self._guard = threading.Lock()
        self._error: AgentError | None = None

    def send(self, kind: Message, payload: bytes) -> None:
        """Say a message; nothing is said after an error."""
        with self._guard:
            if self._error is not None:
                return
            self._say(kind, payload)

    def _say(self, kind: Message, payload: bytes) -> None:
        self._sink.write(MESSAGE_HEADER.pack(kind, len(payload)) + payload)
        self._sink.flush()

    def fail(self, error: Exception) -> AgentError:
        """The error as the host was told it; the first one counts."""
        with self._guard:
            if self._error is None:
                self._error = _reported(error)
                # Whoever hung up is not there to be told.
                with contextlib.suppress(OSError, ValueError):
                    self._say(Message.ERROR, json.dumps(self._error.to_json()).encode())
            return self._error


def _reported(error: Exception) -> AgentError:
    if isinstance(error, AgentError):
        return error
    if isinstance(error, (WireError, ManifestError)):
        return AgentError(f"push refused: {error}", kind="bad_input", hint="build the release again")
    if isinstance(error, (EOFError, BrokenPipeError)):
        return AgentError("the host went away during the push", kind="bad_input", hint="run it again")
    if isinstance(error, OSError):
        return translate_os_error(error, "receiving the release")
    return AgentError(f"receiving failed: {type(error).__name__}: {error}", kind="internal")


class _Ear:
    """Reads messages: the head of one first, then as much of its payload at a time as whoever asks has room for."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source

    def head(self) -> tuple[Message, int]:
        """Type and length of the next message.

        Raises:
            WireError: there is no such type, or it may not be as long. EOFError: nothing more comes.
        """
        code, length = MESSAGE_HEADER.unpack(self.exactly(MESSAGE_HEADER.size))
        try:
            kind = Message(code)
        except ValueError:
            raise WireError(f"unknown message type {code}") from None
        if length > message_limit(kind):
            raise WireError(f"{kind.name} of {length} bytes exceeds the limit of {message_limit(kind)}")
        return kind, length

    def exactly(self, size: int) -> bytes:
        """So many bytes."""
        buffer = bytearray(size)
        self.fill(memoryview(buffer))
        return bytes(buffer)

    def fill(self, room: memoryview) -> memoryview:
        """The room, full of what came next."""
        filled = 0
        while filled < len(room):
            got = self._source.readinto(room[filled:])  # type: ignore[attr-defined]
            if not got:
                raise EOFError
            filled += got
        return room


class _Push:
    """One push: OFFER (from protocol 2 on), MANIFEST, FRAMEs and COMMIT, in this order."""

    def __init__(self, layout: Layout, rules: ReleaseRules, ear: _Ear, voice: _Voice) -> None:
        self._layout = layout
        self._rules = rules
        self._ear = ear
        self._voice = voice

    def run(self) -> str:
        """All of it; the digest of what was accepted, or joined."""
        kind, size = self._ear.head()
        offer: Offer | None = None
        if kind is Message.OFFER:
            offer = parse_offer(self._ear.exactly(size))
            kind, size = self._ear.head()
        if kind is not Message.MANIFEST:
            raise WireError(f"expected MANIFEST, got {kind.name}")
        parcel = self._parcel(self._ear.exactly(size), offer or Offer())
        reached("receive.offered")
        if offer is not None and offer.join:
            join(self._layout, parcel, offer.encodings, self._voice.send, self._voice.fail, self._take)
            return parcel.digest
        staging = self._layout.staging(parcel.digest)
        # Before anything is locked: what is refused leaves nothing, and keeps nobody waiting. `accept` judges again.
        parcel.judge()
        with parcel.lock():
            make_directory(staging)
            # The lock goes with the staging folder. Whoever locks the removed file finds what was accepted, because it
            # looks only once it holds the lock.
            busy = f"{parcel.label} is being pushed by somebody else"
            with (
                exclusive_lock(staging / ".lock", busy),
                room_for(self._layout, self._rules, parcel, staging) as missing,
            ):
                proven = self._gather(parcel, staging, missing, None if offer is None else offer.encodings)
                reached("receive.committed")
                parcel.accept(staging, proven)
        # The locks are free by now: what the host does next may need them.
        self._voice.send(Message.DONE, json.dumps({"release": parcel.digest}).encode())
        return parcel.digest

    def _parcel(self, data: bytes, offer: Offer) -> Parcel:
        make = AgentParcel if offer.kind == AGENT else ReleaseParcel
        return make(self._layout, self._rules, data, offer)

    def _gather(
        self, parcel: Parcel, staging: Path, missing: Frames, offered: tuple[int, ...] | None
    ) -> frozenset[str]:
        """Make or receive the missing frames, until COMMIT.

        Args:
            offered: encodings that the sender can send; None: it speaks protocol 1.

        Returns:
            sha256 of the files that gathered frames and have been read whole; all that was written to them is on disk.
        """
        files = parcel.files
        with contextlib.ExitStack() as stack:
            handles = {
                file: stack.enter_context(staged(staging / files[file].sha256, files[file]))
                for file in sorted({file for file, _ in missing})
            }
            # A frame that is acknowledged must be found again by its file's name.
            fsync_directory(staging)
            reached("receive.reserved")
            copied = copy_frames(self._layout, files, staging, handles, missing)
            want = _want(files, missing)
            taken: tuple[int, ...] = (ENCODING_RAW,)
            bases: dict[int, list[FileEntry]] = {}
            if offered is not None:
                taken = tuple(each for each in encodings() if each in offered)
                if ENCODING_DELTA in taken:
                    bases = find_bases(self._layout, files, missing, parcel.relatives())
                want |= {"copied": copied, "encodings": taken, "bases": _bases(bases), "joins": True}
            self._voice.send(Message.WANT, json.dumps(want).encode())
            proof = RunningProof(files, handles, missing)
            stack.callback(proof.close)
            incoming = IncomingFrames(
                self._layout,
                files,
                staging,
                handles,
                missing,
                bases,
                taken,
                self._voice.send,
                self._voice.fail,
                landed=proof.landed,
            )
            stack.callback(incoming.close)
            self._take(incoming)
            find_joined(files, staging, handles, missing)
            if missing:
                raise WireError(f"the push ended with {len(missing)} frames missing")
            return proof.finish()

    def _take(self, incoming: IncomingFrames) -> None:
        """Take FRAMEs until COMMIT, and until they are on the disk."""
        while (size := self._next_frame()) is not None:
            incoming.begin(self._ear.exactly(FRAME_HEADER.size), size)
            while size:
                room = incoming.room()
                data = self._ear.fill(memoryview(room)[:size])
                incoming.take(data, room)
                size -= len(data)
        incoming.finish()

    def _next_frame(self) -> int | None:
        """How many bytes follow the header of the next FRAME; None at COMMIT."""
        kind, size = self._ear.head()
        if kind is Message.COMMIT and size == 0:
            return None
        if kind is not Message.FRAME or size < FRAME_HEADER.size:
            raise WireError(f"expected FRAME or COMMIT, got {kind.name} of {size} bytes")
        return size - FRAME_HEADER.size


def _want(files: Sequence[FileEntry], missing: Frames) -> dict[str, Any]:
    by_file: dict[int, list[int]] = {}
    for file, frame in missing:
        by_file.setdefault(file, []).append(frame)
    return {
        "files": [{"file": file, "frames": frames} for file, frames in by_file.items()],
        "bytes": missing_bytes(files, missing),
    }


def _bases(bases: dict[int, list[FileEntry]]) -> list[dict[str, Any]]:
    return [
        {"file": file, "objects": [{"sha256": entry.sha256, "bytes": entry.size_bytes} for entry in entries]}
        for file, entries in bases.items()
    ]

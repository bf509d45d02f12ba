"""Receive a parcel over standard input, frame by frame, and accept it when every byte is proven.

A frame is acknowledged only after fdatasync, so an acknowledged frame survives a power cut. What an interrupted push
left behind is hashed again when the push resumes: no separate record of progress could disagree with the bytes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import AgentError
from ..failpoints import reached
from ..formats.delta import encodings
from ..formats.manifest import FileEntry, ManifestError
from ..formats.offer import Offer, parse_offer
from ..wire import ENCODING_DELTA, ENCODING_RAW, MESSAGE_HEADER, Message, WireError, read_message
from .accept import ReleaseParcel
from .files import exclusive_lock, fsync_directory, make_directory, translate_os_error
from .holdings import Frames, copy_frames, find_bases, find_missing, missing_bytes, reserved_bytes, staged
from .incoming import IncomingFrames
from .layout import Layout
from .locks import using_store
from .parcel import Parcel
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
    """Reads messages. A payload lies in the buffer that was given for it, or else in one of its own."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._header = memoryview(bytearray(MESSAGE_HEADER.size))

    def hear(self, buffer: bytearray | None = None) -> tuple[Message, memoryview]:
        """The next message.

        Raises:
            WireError: it is none. EOFError: there is none.
        """

        def exactly(size: int) -> memoryview:
            if size == len(self._header):
                out = self._header
            elif buffer is not None and size <= len(buffer):
                out = memoryview(buffer)[:size]
            else:
                out = memoryview(bytearray(size))
            filled = 0
            while filled < size:
                got = self._source.readinto(out[filled:])  # type: ignore[attr-defined]
                if not got:
                    raise EOFError
                filled += got
            return out

        return read_message(exactly)


class _Push:
    """One push: OFFER (from protocol 2 on), MANIFEST, FRAMEs and COMMIT, in this order."""

    def __init__(self, layout: Layout, rules: ReleaseRules, ear: _Ear, voice: _Voice) -> None:
        self._layout = layout
        self._rules = rules
        self._ear = ear
        self._voice = voice

    def run(self) -> str:
        """All of it; the digest of what was accepted."""
        kind, payload = self._ear.hear()
        offer: Offer | None = None
        if kind is Message.OFFER:
            offer = parse_offer(payload)
            kind, payload = self._ear.hear()
        if kind is not Message.MANIFEST:
            raise WireError(f"expected MANIFEST, got {kind.name}")
        parcel = self._parcel(bytes(payload), offer or Offer())
        reached("receive.offered")
        staging = self._layout.staging(parcel.digest)
        with parcel.lock():
            parcel.judge()
            make_directory(staging)
            # The lock goes with the staging folder. Whoever locks the removed file finds what was accepted, because it
            # looks only once it holds the lock.
            busy = f"{parcel.label} is being pushed by somebody else"
            with exclusive_lock(staging / ".lock", busy), self._room(parcel, staging) as missing:
                self._gather(parcel, staging, missing, None if offer is None else offer.encodings)
                reached("receive.committed")
                parcel.accept(staging)
        # The locks are free by now: what the host does next may need them.
        self._voice.send(Message.DONE, json.dumps({"release": parcel.digest}).encode())
        return parcel.digest

    def _parcel(self, data: bytes, offer: Offer) -> Parcel:
        return ReleaseParcel(self._layout, self._rules, data, offer)

    @contextlib.contextmanager
    def _room(self, parcel: Parcel, staging: Path) -> Iterator[Frames]:
        """The frames that are missing, with room for them; while the context is open, what is here stays here."""
        with using_store(self._layout):
            missing = find_missing(self._layout, parcel.files, staging)
            need = missing_bytes(parcel.files, missing) - reserved_bytes(parcel.files, staging, missing)
            _require_space(staging, need)
            yield missing

    def _gather(self, parcel: Parcel, staging: Path, missing: Frames, offered: tuple[int, ...] | None) -> None:
        """Make or receive the missing frames, until COMMIT.

        Args:
            offered: encodings that the sender can send; None: it speaks protocol 1.
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
                want |= {"copied": copied, "encodings": taken, "bases": _bases(bases)}
            self._voice.send(Message.WANT, json.dumps(want).encode())
            incoming = IncomingFrames(
                self._layout, files, staging, handles, missing, bases, taken, self._voice.send, self._voice.fail
            )
            stack.callback(incoming.close)
            while True:
                buffer = incoming.buffer()
                kind, payload = self._ear.hear(buffer)
                if kind is Message.COMMIT:
                    break
                if kind is not Message.FRAME:
                    raise WireError(f"expected FRAME or COMMIT, got {kind.name}")
                incoming.take(payload, buffer)
            incoming.finish()


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


_SPARE_BYTES = 16 * 1024 * 1024


def _require_space(folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if need > 0 and free < need + _SPARE_BYTES:
        raise AgentError(
            f"the release needs {need} bytes and {_SPARE_BYTES} to spare; {folder} has {free} free",
            kind="space",
            hint="free disk space on the device, or put the agent's state folder on a larger disk",
        )

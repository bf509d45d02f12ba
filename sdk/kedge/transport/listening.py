"""What a device says during a push, heard while we send."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kedge_agent.formats.frames import frame_length
from kedge_agent.formats.manifest import FileEntry, is_digest
from kedge_agent.wire import ENCODING_RAW, FRAME_HEADER, Message, WireError, parse_json, read_message

from ..errors import IncompatibleError, KedgeError, UnreachableError
from .base import Channel, Deadline, agent_hint, told_error

__all__ = ["Listener", "Want", "parse_want"]

_MAX_BASES = 16


@dataclass(frozen=True)
class Want:
    """What a device asks for.

    frames: by file and index, in its order. copied_bytes: that it made of what it has elsewhere. encodings: that it
    takes. bases: sha256 and size of objects that it has, by the file that they may be like, the likest first. joins:
    whether more channels may bring frames.
    """

    frames: tuple[tuple[int, int], ...]
    copied_bytes: int
    encodings: tuple[int, ...]
    bases: dict[int, tuple[tuple[str, int], ...]]
    joins: bool = False


def parse_want(body: Any, files: Sequence[FileEntry], protocol: int) -> Want:
    """Check a WANT against what the release has.

    Raises:
        IncompatibleError: it asks for what there is not.
    """
    try:
        frames = tuple((int(item["file"]), int(frame)) for item in body["files"] for frame in item["frames"])
        for file, frame in frames:
            if file < 0:
                raise IndexError(file)
            frame_length(files[file].size_bytes, frame)
        if len(set(frames)) != len(frames):
            raise ValueError("a frame twice")
        if protocol == 1:
            return Want(frames, 0, (ENCODING_RAW,), {})
        bases = {
            int(item["file"]): tuple((str(each["sha256"]), int(each["bytes"])) for each in item["objects"][:_MAX_BASES])
            for item in body["bases"]
        }
        if not all(is_digest(sha256) for objects in bases.values() for sha256, _ in objects):
            raise ValueError("a base without a hash")
        taken = tuple(int(each) for each in body["encodings"])
        copied = int(body["copied"])
        if not 0 <= copied <= sum(entry.size_bytes for entry in files):
            raise ValueError("copied more than there is")
        return Want(frames, copied, taken, bases, body.get("joins") is True)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise IncompatibleError("the device asks for frames the release does not have") from error


class Listener(threading.Thread):
    """Reads the device's messages while we send, so that its refusal is heard at once.

    Args:
        acknowledged: told of each frame that is on the device's disk, by file and index.
        again: told of each frame that the device wants raw.
        changed: held while these are told; of listeners that have it in common, one tells at a time. None: its own.
    """

    def __init__(
        self,
        channel: Channel,
        device: str,
        acknowledged: Callable[[int, int], None],
        again: Callable[[int, int], None],
        changed: threading.Condition | None = None,
    ) -> None:
        super().__init__(daemon=True)
        self._channel = channel
        self._device = device
        self._acknowledged = acknowledged
        self._again = again
        self._changed = changed or threading.Condition()
        self._want: Any = None
        self._done = False
        self._expected: str | None = None
        self._error: KedgeError | None = None

    def run(self) -> None:
        """Until DONE, ERROR or the end of the stream."""
        self._reader = self._channel.makefile("rb")
        try:
            while not self._done:
                kind, payload = read_message(self._exactly)
                self._take(kind, payload)
        except KedgeError as error:
            self._fail(error)
        except (WireError, struct.error, AttributeError) as error:
            self._fail(IncompatibleError(f"{self._device}: {error}", hint=agent_hint(self._device)))
        except (OSError, EOFError) as error:
            reason = str(error) or "the connection closed"
            self._fail(UnreachableError(f"{self._device}: {reason} during the push", hint="run it again: it resumes"))
        except Exception as error:  # a thread's exception would vanish
            # Not the link: the same push would end in the same way.
            message = f"{self._device}: what it says makes no sense: {type(error).__name__}: {error}"
            self._fail(IncompatibleError(message, hint=agent_hint(self._device)))
        finally:
            # A socket that was closed stays open for as long as a file made of it is; and paramiko's file must not live
            # to the interpreter's end, as it would in the traceback of an error that we keep.
            self._reader.close()
            del self._reader

    def _take(self, kind: Message, payload: memoryview) -> None:
        with self._changed:
            if kind is Message.WANT and self._want is None:
                self._want = parse_json(payload)
                if not isinstance(self._want, dict):
                    raise WireError("WANT is no object")
            elif kind is Message.ACK:
                self._acknowledged(*FRAME_HEADER.unpack(payload)[:2])
            elif kind is Message.AGAIN:
                self._again(*FRAME_HEADER.unpack(payload)[:2])
            elif kind is Message.DONE:
                told = parse_json(payload)
                if self._expected is None or not isinstance(told, dict) or told.get("release") != self._expected:
                    raise WireError("DONE of something else than was committed")
                self._done = True
            elif kind is Message.ERROR:
                body = parse_json(payload)
                raise told_error(
                    self._device,
                    str(body.get("kind")),
                    str(body.get("error"))[:1000],
                    str(body.get("hint") or "")[:1000],
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

    def has_want(self) -> bool:
        """Whether WANT came."""
        return self._want is not None

    def want(self) -> Any:
        """The device's WANT, None until it came."""
        return self._want

    def expect(self, digest: str) -> None:
        """From now on DONE may come, of what has this name."""
        with self._changed:
            self._expected = digest

    def done(self) -> bool:
        """Whether DONE came."""
        return self._done

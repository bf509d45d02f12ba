"""Frames on their way to the disk: while one is read, the one before it is decoded, hashed and written, and
those before that are made durable. A frame is acknowledged when it is on the disk, never before."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import AgentError
from ..failpoints import reached
from ..formats.delta import BASE_INDEX, DeltaError, decompress, slice_of
from ..formats.digests import sha256_hex
from ..formats.frames import frame_length
from ..formats.manifest import FileEntry
from ..wire import ENCODING_DELTA, ENCODING_RAW, FRAME_BYTES, FRAME_HEADER, Message, WireError
from .holdings import Frames, sync_staged
from .layout import Layout

__all__ = ["IncomingFrames"]

# Frames being read, decoded or written; each has 8 MiB. Rebuilding one from a difference takes 72 MiB for its moment.
_BUFFERS = 4

Send = Callable[[Message, bytes], None]


@dataclass(frozen=True)
class _Frame:
    payload: memoryview
    buffer: bytearray


@dataclass(frozen=True)
class _Written:
    file: int
    frame: int
    encoding: int


class IncomingFrames:
    """Takes frames from the one thread that reads messages; two threads of its own do the rest.

    Args:
        handles: open files that gather the frames, by the file's index.
        wanted: hashes of the frames that may come; emptied as they do.
        bases: objects that differences may be made against, by the file's index.
        taken: encodings that frames may have.
        send: sends a message to the host, from any thread.
        failed: told, once and from any thread, why nothing more will be taken.
    """

    def __init__(
        self,
        layout: Layout,
        files: Sequence[FileEntry],
        staging: Path,
        handles: Mapping[int, int],
        wanted: Frames,
        bases: Mapping[int, Sequence[FileEntry]],
        taken: tuple[int, ...],
        send: Send,
        failed: Callable[[Exception], object],
    ) -> None:
        self._layout = layout
        self._files = files
        self._staging = staging
        self._handles = handles
        self._wanted = wanted
        self._bases = bases
        self._taken = taken
        self._send = send
        self._failed = failed
        self._raw_only: set[tuple[int, int]] = set()
        self._failure: Exception | None = None
        self._guard = threading.Lock()
        self._free: queue.SimpleQueue[bytearray | None] = queue.SimpleQueue()
        for _ in range(_BUFFERS):
            self._free.put(bytearray(FRAME_BYTES + FRAME_HEADER.size))
        self._arrived: queue.SimpleQueue[_Frame | None] = queue.SimpleQueue()
        self._written: queue.SimpleQueue[_Written | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._write_all, self._sync_all)]
        for thread in self._threads:
            thread.start()

    def buffer(self) -> bytearray:
        """Room for the payload of one FRAME; waits until there is some.

        Raises:
            Exception: what `failed` was told.
        """
        buffer = self._free.get()
        if buffer is None:
            self._free.put(None)
            self._check()
            raise EOFError
        return buffer

    def take(self, payload: memoryview, buffer: bytearray) -> None:
        """A FRAME's payload, which lies in this buffer. Raises as `buffer`."""
        self._check()
        self._arrived.put(_Frame(payload, buffer))

    def finish(self) -> None:
        """Wait until every frame that was taken is on the disk. Raises as `buffer`, and when frames are missing."""
        self.close()
        self._check()
        if self._wanted:
            raise WireError(f"the push ended with {len(self._wanted)} frames missing")

    def close(self) -> None:
        """Let what has arrived reach the disk, and end; idempotent."""
        if self._threads:
            self._arrived.put(None)
            for thread in self._threads:
                thread.join()
            self._threads = []

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _fail(self, error: Exception) -> None:
        with self._guard:
            if self._failure is not None:
                return
            self._failure = error
        self._failed(error)
        self._free.put(None)

    def _write_all(self) -> None:
        try:
            while (frame := self._arrived.get()) is not None:
                if self._failure is None:
                    self._write(frame.payload)
                self._free.put(frame.buffer)
        except Exception as error:  # a thread's exception would vanish
            self._fail(error)
        finally:
            self._written.put(None)

    def _write(self, payload: memoryview) -> None:
        if len(payload) < FRAME_HEADER.size:
            raise WireError(f"expected FRAME or COMMIT, got FRAME of {len(payload)} bytes")
        file, frame, encoding = FRAME_HEADER.unpack_from(payload)
        sha = self._wanted.get((file, frame))
        if sha is None or encoding not in ((ENCODING_RAW,) if (file, frame) in self._raw_only else self._taken):
            raise WireError(f"frame {frame} of file {file} (encoding {encoding}) was not asked for")
        entry = self._files[file]
        data = self._decoded(file, frame, encoding, payload[FRAME_HEADER.size :])
        if data is None or sha256_hex(data) != sha:
            if encoding != ENCODING_RAW:
                # What it was made against is not the same on both sides: the frame itself is asked for.
                self._raw_only.add((file, frame))
                self._send(Message.AGAIN, FRAME_HEADER.pack(file, frame, ENCODING_RAW))
                return
            raise AgentError(
                f"frame {frame} of {entry.name} arrived with other bytes than the manifest names",
                kind="integrity",
                hint="check the release on the host: kedge release verify",
            )
        view, offset = memoryview(data), frame * FRAME_BYTES
        while view:
            written = os.pwrite(self._handles[file], view, offset)
            view, offset = view[written:], offset + written
        del self._wanted[file, frame]
        reached("receive.written")
        self._written.put(_Written(file, frame, encoding))

    def _decoded(self, file: int, frame: int, encoding: int, data: memoryview) -> bytes | memoryview | None:
        """The frame's bytes; None where they cannot be made of what came."""
        size = frame_length(self._files[file].size_bytes, frame)
        if encoding == ENCODING_RAW:
            return data if len(data) == size else None
        prefix = None
        if encoding == ENCODING_DELTA:
            bases = self._bases.get(file, ())
            if len(data) < BASE_INDEX.size or BASE_INDEX.unpack_from(data)[0] >= len(bases):
                raise WireError(f"frame {frame} of file {file} is a difference to what was not offered")
            base = bases[BASE_INDEX.unpack_from(data)[0]]
            data = data[BASE_INDEX.size :]
            offset, length = slice_of(frame, base.size_bytes)
            try:
                with self._layout.object(base.sha256).open("rb", buffering=0) as handle:
                    prefix = os.pread(handle.fileno(), length, offset)
            except OSError:
                return None
        try:
            return decompress(data, size, prefix)
        except DeltaError:
            return None

    def _sync_all(self) -> None:
        try:
            ended = False
            while not ended:
                # One fdatasync serves all that was written while the one before it ran.
                waiting = [self._written.get()]
                while not self._written.empty():
                    waiting.append(self._written.get())
                ended = None in waiting
                written = [each for each in waiting if each is not None]
                for file in sorted({each.file for each in written}):
                    sync_staged(self._handles[file], self._staging / self._files[file].sha256)
                for each in written:
                    self._send(Message.ACK, FRAME_HEADER.pack(each.file, each.frame, each.encoding))
                    reached("receive.acknowledged")
        except Exception as error:  # as above
            self._fail(error)

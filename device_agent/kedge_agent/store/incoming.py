"""Frames on their way to the disk: while one is read, the one before it is decoded, hashed and written, and
those before that are made durable. A frame is acknowledged when it is on the disk, never before."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import AgentError
from ..failpoints import reached
from ..formats.delta import BASE_INDEX, DeltaError, decompress, slice_of
from ..formats.digests import sha256, sha256_hex
from ..formats.frames import frame_length
from ..formats.manifest import FileEntry
from ..wire import ENCODING_DELTA, ENCODING_RAW, FRAME_BYTES, FRAME_HEADER, Message, WireError
from .holdings import Frames, sync_staged
from .layout import Layout

__all__ = ["IncomingFrames"]

# Small enough to stay in the processor's cache from the socket to the disk, and to be no burden on a small device.
_CHUNK_BYTES = 1 << 20
_CHUNKS = 4

Send = Callable[[Message, bytes], None]


@dataclass(frozen=True)
class _Head:
    """What a FRAME begins with, and how many bytes follow."""

    file: int
    frame: int
    encoding: int
    size: int


@dataclass(frozen=True)
class _Chunk:
    data: memoryview
    buffer: bytearray


@dataclass
class _Frame:
    """A frame of which some has arrived. digest: of raw bytes. packed: what is not written as it comes."""

    head: _Head
    left: int
    digest: Any
    packed: bytearray


class IncomingFrames:
    """Takes frames from the one thread that reads messages; two threads of its own do the rest.

    Args:
        handles: open files that gather the frames, by the file's index.
        wanted: hashes of the frames that may come; emptied as they do.
        bases: objects that differences may be made against, by the file's index.
        taken: encodings that frames may have.
        send: sends a message to the host, from any thread.
        failed: told, once and from any thread, why nothing more will be taken.
        led: of a process that joined a push; called with a file before a frame of it is written, and before it is
            acknowledged. It raises where nobody gathers that file any more. Frames are then proven before they are
            written: what lies in their place may be good.
        landed: told each file and frame that is on the disk.
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
        led: Callable[[int], object] | None = None,
        *,
        landed: Callable[[int, int], object] = lambda file, frame: None,
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
        self._led = led
        self._landed = landed
        self._raw_only: set[tuple[int, int]] = set()
        self._failure: Exception | None = None
        self._guard = threading.Lock()
        self._free: queue.SimpleQueue[bytearray | None] = queue.SimpleQueue()
        for _ in range(_CHUNKS):
            self._free.put(bytearray(_CHUNK_BYTES))
        self._arrived: queue.SimpleQueue[_Head | _Chunk | None] = queue.SimpleQueue()
        self._frame: _Frame | None = None
        self._written: queue.SimpleQueue[_Head | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._take_all, self._sync_all)]
        for thread in self._threads:
            thread.start()

    def begin(self, header: bytes | memoryview, size: int) -> None:
        """The header of a FRAME after which `size` bytes come.

        Raises:
            Exception: what `failed` was told.
        """
        self._check()
        file, frame, encoding = FRAME_HEADER.unpack(header)
        self._arrived.put(_Head(file, frame, encoding, size))

    def room(self) -> bytearray:
        """Room for the next bytes; waits until there is some. Raises as `begin`."""
        buffer = self._free.get()
        if buffer is None:
            self._free.put(None)
            self._check()
            raise EOFError
        return buffer

    def take(self, data: memoryview, buffer: bytearray) -> None:
        """The next bytes of the frame that has begun; they lie in this room."""
        self._arrived.put(_Chunk(data, buffer))

    def finish(self) -> None:
        """Wait until every frame that was taken is on the disk. Raises as `begin`."""
        self.close()
        self._check()

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

    def _take_all(self) -> None:
        try:
            while (item := self._arrived.get()) is not None:
                if self._failure is None:
                    self._begin(item) if isinstance(item, _Head) else self._add(item.data)
                if isinstance(item, _Chunk):
                    self._free.put(item.buffer)
        except Exception as error:  # a thread's exception would vanish
            self._fail(error)
        finally:
            self._written.put(None)

    def _begin(self, head: _Head) -> None:
        key = head.file, head.frame
        taken = (ENCODING_RAW,) if key in self._raw_only else self._taken
        if key not in self._wanted or head.encoding not in taken:
            raise WireError(f"frame {head.frame} of file {head.file} (encoding {head.encoding}) was not asked for")
        size = frame_length(self._files[head.file].size_bytes, head.frame)
        if head.encoding == ENCODING_RAW and head.size != size:
            raise self._other_bytes(head)
        if not 0 < head.size <= size + BASE_INDEX.size:
            raise WireError(f"frame {head.frame} of file {head.file} came in {head.size} bytes")
        self._frame = _Frame(head, head.size, sha256(), bytearray())

    def _add(self, data: memoryview) -> None:
        frame = self._frame
        assert frame is not None
        if frame.head.encoding == ENCODING_RAW:
            frame.digest.update(data)
        if frame.head.encoding == ENCODING_RAW and self._led is None:
            # Not proven yet; but what is there in its place is not good either, and only proven frames count.
            self._put(frame.head, data, frame.head.size - frame.left)
        else:
            frame.packed += data
        frame.left -= len(data)
        if not frame.left:
            self._frame = None
            self._prove(frame)

    def _prove(self, frame: _Frame) -> None:
        head = frame.head
        data: bytes | bytearray = frame.packed
        if head.encoding != ENCODING_RAW:
            decoded = self._decoded(head, memoryview(frame.packed))
            if decoded is None or sha256_hex(decoded) != self._wanted[head.file, head.frame]:
                # What it was made against is not the same on both sides: the frame itself is asked for.
                self._raw_only.add((head.file, head.frame))
                self._send(Message.AGAIN, FRAME_HEADER.pack(head.file, head.frame, ENCODING_RAW))
                return
            data = decoded
        elif frame.digest.hexdigest() != self._wanted[head.file, head.frame]:
            raise self._other_bytes(head)
        if self._led is not None:
            self._led(head.file)
        # Nothing, where it was written as it came.
        self._put(head, memoryview(data), 0)
        del self._wanted[head.file, head.frame]
        reached("receive.written")
        self._written.put(head)

    def _put(self, head: _Head, data: memoryview, start: int) -> None:
        offset = head.frame * FRAME_BYTES + start
        while data:
            written = os.pwrite(self._handles[head.file], data, offset)
            data, offset = data[written:], offset + written

    def _other_bytes(self, head: _Head) -> AgentError:
        return AgentError(
            f"frame {head.frame} of {self._files[head.file].name} arrived with other bytes than the manifest names",
            kind="integrity",
            hint="check the release on the host: kedge release verify",
        )

    def _decoded(self, head: _Head, data: memoryview) -> bytes | None:
        """The frame's bytes; None where they cannot be made of what came."""
        prefix = None
        if head.encoding == ENCODING_DELTA:
            bases = self._bases.get(head.file, ())
            index = BASE_INDEX.unpack_from(data)[0]
            if index >= len(bases):
                raise WireError(f"frame {head.frame} of file {head.file} is a difference to what was not offered")
            data = data[BASE_INDEX.size :]
            offset, length = slice_of(head.frame, bases[index].size_bytes)
            try:
                with self._layout.object(bases[index].sha256).open("rb", buffering=0) as handle:
                    prefix = os.pread(handle.fileno(), length, offset)
            except OSError:
                return None
        try:
            return decompress(data, frame_length(self._files[head.file].size_bytes, head.frame), prefix)
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
                    if self._led is not None:
                        self._led(each.file)
                    self._send(Message.ACK, FRAME_HEADER.pack(each.file, each.frame, each.encoding))
                    self._landed(each.file, each.frame)
                    reached("receive.acknowledged")
        except Exception as error:  # as above
            self._fail(error)

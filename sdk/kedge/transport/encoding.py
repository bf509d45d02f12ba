"""In which form a frame travels: as it is, compressed, or as a difference to what the device has."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kedge_agent.formats.delta import BASE_INDEX, compress, slice_of
from kedge_agent.formats.frames import frame_length
from kedge_agent.formats.manifest import FileEntry
from kedge_agent.wire import ENCODING_DELTA, ENCODING_RAW, ENCODING_ZSTD, FRAME_BYTES

from ..errors import BadInputError, first_line

__all__ = ["Base", "EncodedFrame", "Encoder"]

_SAMPLE_BYTES = 256 * 1024
_BLOCK_BYTES = 4096
_BLOCKS = 64
_NEEDLE_BYTES = 64
# A form that is hardly smaller is not worth what the device does to undo it.
_WORTH_RATIO = 0.98
_POOR_RATIO = 0.9
# What compresses poorly takes the processor from whoever encrypts: only where the link takes this many times as long as
# the compressor, which then is never waited for.
_SLOW_LINK = 3.0
# Bytes a second, while nothing is known of how fast the compressor is: what it may be tried on, and waited for.
_FAST_LINK_BYTES_PER_S = 100e6
_SLOW_LINK_BYTES_PER_S = 25e6
# A difference that is small may take this many times as long as the bytes that it saves: links are shared, and metered.
_PATIENCE = 4.0


@dataclass(frozen=True)
class Base:
    """An object that both sides have. index: as the device counts the bases of this file."""

    index: int
    sha256: str
    path: Path


@dataclass(frozen=True)
class EncodedFrame:
    """A frame as it travels: `data` follows the header of FRAME."""

    file: int
    frame: int
    encoding: int
    data: bytes | memoryview


@dataclass
class _Experience:
    """What compressing the frames of a file has come to: size over the raw one's, seconds a frame."""

    ratio: float = 1.0
    seconds: float = 0.0
    frames: int = 0

    def learn(self, ratio: float, seconds: float) -> None:
        weight = 0.5 if self.frames else 1.0
        self.ratio += weight * (ratio - self.ratio)
        self.seconds += weight * (seconds - self.seconds)
        self.frames += 1


class Encoder:
    """Frames in the form that is soonest done with: threads compress ahead of whoever sends.

    Args:
        files: entries in manifest order, each with the path of its bytes.
        taken: encodings that the device takes.
        bases: what differences are made against, by the file's index.
        rate: bytes a second that the link has taken so far; None: nothing has been sent yet.
    """

    def __init__(
        self,
        files: Sequence[tuple[FileEntry, Path]],
        taken: Sequence[int],
        bases: Mapping[int, Base],
        rate: Callable[[], float | None],
    ) -> None:
        self._files = files
        self._taken = taken
        self._bases = dict(bases) if ENCODING_DELTA in taken else {}
        self._rate = rate
        self._mapped: dict[Path, memoryview] = {}
        self._guard = threading.Lock()
        self._experience: dict[int, _Experience] = {}
        self._alike: dict[int, bool] = {}
        cores = os.cpu_count() or 1
        self._workers = max(1, min(4, cores // 2))
        self._pool = ThreadPoolExecutor(self._workers)

    def close(self) -> None:
        """Drop what was compressed ahead; idempotent."""
        self._pool.shutdown(cancel_futures=True)

    def encode(self, frames: Sequence[tuple[int, int]]) -> Iterator[EncodedFrame]:
        """These frames, by file and index, in this order."""
        jobs: dict[int, Future[EncodedFrame | None]] = {}
        ahead = 0
        for position, (file, frame) in enumerate(frames):
            while ahead < min(len(frames), position + 1 + 2 * self._workers):
                if self._is_worth_trying(*frames[ahead]):
                    jobs[ahead] = self._pool.submit(self._compressed, *frames[ahead])
                ahead += 1
            job = jobs.pop(position, None)
            packed = None
            if job is not None and (job.done() or self._is_worth_waiting(file)):
                packed = job.result()
            elif job is not None:
                job.cancel()
            if packed is None or (packed.encoding == ENCODING_DELTA and file not in self._bases):
                packed = self.raw(file, frame)
            yield packed

    def raw(self, file: int, frame: int) -> EncodedFrame:
        """A frame as it is."""
        entry, path = self._files[file]
        start = frame * FRAME_BYTES
        view = self._bytes(path)[start : start + frame_length(entry.size_bytes, frame)]
        return EncodedFrame(file, frame, ENCODING_RAW, view)

    def distrust(self, file: int) -> str | None:
        """Make no more differences for this file; the base's hash, if there was one."""
        base = self._bases.pop(file, None)
        return None if base is None else base.sha256

    def _is_worth_trying(self, file: int, frame: int) -> bool:
        known = self._experience.get(file)
        rate = self._rate()
        if file in self._bases and known is None and not self._is_alike(file, frame):
            self.distrust(file)
        if file in self._bases:
            return known is None or known.ratio <= _POOR_RATIO or self._keeps_up(known, rate)
        if ENCODING_ZSTD not in self._taken or rate is None:
            return False
        if known is None:
            return rate < _FAST_LINK_BYTES_PER_S
        return self._keeps_up(known, rate)

    def _is_worth_waiting(self, file: int) -> bool:
        known, rate = self._experience.get(file), self._rate()
        if known is None or rate is None:
            if file in self._bases:
                return True
            return rate is not None and rate < _SLOW_LINK_BYTES_PER_S
        return rate * known.seconds < _PATIENCE * FRAME_BYTES * (1.0 - known.ratio)

    def _is_alike(self, file: int, frame: int) -> bool:
        """Whether a file has something of its base, in its place or near it; one frame tells, and is asked once."""
        if file not in self._alike:
            raw, stored = self.raw(file, frame).data, self._bytes(self._bases[file].path)
            offset, length = slice_of(frame, len(stored))
            here = stored[frame * FRAME_BYTES :]
            steps = range(0, len(raw), max(_BLOCK_BYTES, len(raw) // _BLOCKS))
            middle = len(raw) // 2
            sample = raw[middle : middle + _SAMPLE_BYTES]
            beside = here[middle : middle + len(sample)]
            needles = [bytes(raw[at : at + _NEEDLE_BYTES]) for at in (len(raw) // 3, 2 * len(raw) // 3)]
            base: Any = stored.obj
            self._alike[file] = (
                any(raw[at : at + _BLOCK_BYTES] == here[at : at + _BLOCK_BYTES] for at in steps)
                or len(compress(sample, beside)) <= _POOR_RATIO * len(sample)
                or any(base.find(needle, offset, offset + length) >= 0 for needle in needles)
            )
        return self._alike[file]

    @staticmethod
    def _keeps_up(known: _Experience, rate: float | None) -> bool:
        return rate is not None and known.ratio < _WORTH_RATIO and rate * known.seconds * _SLOW_LINK < FRAME_BYTES

    def _compressed(self, file: int, frame: int) -> EncodedFrame | None:
        """In a thread of the pool: the frame made smaller; None where it does not get much smaller."""
        begin = time.perf_counter()
        raw = self.raw(file, frame).data
        base = self._bases.get(file)
        packed, encoding = b"", ENCODING_ZSTD
        if base is not None:
            try:
                stored = self._bytes(base.path)
            except BadInputError:
                # The cache let go of it: the frame travels as it is.
                return None
            offset, length = slice_of(frame, len(stored))
            packed = BASE_INDEX.pack(base.index) + compress(raw, stored[offset : offset + length])
            encoding = ENCODING_DELTA
        else:
            packed = compress(raw)
        ratio = len(packed) / len(raw)
        with self._guard:
            self._experience.setdefault(file, _Experience()).learn(
                ratio, (time.perf_counter() - begin) * FRAME_BYTES / len(raw)
            )
        return EncodedFrame(file, frame, encoding, packed) if ratio < _WORTH_RATIO else None

    def _bytes(self, path: Path) -> memoryview:
        with self._guard:
            if path not in self._mapped:
                try:
                    with path.open("rb") as handle:
                        # Unmapped when the last view of it is gone.
                        self._mapped[path] = memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))
                except (OSError, ValueError) as error:
                    # Not the link: the push is not to be taken up again.
                    raise BadInputError(
                        f"{path} cannot be read any more: {first_line(error)}", hint="build the release again"
                    ) from error
            return self._mapped[path]

"""Lanes of a GPU: three streams and one scratch block each, shared by all models of the process.

Worker number k of every model uses lane k. What is queued in one stream runs in order, so of all the models on a lane
one computes at a time, and one scratch block, as large as the largest of them needs, serves them all. Copies have
streams of their own: those of the next request overlap what computes.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress

from ..errors import AgentError
from .buffers import round_up
from .cuda import Cuda, Memory, Stream, open_cuda

__all__ = ["Gpu", "Lane", "gpu_of_process", "lost_gpu"]


class Lane:
    """Streams and scratch of one worker. Whoever queues work holds `lock`, within `Cuda.current`.

    generation: changes when the scratch block does; who told TensorRT of the block must tell it again.
    """

    copy_in: Stream
    compute: Stream
    copy_out: Stream
    scratch: Memory

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._needs: dict[object, int] = {}
        self.lock = threading.Lock()
        self.generation = 0

    def join(self, owner: object, scratch_bytes: int) -> None:
        """Let a model's work run here.

        Raises:
            AgentError: there is no memory left; nothing has changed (kind space).
        """
        need = round_up(scratch_bytes)
        with self.lock:
            if not self._needs:
                self._open(need)
            elif need > self.scratch.size:
                self._replace(need)
            self._needs[owner] = need

    def leave(self, owner: object) -> None:
        """A model has gone, and none of its work is queued; idempotent. The last one takes everything along."""
        with self.lock:
            if self._needs.pop(owner, None) is None:
                return
            if not self._needs:
                for each in (self.scratch, self.copy_out, self.compute, self.copy_in):
                    each.close()
                return
            largest = max(self._needs.values())
            if largest < self.scratch.size:
                # Where there is no room for the smaller one beside it, the larger one serves on.
                with suppress(AgentError):
                    self._replace(largest)

    def drain(self) -> None:
        """Wait until nothing is queued. For what failed half-way: its buffers must be out of use."""
        with ExitStack() as stack:
            # All three, whichever of them fails.
            for each in (self.copy_out, self.compute, self.copy_in):
                stack.callback(each.synchronise)

    def _open(self, need: int) -> None:
        with ExitStack() as undo:
            streams = []
            for _ in range(3):
                streams.append(self._cuda.stream())
                undo.callback(streams[-1].close)
            self.scratch = self._cuda.memory(need)
            self.copy_in, self.compute, self.copy_out = streams
            self.generation += 1
            undo.pop_all()

    def _replace(self, size: int) -> None:
        fresh = self._cuda.memory(size)
        try:
            self.compute.synchronise()
        except AgentError:
            fresh.close()
            raise
        self.scratch.close()
        self.scratch = fresh
        self.generation += 1


class Gpu:
    """A GPU and its lanes, which are made as models ask for them."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self._guard = threading.Lock()
        self._lanes: list[Lane] = []

    def join(self, owner: object, workers: int, scratch_bytes: int) -> tuple[Lane, ...]:
        """A lane for each worker of a model. Within `Cuda.current`.

        Raises:
            AgentError: there is no memory left; no lane was joined (kind space).
        """
        with self._guard:
            while len(self._lanes) < workers:
                self._lanes.append(Lane(self.cuda))
            lanes = tuple(self._lanes[:workers])
        with ExitStack() as undo:
            for lane in lanes:
                lane.join(owner, scratch_bytes)
                undo.callback(lane.leave, owner)
            undo.pop_all()
        return lanes

    def leave(self, owner: object, lanes: Sequence[Lane]) -> None:
        """A model has gone. Within `Cuda.current`."""
        for lane in lanes:
            lane.leave(owner)


_guard = threading.Lock()
_gpu: list[Gpu] = []


def gpu_of_process() -> Gpu:
    """The one GPU of this process, for all runtimes on it.

    Raises:
        AgentError: as `open_cuda`.
    """
    with _guard:
        if not _gpu:
            _gpu.append(Gpu(open_cuda()))
        return _gpu[0]


def lost_gpu() -> str | None:
    """Why the GPU of this process does nothing any more, in the driver's words; None: it works, or nobody opened it.

    A kernel that faults leaves its context unusable, and every call in it fails until the process has ended (CUDA
    driver API, CUDA_ERROR_ILLEGAL_ADDRESS and its like): models that are loaded anew fail too.
    """
    for gpu in _gpu:
        try:
            with gpu.cuda.current():
                gpu.cuda.free_bytes()
        except AgentError as error:
            return error.message
    return None

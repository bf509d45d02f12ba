"""The seam to CUDA without a GPU: it keeps the order of everything, and the rules that a GPU would break in silence.

Work is queued and runs when somebody waits for it, as on a GPU. Every piece carries a vector clock of what certainly
came before it (its stream, the events its stream waited for, what the host had waited for when it queued it), so two
uses of the same bytes, one of them a write, that nothing orders are found whether or not they collide in this run.
Times are made up: a copy takes 1 ms, an inference 10, and an event's time is when the work before it would be over.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kedge_agent.errors import AgentError
from kedge_agent.runtime.buffers import aligned_bytes
from kedge_agent.runtime.cuda import DeviceProperties, Graph, Resource

__all__ = ["DISCRETE", "JETSON", "UNIFIED", "FakeCuda", "FakeGraph", "FakeStream", "RuleError", "Use"]

UNIFIED = DeviceProperties("11.0", True, True, True, True, True, True)
JETSON = DeviceProperties("8.7", True, True, True, True, False, False)
DISCRETE = DeviceProperties("8.9", False, True, False, False, False, False)

COPY_MS, WORK_MS = 1.0, 10.0
Clock = dict[int, int]
HOST = 0


class RuleError(AssertionError):
    """A rule of CUDA's has been broken."""


@dataclass(frozen=True)
class Use:
    """Bytes that a piece of work reads or writes."""

    address: int
    size: int
    write: bool


@dataclass
class Work:
    """A piece of work in a stream; it runs at most once, after what it waits for."""

    what: str
    after: list[Work]
    clock: Clock
    end_ms: float
    run: Callable[[], None] | None = None

    def finish(self) -> None:
        stack = [self]
        while stack:
            work = stack[-1]
            open_ones = [each for each in work.after if each.run is not None or each.after]
            if open_ones:
                stack.extend(open_ones)
                continue
            stack.pop()
            run, work.run, work.after = work.run, None, []
            if run is not None:
                run()


@dataclass
class _Past:
    use: Use
    queue: int
    tick: int
    what: str


@dataclass
class FakeCuda:
    """A GPU that is not there. log: what was called, in order. broken: first rule that was broken, if any.

    memory_fails_at: the so-many-th allocation finds no memory, as do all of more than `most` bytes.
    capture_fails: no graph can be captured. copy_fails: the next copy does. lost: a kernel has faulted, and every call
    fails from now on.
    """

    device: DeviceProperties = UNIFIED
    graphs: bool = False
    memory_fails_at: int | None = None
    most: int = 1 << 30
    capture_fails: bool = False
    copy_fails: bool = False
    lost: bool = False
    log: list[str] = field(default_factory=list)
    binding: str = "fake 1.0"

    def __post_init__(self) -> None:
        self.open: set[Any] = set()
        self.now_ms = 0.0
        self.allocations = 0
        self._depth = threading.local()
        self._depths: dict[int, int] = {}
        self._knows: Clock = {HOST: 0}
        self._blocks: list[FakeMemory] = []
        self._queues = 0
        self.guard = threading.RLock()

    # The seam.

    @contextmanager
    def current(self) -> Iterator[None]:
        thread = threading.get_ident()
        self._depths[thread] = self._depths.get(thread, 0) + 1
        try:
            yield
        finally:
            self._depths[thread] -= 1

    def stream(self) -> FakeStream:
        self.enter("stream")
        self._queues += 1
        return FakeStream(self, self._queues)

    def event(self) -> FakeEvent:
        self.enter("event")
        return FakeEvent(self)

    def pinned(self, size: int) -> FakeMemory:
        return self._block("pinned", size)

    def managed(self, size: int) -> FakeMemory:
        return self._block("managed", size)

    def memory(self, size: int) -> FakeMemory:
        return self._block("memory", size)

    def free_bytes(self) -> int:
        self.enter("free_bytes")
        return self.most - sum(block.size for block in self._blocks)

    def capture(self, stream: FakeStream, queue: Callable[[], None]) -> Graph:
        self.enter("capture")
        assert self.graphs, "this binding has no graphs"
        stream.captured = []
        try:
            queue()
        finally:
            found, stream.captured = stream.captured, None
        if self.capture_fails:
            raise AgentError("operation not permitted when stream is capturing", kind="internal")
        return FakeGraph(self, found)

    # What tests ask.

    def assert_clean(self) -> None:
        """Everything has been given back, and every context popped."""
        assert not any(self._depths.values()), f"contexts were left pushed: {self._depths}"
        assert not self.open, f"left open: {sorted(type(each).__name__ for each in self.open)}"

    def held(self, kind: str) -> list[FakeMemory]:
        """Blocks of a kind that are allocated now."""
        return [block for block in self._blocks if block.kind == kind]

    # What the parts of it use.

    def enter(self, what: str) -> None:
        """Note a call."""
        if not self._depths.get(threading.get_ident()):
            raise RuleError(f"{what} was called by a thread without a context")
        if self.lost:
            raise AgentError(f"CUDA failed: {what}: CUDA_ERROR_ILLEGAL_ADDRESS", kind="internal")
        self.log.append(what)

    def queue(self, stream: FakeStream, what: str, took_ms: float, uses: Sequence[Use], run: Any) -> Work:
        """Put work into a stream, and hold what it uses against all that nothing orders before it."""
        with self.guard:
            clock = _merged(stream.clock, self._knows)
            clock[stream.number] = clock.get(stream.number, 0) + 1
            begin = max([self.now_ms, stream.end_ms, *(each.end_ms for each in stream.waits)])
            work = Work(what, [*stream.tail, *stream.waits], clock, begin + took_ms, run)
            stream.clock, stream.end_ms, stream.tail, stream.waits = dict(clock), work.end_ms, [work], []
            for use in uses:
                self._use(use, stream.number, clock, what)
            return work

    def waited(self, work: Work) -> None:
        """The host has waited for work."""
        with self.guard:
            work.finish()
            self._knows = _merged(self._knows, work.clock)
            self.now_ms = max(self.now_ms, work.end_ms)

    def view(self, address: int, size: int) -> NDArray[Any]:
        """The bytes at a device address."""
        block = self._at(address, size)
        return block.bytes[address - block.address : address - block.address + size]

    def knows(self, queue: int, tick: int) -> bool:
        """Whether the host has waited for a piece of work."""
        return self._knows.get(queue, 0) >= tick

    def drop(self, block: FakeMemory) -> None:
        """A block is freed."""
        for past in block.past:
            if not self.knows(past.queue, past.tick):
                raise RuleError(f"memory was freed while {past.what!r} may be using it")
        self._blocks.remove(block)

    def _block(self, kind: str, size: int) -> FakeMemory:
        self.enter(f"{kind} {size}")
        self.allocations += 1
        if self.allocations == self.memory_fails_at or size > self.most:
            raise AgentError(f"no GPU memory left: allocating {size} bytes", kind="space")
        block = FakeMemory(self, kind, size)
        self._blocks.append(block)
        return block

    def _at(self, address: int, size: int) -> FakeMemory:
        for block in self._blocks:
            if block.address <= address and address + size <= block.address + block.size:
                return block
        raise RuleError(f"{size} bytes at {address:#x} are not allocated")

    def _use(self, use: Use, queue: int, clock: Clock, what: str) -> None:
        block = self._at(use.address, use.size)
        for past in block.past:
            apart = past.use.address + past.use.size <= use.address or use.address + use.size <= past.use.address
            if not apart and (past.use.write or use.write) and clock.get(past.queue, 0) < past.tick:
                raise RuleError(f"{what!r} uses bytes that {past.what!r} may still be using")
        block.past.append(_Past(use, queue, clock[queue], what))


def _merged(one: Clock, other: Clock) -> Clock:
    return {key: max(one.get(key, 0), other.get(key, 0)) for key in one.keys() | other.keys()}


class _Owned(Resource):
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        cuda.open.add(self)

    def _release(self) -> None:
        self.cuda.enter(f"close {type(self).__name__.removeprefix('Fake').lower()}")
        self.cuda.open.discard(self)


class FakeMemory(_Owned):
    def __init__(self, cuda: FakeCuda, kind: str, size: int) -> None:
        super().__init__(cuda)
        self.kind, self.size = kind, size
        self.bytes = aligned_bytes(size)
        self.bytes[:] = 0xA5
        self.address = int(self.bytes.ctypes.data)
        self.past: deque[_Past] = deque(maxlen=64)

    @property
    def array(self) -> NDArray[Any]:
        self._check()
        if self.kind == "memory":
            raise AgentError("the host does not see device memory", kind="internal")
        return self.bytes

    def _release(self) -> None:
        super()._release()
        self.cuda.drop(self)


class FakeStream(_Owned):
    by_handle: dict[int, FakeStream] = {}  # noqa: RUF012 - handles are the process's, as CUDA's are

    def __init__(self, cuda: FakeCuda, number: int) -> None:
        super().__init__(cuda)
        self.number, self.handle = number, id(self)
        self.clock: Clock = {}
        self.end_ms = 0.0
        self.tail: list[Work] = []
        self.waits: list[Work] = []
        self.captured: list[tuple[str, Sequence[Use], Any]] | None = None
        self.by_handle[self.handle] = self

    def wait(self, event: FakeEvent) -> None:
        self._enter("wait")
        if event.work is None:
            raise RuleError("a stream was made to wait for an event that was never recorded")
        self.clock = _merged(self.clock, event.work.clock)
        self.waits.append(event.work)

    def h2d(self, address: int, source: NDArray[Any]) -> None:
        self._copy("h2d", source, Use(source.ctypes.data, source.nbytes, False), Use(address, source.nbytes, True))

    def d2h(self, target: NDArray[Any], address: int) -> None:
        self._copy("d2h", target, Use(target.ctypes.data, target.nbytes, True), Use(address, target.nbytes, False))

    def synchronise(self) -> None:
        self._enter("synchronise")
        for work in (*self.tail, *self.waits):
            self.cuda.waited(work)

    def work(self, uses: Sequence[Use], run: Callable[[], None]) -> None:
        """Queue an inference, or capture it."""
        self._enter("work")
        if self.captured is not None:
            self.captured.append(("work", uses, run))
            return
        self.cuda.queue(self, "work", WORK_MS, uses, run)

    def _copy(self, what: str, host: NDArray[Any], host_use: Use, device_use: Use) -> None:
        self._enter(what)
        if self.cuda.copy_fails:
            self.cuda.copy_fails = False
            raise AgentError(f"CUDA failed: {what}", kind="internal")
        if self.cuda._at(host_use.address, host_use.size).kind != "pinned":
            raise RuleError(f"{what} of memory that is not page-locked")
        device = self.cuda.view(device_use.address, device_use.size)
        to, source = (device, host) if what == "h2d" else (host, device)
        self.cuda.queue(self, what, COPY_MS, (host_use, device_use), lambda: np.copyto(to, source))

    def _enter(self, what: str) -> None:
        self._check()
        self.cuda.enter(f"{what} {self.number}")

    def _release(self) -> None:
        super()._release()
        if any(not self.cuda.knows(self.number, work.clock[self.number]) for work in self.tail):
            raise RuleError("a stream was closed with work in it")
        del self.by_handle[self.handle]


class FakeEvent(_Owned):
    work: Work | None = None

    def record(self, stream: FakeStream) -> None:
        self._check()
        self.cuda.enter(f"record {stream.number}")
        self.work = self.cuda.queue(stream, "record", 0.0, (), None)

    def synchronise(self) -> None:
        self._check()
        self.cuda.enter("synchronise event")
        self.cuda.waited(self._recorded())

    def elapsed_ms(self, since: FakeEvent) -> float:
        self._check()
        for event in (self, since):
            queue = max(event._recorded().clock, key=lambda key: event._recorded().clock[key])
            if not self.cuda.knows(queue, event._recorded().clock[queue]):
                raise RuleError("an event's time was read before it was waited for")
        return self._recorded().end_ms - since._recorded().end_ms

    def _recorded(self) -> Work:
        if self.work is None:
            raise RuleError("an event was used before it was recorded")
        return self.work


class FakeGraph(_Owned):
    def __init__(self, cuda: FakeCuda, captured: Sequence[tuple[str, Sequence[Use], Any]] | None) -> None:
        super().__init__(cuda)
        self._captured = tuple(captured or ())

    def launch(self, stream: FakeStream) -> None:
        self._check()
        self.cuda.enter(f"launch {stream.number}")
        for what, uses, run in self._captured:
            self.cuda.queue(stream, what, WORK_MS, uses, run)

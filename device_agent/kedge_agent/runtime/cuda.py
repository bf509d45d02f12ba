"""The seam to CUDA: some ten operations that everything of ours on a GPU is made of, and the choice of who does them.

pycuda does where it is installed, else NVIDIA's `cuda.bindings`. The primary context of the first GPU is retained once
for the life of the process, because TensorRT works in it too; a thread has it only within `Cuda.current`, since pycuda
ends a process whose thread ends with a context still pushed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Protocol

from numpy.typing import NDArray

from ..errors import AgentError

__all__ = [
    "ATTRIBUTES",
    "Cuda",
    "DeviceProperties",
    "Event",
    "Graph",
    "Memory",
    "Resource",
    "Stream",
    "failure",
    "open_cuda",
    "properties_of",
]

_LOG = logging.getLogger("kedge.cuda")

ATTRIBUTES: Mapping[str, str] = {
    "integrated": "INTEGRATED",
    "unified_addressing": "UNIFIED_ADDRESSING",
    "can_map_host_memory": "CAN_MAP_HOST_MEMORY",
    "managed_memory": "MANAGED_MEMORY",
    "concurrent_managed_access": "CONCURRENT_MANAGED_ACCESS",
    "pageable_memory_access": "PAGEABLE_MEMORY_ACCESS",
}
"""Fields of `DeviceProperties`, and CUdevice_attribute's names for them (both bindings keep those)."""


@dataclass(frozen=True)
class DeviceProperties:
    """What the driver says of a GPU, under the driver's own names."""

    compute_capability: str
    integrated: bool
    unified_addressing: bool
    can_map_host_memory: bool
    managed_memory: bool
    concurrent_managed_access: bool
    pageable_memory_access: bool

    def lacking(self, transfer: str) -> str | None:
        """Why this GPU cannot move tensors in a way ("copy", "mapped", "managed"), or None where it can.

        Managed memory is refused without concurrent access: there the kernel ends a process whose CPU touches it while
        any kernel runs, and the next request arrives while one does (CUDA programming guide, "Unified memory: coherency
        and concurrency").
        """
        if transfer == "mapped" and not self.can_map_host_memory:
            return "this GPU cannot map host memory (canMapHostMemory is 0)"
        if transfer == "managed" and not self.managed_memory:
            return "this GPU has no managed memory (managedMemory is 0)"
        if transfer == "managed" and not self.concurrent_managed_access:
            return "CPU and GPU may not use managed memory at a time here (concurrentManagedAccess is 0)"
        return None

    def to_json(self) -> dict[str, Any]:
        """As `facts` report it."""
        return asdict(self)


class Event(Protocol):
    """A mark in a stream, with the time at which the GPU came by."""

    def record(self, stream: Stream) -> None:
        """Put the mark behind all that is queued in a stream."""
        ...

    def synchronise(self) -> None:
        """Wait until the GPU has come by. Other threads of Python run meanwhile."""
        ...

    def elapsed_ms(self, since: Event) -> float:
        """Milliseconds between two marks that the GPU has come by."""
        ...

    def close(self) -> None:
        """Give it back; idempotent."""
        ...


class Stream(Protocol):
    """A queue of work for the GPU, done in order. handle: as TensorRT takes it (cudaStream_t)."""

    handle: int

    def wait(self, event: Event) -> None:
        """What is queued from now on begins after a mark that has been recorded."""
        ...

    def h2d(self, address: int, source: NDArray[Any]) -> None:
        """Queue a copy of page-locked memory to the device."""
        ...

    def d2h(self, target: NDArray[Any], address: int) -> None:
        """Queue a copy of device memory to page-locked memory."""
        ...

    def synchronise(self) -> None:
        """Wait until the queue is empty."""
        ...

    def close(self) -> None:
        """Give it back; idempotent."""
        ...


class Memory(Protocol):
    """A block of memory. size: bytes. address: as the device sees it, a multiple of 256."""

    size: int
    address: int

    @property
    def array(self) -> NDArray[Any]:
        """The block as the host sees it, bytes.

        Raises:
            AgentError: the host does not see device memory; or it has been given back (kind internal).
        """
        ...

    def close(self) -> None:
        """Give it back; idempotent. Views of `array` are dead from now on."""
        ...


class Graph(Protocol):
    """Work that was captured from a stream and is queued again at one stroke."""

    def launch(self, stream: Stream) -> None:
        """Queue it."""
        ...

    def close(self) -> None:
        """Give it back; idempotent."""
        ...


class Cuda(Protocol):
    """A GPU through one binding. All but `current` is called within `current`; errors are AgentErrors.

    binding: which, and its version. graphs: `capture` works. device: what the GPU can do.
    """

    binding: str
    graphs: bool
    device: DeviceProperties

    def current(self) -> AbstractContextManager[None]:
        """Make the primary context this thread's, for as long as the context manager is open."""
        ...

    def stream(self) -> Stream:
        """A stream that does not wait for the default stream."""
        ...

    def event(self) -> Event:
        """An event that can be timed."""
        ...

    def pinned(self, size: int) -> Memory:
        """Page-locked host memory; the device sees it too where it can map host memory.

        Raises:
            AgentError: there is none left (kind space).
        """
        ...

    def managed(self, size: int) -> Memory:
        """Memory that both see, moved by the driver where it has to be.

        Raises:
            AgentError: there is none left (kind space).
        """
        ...

    def memory(self, size: int) -> Memory:
        """Device memory.

        Raises:
            AgentError: there is none left (kind space).
        """
        ...

    def free_bytes(self) -> int:
        """Device memory that is free, for all processes (cuMemGetInfo; swap does not count)."""
        ...

    def capture(self, stream: Stream, queue: Callable[[], None]) -> Graph:
        """Capture what `queue` queues in a stream; nothing of it runs.

        Raises:
            AgentError: it cannot be captured; the stream is as before (kind internal).
        """
        ...


class Resource:
    """Something of CUDA's that is given back: `close` is idempotent, and use after it raises.

    Subclasses say what `_release` does. An error of it is logged: after a kernel that faulted every call fails, also
    those that free, and a model that could not be closed would stay for good.
    """

    _closed = False

    def close(self) -> None:
        """Give it back; idempotent."""
        if not self._closed:
            self._closed = True
            try:
                self._release()
            except AgentError as error:
                _LOG.warning("%s", error.message)

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _release(self) -> None:
        raise NotImplementedError

    def _check(self) -> None:
        if self._closed:
            raise AgentError(
                f"a CUDA {type(self).__name__.strip('_').lower()} was used after it was closed", kind="internal"
            )


def failure(error: Exception, doing: str, *, memory: bool = False) -> AgentError:
    """What a binding raised, as an error of ours; memory: it said that there is none left."""
    said = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    if memory:
        return AgentError(
            f"no GPU memory left: {doing}: {said}",
            kind="space",
            hint="unload another model, use fewer workers, or build the engine with less workspace",
        )
    return AgentError(f"CUDA failed: {doing}: {said}", kind="internal", hint="see the agent's log; restart the agent")


def properties_of(ask: Callable[[str], int]) -> DeviceProperties:
    """Properties by a function that gives an attribute's value by CUdevice_attribute's name for it."""
    capability = f"{ask('COMPUTE_CAPABILITY_MAJOR')}.{ask('COMPUTE_CAPABILITY_MINOR')}"
    return DeviceProperties(capability, **{field: bool(ask(name)) for field, name in ATTRIBUTES.items()})


_guard = threading.Lock()
_opened: list[Cuda] = []


def open_cuda() -> Cuda:
    """This process's GPU, opened by the first who asks and kept.

    Raises:
        AgentError: no binding is installed, or there is no GPU or driver (kind incompatible).
    """
    from .cuda_bindings import BindingsCuda
    from .cuda_pycuda import PycudaCuda

    with _guard:
        if not _opened:
            _opened.append(_first_of(PycudaCuda.open, BindingsCuda.open))
        return _opened[0]


def _first_of(*ways: Callable[[], Cuda]) -> Cuda:
    said = []
    for way in ways:
        try:
            return way()
        except ImportError as error:
            said.append(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
    raise AgentError(
        f"no CUDA binding can be imported: {'; '.join(said)}",
        kind="incompatible",
        hint="pip install pycuda in the agent's environment (on a Jetson it is built there), or cuda-bindings",
    )

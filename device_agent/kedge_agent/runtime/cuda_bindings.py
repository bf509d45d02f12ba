"""CUDA through NVIDIA's own `cuda.bindings`: the seam where pycuda has no wheel; it has graphs.

Each function of that package returns a tuple whose first element is a CUresult.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AgentError
from .cuda import Cuda, DeviceProperties, Event, Graph, Memory, Resource, Stream, failure, properties_of

__all__ = ["BindingsCuda"]


class _ResultError(Exception):
    """A CUresult that is no success."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.memory = name == "CUDA_ERROR_OUT_OF_MEMORY"


class BindingsCuda:
    """The first GPU, through cuda.bindings. Use `open`."""

    graphs = True

    def __init__(self, driver: Any, context: Any, device: DeviceProperties, version: str) -> None:
        self.driver = driver
        self._pushed = _Pushed(self, context)
        self.device = device
        self.binding = f"cuda.bindings {version}"

    @classmethod
    def open(cls) -> Cuda:
        """Retain the primary context of the first GPU.

        Raises:
            ImportError: cuda.bindings is not installed.
            AgentError: there is no GPU, or no driver (kind incompatible).
        """
        driver = importlib.import_module("cuda.bindings.driver")
        version = str(importlib.import_module("cuda.bindings").__version__)
        flags = driver.CUdevice_attribute
        try:
            _call(driver.cuInit, 0)
            device = _call(driver.cuDeviceGet, 0)
            context = _call(driver.cuDevicePrimaryCtxRetain, device)
            properties = properties_of(
                lambda name: int(
                    _call(driver.cuDeviceGetAttribute, getattr(flags, f"CU_DEVICE_ATTRIBUTE_{name}"), device)
                )
            )
            opened = cls(driver, context, properties, version)
        except Exception as error:  # besides a CUresult: what its loader raises where there is no driver
            raise AgentError(
                f"cuda.bindings finds no GPU: {(str(error).splitlines() or [''])[0][:300]}",
                kind="incompatible",
                hint="check the NVIDIA driver: nvidia-smi",
            ) from error
        opened._require_timing()
        return opened

    def _require_timing(self) -> None:
        """Try what the newest bindings look for under a name that older drivers do not have.

        cuda.bindings 13 asks for cuEventElapsedTime_v2 of CUDA 12.8; the driver of JetPack 6 is one of 12.6.

        Raises:
            AgentError: this driver is too old for these bindings (kind incompatible).
        """
        try:
            with self.current():
                stream, begin, end = self.stream(), self.event(), self.event()
                begin.record(stream)
                end.record(stream)
                end.synchronise()
                end.elapsed_ms(begin)
                for each in (end, begin, stream):
                    each.close()
        except AgentError as error:
            raise AgentError(
                f"{self.binding} does not fit this driver: {error.message}",
                kind="incompatible",
                hint="with a driver of CUDA 12.6 (JetPack 6): pip install 'cuda-bindings>=12.9.1,<13', or pycuda",
            ) from error

    def current(self) -> AbstractContextManager[None]:
        """Push the primary context, pop it in the end."""
        return self._pushed

    def stream(self) -> Stream:
        """A non-blocking stream."""
        flag = int(self.driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        return _Stream(self, self.call("making a stream", self.driver.cuStreamCreate, flag))

    def event(self) -> Event:
        """An event with timing."""
        flag = int(self.driver.CUevent_flags.CU_EVENT_DEFAULT)
        return _Event(self, self.call("making an event", self.driver.cuEventCreate, flag))

    def pinned(self, size: int) -> Memory:
        """Page-locked memory, mapped where the device can."""
        mapped = self.device.can_map_host_memory
        flags = int(self.driver.CU_MEMHOSTALLOC_DEVICEMAP) if mapped else 0
        host = int(self.call(f"page-locking {size} bytes", self.driver.cuMemHostAlloc, size, flags))
        try:
            # Without a mapping the device has no address for it.
            address = (
                int(self.call("mapping host memory", self.driver.cuMemHostGetDevicePointer, host, 0)) if mapped else 0
            )
        except AgentError:
            self.call("freeing memory", self.driver.cuMemFreeHost, host)
            raise
        return _Memory(self, self.driver.cuMemFreeHost, host, size, address, host)

    def managed(self, size: int) -> Memory:
        """Managed memory that any stream may use."""
        flag = int(self.driver.CUmemAttach_flags.CU_MEM_ATTACH_GLOBAL)
        raw = self.call(f"allocating {size} managed bytes", self.driver.cuMemAllocManaged, size, flag)
        return _Memory(self, self.driver.cuMemFree, raw, size, int(raw), int(raw))

    def memory(self, size: int) -> Memory:
        """Device memory."""
        raw = self.call(f"allocating {size} bytes", self.driver.cuMemAlloc, size)
        return _Memory(self, self.driver.cuMemFree, raw, size, int(raw), None)

    def free_bytes(self) -> int:
        """By cuMemGetInfo."""
        free, _ = self.call("asking for free memory", self.driver.cuMemGetInfo)
        return int(free)

    def capture(self, stream: Any, queue: Callable[[], None]) -> Graph:
        """Capture what one thread queues in a stream.

        Raises:
            AgentError: something in it cannot be captured (kind internal).
        """
        # Thread-local: what other threads allocate meanwhile neither enters the capture nor breaks it.
        mode = self.driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self.call("beginning a capture", self.driver.cuStreamBeginCapture, stream.raw, mode)
        try:
            queue()
        except BaseException:
            with suppress(AgentError):  # a capture that broke must still be ended, and says again that it broke
                self._drop(self.call("ending a capture", self.driver.cuStreamEndCapture, stream.raw))
            raise
        graph = self.call("ending a capture", self.driver.cuStreamEndCapture, stream.raw)
        try:
            return _Graph(self, self.call("making a graph", self.driver.cuGraphInstantiate, graph, 0))
        finally:
            self._drop(graph)

    def _drop(self, graph: Any) -> None:
        self.call("freeing a graph", self.driver.cuGraphDestroy, graph)

    def call(self, doing: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function of the driver gives, without its CUresult.

        Raises:
            AgentError: it failed (kind space or internal).
        """
        try:
            return _call(function, *arguments)
        except _ResultError as error:
            raise failure(error, doing, memory=error.memory) from error


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        result, *values = function(*arguments)
    except RuntimeError as error:  # the driver has no function of this name
        raise _ResultError(str(error)) from error
    if result != 0:
        raise _ResultError(getattr(result, "name", str(result)))
    if not values:
        return None
    return values[0] if len(values) == 1 else values


class _Pushed(AbstractContextManager[None]):
    """Twice in every run, so no generator; it holds nothing, so one serves all threads."""

    def __init__(self, cuda: BindingsCuda, context: Any) -> None:
        self._cuda, self._context = cuda, context

    def __enter__(self) -> None:
        self._cuda.call("making the context current", self._cuda.driver.cuCtxPushCurrent, self._context)

    def __exit__(self, *_: object) -> None:
        self._cuda.call("leaving the context", self._cuda.driver.cuCtxPopCurrent)


class _Raw(Resource):
    def __init__(self, cuda: BindingsCuda, destroy: Callable[..., Any], raw: Any) -> None:
        self._cuda = cuda
        self._destroy = destroy
        self.raw = raw

    def _release(self) -> None:
        with self._cuda.current():
            self._cuda.call("freeing what the GPU held", self._destroy, self.raw)
        self.raw = None


class _Event(_Raw):
    def __init__(self, cuda: BindingsCuda, raw: Any) -> None:
        super().__init__(cuda, cuda.driver.cuEventDestroy, raw)

    def record(self, stream: Any) -> None:
        self._check()
        self._cuda.call("recording an event", self._cuda.driver.cuEventRecord, self.raw, stream.raw)

    def synchronise(self) -> None:
        self._check()
        self._cuda.call("waiting for the GPU", self._cuda.driver.cuEventSynchronize, self.raw)

    def elapsed_ms(self, since: Any) -> float:
        self._check()
        return float(
            self._cuda.call("reading an event's time", self._cuda.driver.cuEventElapsedTime, since.raw, self.raw)
        )


class _Stream(_Raw):
    def __init__(self, cuda: BindingsCuda, raw: Any) -> None:
        super().__init__(cuda, cuda.driver.cuStreamDestroy, raw)
        self.handle = int(raw)

    def wait(self, event: Any) -> None:
        self._check()
        self._cuda.call("ordering two streams", self._cuda.driver.cuStreamWaitEvent, self.raw, event.raw, 0)

    def h2d(self, address: int, source: NDArray[Any]) -> None:
        self._check()
        host = source.ctypes.data
        self._cuda.call(
            "copying to the device", self._cuda.driver.cuMemcpyHtoDAsync, address, host, source.nbytes, self.raw
        )

    def d2h(self, target: NDArray[Any], address: int) -> None:
        self._check()
        host = target.ctypes.data
        self._cuda.call(
            "copying from the device", self._cuda.driver.cuMemcpyDtoHAsync, host, address, target.nbytes, self.raw
        )

    def synchronise(self) -> None:
        self._check()
        self._cuda.call("waiting for a stream", self._cuda.driver.cuStreamSynchronize, self.raw)


class _Graph(_Raw):
    def __init__(self, cuda: BindingsCuda, raw: Any) -> None:
        super().__init__(cuda, cuda.driver.cuGraphExecDestroy, raw)

    def launch(self, stream: Any) -> None:
        self._check()
        self._cuda.call("launching a graph", self._cuda.driver.cuGraphLaunch, self.raw, stream.raw)


class _Memory(_Raw):
    def __init__(
        self, cuda: BindingsCuda, destroy: Callable[..., Any], raw: Any, size: int, address: int, host: int | None
    ) -> None:
        super().__init__(cuda, destroy, raw)
        self.size = size
        self.address = address
        self._array = None if host is None else _view(host, size)

    @property
    def array(self) -> NDArray[Any]:
        self._check()
        if self._array is None:
            raise AgentError("the host does not see device memory", kind="internal")
        return self._array

    def _release(self) -> None:
        self._array = None
        super()._release()


def _view(host: int, size: int) -> NDArray[Any]:
    return np.frombuffer(memoryview((ctypes.c_uint8 * size).from_address(host)), dtype=np.uint8)

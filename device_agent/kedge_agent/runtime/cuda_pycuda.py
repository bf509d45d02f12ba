"""CUDA through pycuda: the seam's first implementation. pycuda has no graphs.

What of pycuda this rests on (2026.1, read in its source): a resource is freed in the context that is current when the
last reference goes, else it is leaked with a warning; so each is let go within `current`. `managed_empty` wants an
attach flag. Copies and synchronisation let other threads of Python run; allocation and release do not.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AgentError
from .cuda import Cuda, Event, Graph, Memory, Resource, Stream, failure, properties_of

__all__ = ["PycudaCuda"]


class PycudaCuda:
    """The first GPU, through pycuda. Use `open`."""

    graphs = False

    def __init__(self, driver: Any, context: Any, device: Any, version: str) -> None:
        self._driver = driver
        self._pushed = _Pushed(driver, context)
        self.binding = f"pycuda {version}"
        flags = driver.device_attribute
        self.device = properties_of(
            lambda name: int(device.get_attribute(getattr(flags, name))) if hasattr(flags, name) else 0
        )

    @classmethod
    def open(cls) -> Cuda:
        """Retain the primary context of the first GPU.

        Raises:
            ImportError: pycuda is not installed, or does not load.
            AgentError: there is no GPU, or no driver (kind incompatible).
        """
        driver = importlib.import_module("pycuda.driver")
        version = str(importlib.import_module("pycuda").VERSION_TEXT)
        try:
            driver.init()
            device = driver.Device(0)
            return cls(driver, device.retain_primary_context(), device, version)
        except driver.Error as error:
            raise AgentError(
                f"pycuda finds no GPU: {error}", kind="incompatible", hint="check the NVIDIA driver: nvidia-smi"
            ) from error

    def current(self) -> AbstractContextManager[None]:
        """Push the primary context, pop it in the end."""
        return self._pushed

    def stream(self) -> Stream:
        """A non-blocking stream (CU_STREAM_NON_BLOCKING, for which pycuda has no name)."""
        return _Stream(self, self._driver, self._made("making a stream", self._driver.Stream, 1))

    def event(self) -> Event:
        """An event with timing."""
        return _Event(self, self._driver, self._made("making an event", self._driver.Event))

    def pinned(self, size: int) -> Memory:
        """Page-locked memory, mapped where the device can."""
        mapped = self.device.can_map_host_memory
        flags = self._driver.host_alloc_flags.DEVICEMAP if mapped else 0
        array = self._made(
            f"page-locking {size} bytes", self._driver.pagelocked_empty, size, np.uint8, mem_flags=int(flags)
        )
        # Without a mapping the device has no address for it.
        address = int(array.base.get_device_pointer()) if mapped else 0
        return _Memory(self, array.base, size, address, array)

    def managed(self, size: int) -> Memory:
        """Managed memory that any stream may use."""
        flags = int(self._driver.mem_attach_flags.GLOBAL)
        array = self._made(f"allocating {size} managed bytes", self._driver.managed_empty, size, np.uint8, "C", flags)
        return _Memory(self, array.base, size, int(array.base.get_device_pointer()), array)

    def memory(self, size: int) -> Memory:
        """Device memory."""
        raw = self._made(f"allocating {size} bytes", self._driver.mem_alloc, size)
        return _Memory(self, raw, size, int(raw), None)

    def free_bytes(self) -> int:
        """By cuMemGetInfo."""
        free, _ = self._made("asking for free memory", self._driver.mem_get_info)
        return int(free)

    def capture(self, stream: Stream, queue: Callable[[], None]) -> Graph:
        """Raises: pycuda has no graphs (AgentError, kind internal)."""
        raise AgentError("pycuda has no CUDA graphs", kind="internal")

    def _made(self, doing: str, make: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        try:
            return make(*arguments, **named)
        except self._driver.Error as error:
            raise failure(error, doing, memory=isinstance(error, self._driver.MemoryError)) from error


class _Pushed(AbstractContextManager[None]):
    """Twice in every run, so no generator; it holds nothing, so one serves all threads."""

    def __init__(self, driver: Any, context: Any) -> None:
        self._push, self._pop, self._error = context.push, driver.Context.pop, driver.Error

    def __enter__(self) -> None:
        try:
            self._push()
        except self._error as error:
            raise failure(error, "making the context current") from error

    def __exit__(self, *_: object) -> None:
        try:
            self._pop()
        except self._error as error:
            raise failure(error, "leaving the context") from error


class _Raw(Resource):
    """A pycuda object that frees what it stands for when it goes."""

    def __init__(self, cuda: PycudaCuda, driver: Any, raw: Any) -> None:
        self._cuda = cuda
        self._driver = driver
        self.raw = raw

    def _release(self) -> None:
        with self._cuda.current():
            self.raw = None


class _Event(_Raw):
    def record(self, stream: Any) -> None:
        self._check()
        try:
            self.raw.record(stream.raw)
        except self._driver.Error as error:
            raise failure(error, "recording an event") from error

    def synchronise(self) -> None:
        self._check()
        try:
            self.raw.synchronize()
        except self._driver.Error as error:
            raise failure(error, "waiting for the GPU") from error

    def elapsed_ms(self, since: Any) -> float:
        self._check()
        try:
            return float(self.raw.time_since(since.raw))
        except self._driver.Error as error:
            raise failure(error, "reading an event's time") from error


class _Stream(_Raw):
    def __init__(self, cuda: PycudaCuda, driver: Any, raw: Any) -> None:
        super().__init__(cuda, driver, raw)
        self.handle = int(raw.handle)

    def wait(self, event: Any) -> None:
        self._check()
        try:
            self.raw.wait_for_event(event.raw)
        except self._driver.Error as error:
            raise failure(error, "ordering two streams") from error

    def h2d(self, address: int, source: NDArray[Any]) -> None:
        self._check()
        try:
            self._driver.memcpy_htod_async(address, source, self.raw)
        except self._driver.Error as error:
            raise failure(error, "copying to the device") from error

    def d2h(self, target: NDArray[Any], address: int) -> None:
        self._check()
        try:
            self._driver.memcpy_dtoh_async(target, address, self.raw)
        except self._driver.Error as error:
            raise failure(error, "copying from the device") from error

    def synchronise(self) -> None:
        self._check()
        try:
            self.raw.synchronize()
        except self._driver.Error as error:
            raise failure(error, "waiting for a stream") from error


class _Memory(Resource):
    def __init__(self, cuda: PycudaCuda, raw: Any, size: int, address: int, array: NDArray[Any] | None) -> None:
        self._cuda = cuda
        self._raw = raw
        self._array = array
        self.size = size
        self.address = address

    @property
    def array(self) -> NDArray[Any]:
        self._check()
        if self._array is None:
            raise AgentError("the host does not see device memory", kind="internal")
        return self._array

    def _release(self) -> None:
        self._array = None
        with self._cuda.current():
            self._raw.free()
        self._raw = None

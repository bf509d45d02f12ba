"""`fake_tensorrt` on a real GPU: its engines double their inputs there, by kernels of the test's own.

What surrounds TensorRT can so be tried where no TensorRT runs: memory, streams, events, captures, lanes. An inference
carries each input through the scratch memory that its context was lent, and writes twice its values; it takes
`spin_cycles` of the GPU's clock at least. Kernels are launched by `cuda.bindings`, whichever binding the agent uses:
both work in the primary context.
"""

from __future__ import annotations

import ctypes
import importlib
import json
from functools import cache
from typing import Any

import numpy as np

from kedge_agent.engine.library import Library
from tests.support import fake_tensorrt
from tests.support.fake_tensorrt import (
    CudaGraphStrategy,
    DataType,
    DynamicShapesKernelSpecializationStrategy,
    ExecutionContextAllocationStrategy,
    ILogger,
    IProfiler,
    TensorFormat,
    TensorIOMode,
    TensorLocation,
)

__version__ = "10.3.0"
__all__ = [
    "PTX",
    "CudaGraphStrategy",
    "DataType",
    "DynamicShapesKernelSpecializationStrategy",
    "ExecutionContextAllocationStrategy",
    "ILogger",
    "IProfiler",
    "Runtime",
    "TensorFormat",
    "TensorIOMode",
    "TensorLocation",
    "library",
]

THREADS = 256

# target[i] = factor * source[i] for i < count; a thread is busy for spin cycles before it writes.
PTX = """
.version 6.4
.target sm_75
.address_size 64
.visible .entry scale(.param .u64 source, .param .u64 target, .param .u64 count, .param .f32 factor, .param .u64 spin)
{
  .reg .pred %p<3>;
  .reg .b32 %r<4>;
  .reg .f32 %f<3>;
  .reg .b64 %d<12>;
  ld.param.u64 %d0, [source];
  ld.param.u64 %d1, [target];
  ld.param.u64 %d2, [count];
  ld.param.f32 %f0, [factor];
  ld.param.u64 %d3, [spin];
  mov.u32 %r0, %ctaid.x;
  mov.u32 %r1, %ntid.x;
  mov.u32 %r2, %tid.x;
  mad.wide.u32 %d4, %r0, %r1, 0;
  cvt.u64.u32 %d5, %r2;
  add.u64 %d4, %d4, %d5;
  setp.ge.u64 %p0, %d4, %d2;
  @%p0 bra done;
  shl.b64 %d6, %d4, 2;
  add.u64 %d7, %d0, %d6;
  add.u64 %d8, %d1, %d6;
  ld.global.f32 %f1, [%d7];
  mov.u64 %d9, %clock64;
again:
  mov.u64 %d10, %clock64;
  sub.u64 %d11, %d10, %d9;
  setp.lt.u64 %p1, %d11, %d3;
  @%p1 bra again;
  mul.f32 %f2, %f1, %f0;
  st.global.f32 [%d8], %f2;
done:
  ret;
}
"""


def library(name: str = "tensorrt") -> Library:
    """This module as a library of the adapter's; its engines are those of `fake_tensorrt.plan`, of FLOAT alone."""
    return Library(name, "stand-in for TensorRT", __name__, ("numpy",), "no hint", cross=name == "tensorrt-rtx")


class Runtime(fake_tensorrt.Runtime):
    def deserialize_cuda_engine(self, serialized: bytes) -> Engine:
        return Engine(json.loads(serialized), self.logger)


class Engine(fake_tensorrt.Engine):
    def create_execution_context(self, strategy: Any = None) -> Context:
        made = Context(self)
        if strategy is None:  # its own memory: TensorRT's default
            made.own = _ok(_driver().cuMemAlloc(self.device_memory_size_v2))
            made.scratch = (int(made.own), self.device_memory_size_v2)
        self.contexts.append(made)
        return made


class Context(fake_tensorrt.Context):
    own: Any = None

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.active_optimization_profile, self.shapes = profile_index, {}
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        spec = self._engine.spec
        spec["runs"] = spec.get("runs", 0) + 1
        if spec["runs"] == spec.get("enqueue_fails_at"):
            self._engine.logger.log(ILogger.ERROR, "enqueue fails")
            return False
        assert self.scratch is not None, "the context was lent no memory"
        place, spin_cycles = self.scratch[0], spec.get("spin_cycles", 0)
        for name, shape in self.shapes.items():
            count = int(np.prod(shape))
            assert place + 4 * count <= self.scratch[0] + self.scratch[1], "the plan's scratch is too small"
            target = self.addresses[f"{name}'"]
            if spec["runs"] == spec.get("faults_at"):
                target = 256  # an address that no memory has
            _launch(stream_handle, self.addresses[name], place, count, 1.0, 0)
            _launch(stream_handle, place, target, count, 2.0, spin_cycles)
            place += -(-4 * count // 256) * 256
        return True

    def __del__(self) -> None:
        if self.own is not None:
            _driver().cuMemFree(self.own)


def _launch(stream: int, source: int, target: int, count: int, factor: float, spin_cycles: int) -> None:
    types = (ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_float, ctypes.c_uint64)
    values = (source, target, count, factor, spin_cycles)
    blocks = max(1, -(-count // THREADS))
    _ok(_driver().cuLaunchKernel(_kernel(), blocks, 1, 1, THREADS, 1, 1, 0, stream, (values, types), 0))


@cache
def _driver() -> Any:
    return importlib.import_module("cuda.bindings.driver")


@cache
def _kernel() -> Any:
    module = _ok(_driver().cuModuleLoadData(PTX.encode() + b"\0"))
    return _ok(_driver().cuModuleGetFunction(module, b"scale"))


def _ok(answer: tuple[Any, ...]) -> Any:
    result, *values = answer
    assert int(result) == 0, f"CUDA: {result}"
    return values[0] if values else None

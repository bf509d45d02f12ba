"""TensorRT as the agent's runtime uses it, without TensorRT: engines that double their inputs, on `fake_cuda`.

Its plans are JSON (`plan`). An inference reads its inputs at their addresses, carries them through the scratch memory
that its context was lent, and writes twice their values to its outputs when the stream gets there. Names: TensorRT's.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from kedge_agent.engine.library import Library
from tests.support.fake_cuda import FakeStream, Use

__version__ = "10.3.0"

Bounds = Mapping[str, Sequence[Sequence[int]]]


def library(name: str = "tensorrt") -> Library:
    """This module as a library of the adapter's. Distributions: one that is always there."""
    return Library(name, "fake TensorRT", __name__, ("numpy",), "no hint", cross=name == "tensorrt-rtx")


def plan(
    shapes: Mapping[str, Sequence[int]] | None = None,
    profiles: Sequence[Bounds] = ({},),
    *,
    scratch: int = 512,
    **rest: Any,
) -> bytes:
    """An engine with an input and an output (its name with a prime) for each shape.

    rest: `types` by tensor; `locations`, `formats` likewise; `fails`: a list of what does: context, address, shape;
    `enqueue_fails_at`: a run's number; `data_dependent`: outputs.
    """
    return json.dumps(
        {"shapes": dict(shapes or {"x": [4]}), "profiles": list(profiles), "scratch": scratch, **rest}
    ).encode()


class _Severity(enum.Enum):
    ERROR = 1
    INFO = 3
    VERBOSE = 4


class ILogger:
    ERROR, INFO, VERBOSE = _Severity.ERROR, _Severity.INFO, _Severity.VERBOSE


class IProfiler:
    pass


DataType = enum.Enum("DataType", "FLOAT HALF INT8 INT32 INT64 BOOL UINT8 BF16")
TensorIOMode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")
TensorLocation = enum.Enum("TensorLocation", "DEVICE HOST")
TensorFormat = enum.Enum("TensorFormat", "LINEAR CHW32")
ExecutionContextAllocationStrategy = enum.Enum("ExecutionContextAllocationStrategy", "STATIC USER_MANAGED")
DynamicShapesKernelSpecializationStrategy = enum.Enum("DynamicShapesKernelSpecializationStrategy", "LAZY EAGER NONE")
CudaGraphStrategy = enum.Enum("CudaGraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")

_DTYPES = {"FLOAT": "<f4", "HALF": "<f2", "INT8": "i1", "INT32": "<i4", "INT64": "<i8", "UINT8": "u1", "BOOL": "?"}


class Runtime:
    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, serialized: bytes) -> Engine | None:
        try:
            return Engine(json.loads(serialized), self.logger)
        except ValueError:
            self.logger.log(ILogger.ERROR, "Serialization assertion plan->header.magicTag failed")
            return None


class Engine:
    def __init__(self, spec: dict[str, Any], logger: Any) -> None:
        self.spec, self.logger = spec, logger
        self.contexts: list[Context] = []
        self.names = [*spec["shapes"], *(f"{name}'" for name in spec["shapes"])]
        self.num_io_tensors = len(self.names)
        self.num_optimization_profiles = len(spec["profiles"])
        self.device_memory_size_v2 = spec["scratch"]

    def fails(self, what: str) -> bool:
        if what in self.spec.get("fails", ()):
            self.logger.log(ILogger.ERROR, f"{what} fails")
            return True
        return False

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> Any:
        return TensorIOMode.OUTPUT if name.endswith("'") else TensorIOMode.INPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return DataType[self.spec.get("types", {}).get(name.removesuffix("'"), "FLOAT")]

    def get_tensor_location(self, name: str) -> Any:
        return TensorLocation[self.spec.get("locations", {}).get(name, "DEVICE")]

    def get_tensor_format(self, name: str) -> Any:
        return TensorFormat[self.spec.get("formats", {}).get(name, "LINEAR")]

    def is_shape_inference_io(self, name: str) -> bool:
        return False

    def get_tensor_shape(self, name: str) -> list[int]:
        shape = list(self.spec["shapes"][name.removesuffix("'")])
        return [-1] * len(shape) if name in self.spec.get("data_dependent", ()) else shape

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        return [list(shape) for shape in self.spec["profiles"][profile_index][name]]

    def create_execution_context(self, strategy: Any) -> Context | None:
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED or isinstance(strategy, RuntimeConfig)
        if len(self.contexts) >= self.spec.get("most_contexts", 99):
            self.logger.log(ILogger.ERROR, "no memory for a context")
            return None
        self.contexts.append(Context(self))
        return self.contexts[-1]

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()


class RuntimeCache:
    """What it has compiled: once anything has run, "kernels"."""

    def __init__(self) -> None:
        self.blob = b""

    def deserialize(self, blob: bytes) -> bool:
        self.blob = blob if blob == b"kernels" else b""
        return bool(self.blob)

    def serialize(self) -> bytes:
        return self.blob or b"kernels"


class RuntimeConfig(SimpleNamespace):
    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        return True


class Context:
    profiler: Any = None

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.active_optimization_profile = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch: tuple[int, int] | None = None

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle in FakeStream.by_handle
        self.active_optimization_profile, self.shapes = profile_index, {}
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        bounds = self._engine.spec["profiles"][self.active_optimization_profile].get(name, (shape, shape, shape))
        if not all(least <= size <= most for least, size, most in zip(bounds[0], shape, bounds[2], strict=True)):
            self._engine.logger.log(ILogger.ERROR, f"{shape} is outside profile {self.active_optimization_profile}")
            return False
        return not self._engine.fails("shape")

    def get_tensor_shape(self, name: str) -> list[int]:
        if name in self._engine.spec.get("data_dependent", ()):
            return self._engine.get_tensor_shape(name)
        return list(self.shapes[name.removesuffix("'")])

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0
        assert size >= self._engine.device_memory_size_v2
        self.scratch = (memory, size)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert memory % 256 == 0, "TensorRT wants addresses aligned to 256 bytes"
        self.addresses[name] = memory
        return not self._engine.fails("address")

    def execute_async_v3(self, stream_handle: int) -> bool:
        spec = self._engine.spec
        spec["runs"] = spec.get("runs", 0) + 1
        if spec["runs"] == spec.get("enqueue_fails_at"):
            self._engine.logger.log(ILogger.ERROR, "enqueue fails")
            return False
        stream = FakeStream.by_handle[stream_handle]
        assert self.scratch is not None, "the context was lent no memory"
        jobs, uses = [], [Use(self.scratch[0], spec["scratch"], True)]
        for name, shape in self.shapes.items():
            dtype = np.dtype(_DTYPES[self._engine.get_tensor_dtype(name).name])
            size = int(np.prod(shape)) * dtype.itemsize
            source, target = self.addresses[name], self.addresses[f"{name}'"]
            uses += [Use(source, size, False), Use(target, size, True)]
            jobs.append((source, target, size, dtype))
        scratch = stream.cuda.view(*self.scratch)

        def run() -> None:
            for source, target, size, dtype in jobs:
                carried = scratch[: min(size, len(scratch))]
                values = stream.cuda.view(source, size)
                carried[:] = values[: len(carried)]
                doubled = (values.view(dtype) * 2).astype(dtype)
                stream.cuda.view(target, size)[:] = doubled.view(np.uint8)

        stream.work(uses, run)
        if self.profiler is not None:
            for layer in ("first", "second"):
                self.profiler.report_layer_time(layer, 0.5)
        return True

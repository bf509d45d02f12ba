"""An engine in memory: what it takes and gives, which shapes, how much memory.

Served is what has an answer before anything runs: every tensor in device memory, rows one after another (LINEAR), of a
type the Open Inference Protocol has, and outputs whose sizes follow from the inputs' sizes. Everything else is refused
when it is loaded, by name.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.library import Heard, Library
from ..errors import AgentError
from ..formats.digests import sha256_hex
from ..formats.tensors import DYNAMIC, TensorSpec
from .base import Shapes

__all__ = ["Engine", "Profile", "read_engine"]

_MAX_ENGINE_BYTES = 1 << 33
_MAX_SHAPES = 64

_DATATYPES = {
    "FLOAT": "FP32",
    "HALF": "FP16",
    "INT8": "INT8",
    "INT32": "INT32",
    "INT64": "INT64",
    "BOOL": "BOOL",
    "UINT8": "UINT8",
}

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """An optimisation profile: for every input the least, the best and the greatest shape."""

    index: int
    bounds: dict[str, tuple[Shape, Shape, Shape]]

    def outside(self, shapes: Shapes) -> str | None:
        """The first input whose shape this profile does not cover, with both bounds; None where all fit."""
        for name, (least, _, greatest) in self.bounds.items():
            shape = shapes[name]
            if len(shape) != len(least) or not all(a <= b <= c for a, b, c in zip(least, shape, greatest, strict=True)):
                return f"input {name!r} is {list(shape)}, the engine takes {list(least)} to {list(greatest)}"
        return None


class Engine:
    """A deserialised engine, its tensors and profiles.

    Args:
        library: TensorRT, or TensorRT for RTX.
        heard: what the library says, for messages.
        engine: an ICudaEngine.
        runtime: the Runtime that made it, which must outlive it.
        plan: its file's bytes, which are not kept.

    Raises:
        AgentError: it has a tensor that is not served (kind incompatible).
    """

    def __init__(self, library: Library, heard: Heard, engine: Any, runtime: Any, plan: bytes) -> None:
        trt = library.load()
        self.library, self.trt, self.heard = library, trt, heard
        self.file_bytes, self.sha256 = len(plan), sha256_hex(plan)
        self._runtime = runtime
        self.raw = engine
        inputs: list[TensorSpec] = []
        outputs: list[TensorSpec] = []
        for index in range(engine.num_io_tensors):
            name = str(engine.get_tensor_name(index))
            spec = _served(trt, engine, name)
            (inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs).append(spec)
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.scratch_bytes = int(engine.device_memory_size_v2)
        self.profiles = tuple(
            Profile(number, {spec.name: _bounds(engine, spec, number) for spec in inputs})
            for number in range(engine.num_optimization_profiles)
        )
        self._known: OrderedDict[tuple[Shape, ...], dict[str, Shape]] = OrderedDict()
        self._guard = threading.Lock()

    @property
    def best_shapes(self) -> dict[str, Shape]:
        """The shapes that the first profile was tuned for."""
        return {name: best for name, (_, best, _) in self.profiles[0].bounds.items()}

    def profile_for(self, shapes: Shapes) -> Profile:
        """The first profile that covers these shapes.

        Raises:
            AgentError: none does; the message names an input and what it may be (kind bad_input).
        """
        said = []
        for each in self.profiles:
            outside = each.outside(shapes)
            if outside is None:
                return each
            said.append(outside)
        raise AgentError(
            "; or ".join(dict.fromkeys(said)),
            kind="bad_input",
            hint="send such a shape, or build the engine with other profiles: kedge build --shapes",
        )

    def output_shapes(self, shapes: Shapes, context: Any) -> dict[str, Shape]:
        """Shapes of all outputs for those of the inputs, by a context that has been given them.

        Raises:
            AgentError: an output's size depends on the data (kind incompatible).
        """
        key = tuple(shapes[spec.name] for spec in self.inputs)
        with self._guard:
            known = self._known.get(key)
        if known is not None:
            return known
        found = {spec.name: _shape(context.get_tensor_shape(spec.name)) for spec in self.outputs}
        for name, shape in found.items():
            if DYNAMIC in shape:
                raise AgentError(
                    f"the size of output {name!r} depends on the data ({list(shape)}); engines of this kind "
                    "are not served",
                    kind="incompatible",
                    hint="build the release for onnxruntime, or pad the output to a fixed size in the model",
                )
        with self._guard:
            self._known[key] = found
            while len(self._known) > _MAX_SHAPES:
                self._known.popitem(last=False)
        return found

    def known_shapes(self, shapes: Shapes) -> dict[str, Shape] | None:
        """Shapes of all outputs, where they need no context: fixed, or asked before."""
        if all(DYNAMIC not in spec.shape for spec in self.outputs):
            return {spec.name: spec.shape for spec in self.outputs}
        with self._guard:
            return self._known.get(tuple(shapes[spec.name] for spec in self.inputs))

    def weights_bytes(self) -> tuple[int | None, str]:
        """Bytes of all weights, and where that comes from."""
        trt, engine = self.trt, self.raw
        if hasattr(engine, "get_engine_stat"):
            size = int(engine.get_engine_stat(trt.EngineStat.TOTAL_WEIGHTS_SIZE))
            if size >= 0:
                return size, "TensorRT: TOTAL_WEIGHTS_SIZE"
        return self.file_bytes, "size of the engine file, which holds little else; this TensorRT does not tell"

    def failed(self, what: str) -> AgentError:
        """An error of TensorRT's, with what it said last."""
        return AgentError(
            f"{self.library.title} failed: {what}: {self.heard.last_error('it did not say why')}",
            kind="internal",
            hint="see the agent's log",
        )

    def close(self) -> None:
        """Let the engine go, before what made it. No context of it may be left."""
        self.raw = None
        self._runtime = None


def read_engine(library: Library, heard: Heard, path: Path) -> Engine:
    """Read and deserialise an engine. Within `Cuda.current`.

    Raises:
        AgentError: it cannot be read, TensorRT refuses it (kind incompatible, in TensorRT's own words), or it has
            tensors that are not served.
    """
    trt = library.load()
    try:
        with path.open("rb") as file:
            plan = file.read(_MAX_ENGINE_BYTES + 1)
    except OSError as error:
        raise AgentError(f"the engine cannot be read: {error.strerror}", kind="internal") from error
    if len(plan) > _MAX_ENGINE_BYTES:
        raise AgentError(f"the engine has more than {_MAX_ENGINE_BYTES} bytes", kind="too_large")
    runtime = trt.Runtime(heard.logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise AgentError(
            f"{library.title} refuses the engine: {heard.last_error('it did not say why')}",
            kind="incompatible",
            hint="build the release for this device's target: kedge build --target …",
        )
    return Engine(library, heard, engine, runtime, plan)


def _served(trt: Any, engine: Any, name: str) -> TensorSpec:
    dtype = engine.get_tensor_dtype(name)
    datatype = _DATATYPES.get(dtype.name)
    why = None
    if datatype is None:
        why = f"has the type {dtype.name}"
    elif engine.get_tensor_location(name) != trt.TensorLocation.DEVICE or engine.is_shape_inference_io(name):
        why = "is a shape tensor"
    elif engine.get_tensor_format(name) != trt.TensorFormat.LINEAR:
        why = "has another layout than rows one after another"
    if datatype is None or why is not None:
        raise AgentError(
            f"tensor {name!r} of the engine {why}, which the agent does not serve",
            kind="incompatible",
            hint="build the engine from the ONNX file with kedge build, or cast the tensor in the model",
        )
    return TensorSpec(name, datatype, _shape(engine.get_tensor_shape(name)))


def _bounds(engine: Any, spec: TensorSpec, number: int) -> tuple[Shape, Shape, Shape]:
    if DYNAMIC not in spec.shape:
        return spec.shape, spec.shape, spec.shape
    least, best, greatest = engine.get_tensor_profile_shape(spec.name, number)
    return _shape(least), _shape(best), _shape(greatest)


def _shape(dims: Any) -> Shape:
    return tuple(int(dims[axis]) for axis in range(len(dims)))

"""onnxruntime on the CPU, through IO binding to buffers that the agent allocated once.

Outputs whose sizes follow from the inputs' (fixed, or named by the same symbol) are bound to our
memory too. Where a model's output sizes depend on its data, onnxruntime allocates them per run.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..errors import AgentError
from ..formats.tensors import DYNAMIC, TensorSpec
from .base import Binding, Buffers, LoadOptions, MemoryItem, Shapes, Split
from .buffers import Arena

__all__ = ["OnnxRuntime"]

_MAX_BINDINGS = 8
_MAX_TENSOR_BYTES = 1 << 30

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
}


class OnnxRuntime:
    """The runtime every device has."""

    name = "onnxruntime"

    def version(self) -> str | None:
        """Version of the installed onnxruntime, without importing it; None when it is missing."""
        from importlib import metadata

        try:
            return metadata.version("onnxruntime")
        except metadata.PackageNotFoundError:
            return None

    def load(self, path: Path, options: LoadOptions) -> OnnxModel:
        """Load an ONNX file.

        Raises:
            AgentError: onnxruntime is missing or refuses the model (kind incompatible).
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise AgentError(
                f"onnxruntime cannot be imported: {error}",
                kind="incompatible",
                hint="provision the device again: kedge device provision",
            ) from error
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
        # Idle worker threads that spin would burn a core of a device that serves one request now and then.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Its arena never gives memory back: one large request would keep its peak for years.
        settings.enable_cpu_mem_arena = False
        settings.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises many unrelated classes
            raise AgentError(
                f"onnxruntime {onnxruntime.__version__} refuses the model: {_first_line(error)}",
                kind="incompatible",
                hint="check the model's opset and IR version against the device's onnxruntime",
            ) from error
        return OnnxModel(session, options.workers)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _spec(argument: Any) -> TensorSpec:
    datatype = _DATATYPES.get(argument.type)
    if datatype is None:
        raise AgentError(
            f"tensor {argument.name!r} has the type {argument.type}, which the agent does not serve",
            kind="incompatible",
            hint="numeric and boolean tensors are served",
        )
    shape = tuple(dim if isinstance(dim, int) and dim >= 0 else DYNAMIC for dim in argument.shape)
    symbols = tuple(dim if isinstance(dim, str) else "" for dim in argument.shape)
    return TensorSpec(argument.name, datatype, shape, symbols)


class OnnxModel:
    """A session and the specifications of its inputs and outputs."""

    def __init__(self, session: Any, workers: int) -> None:
        self._session = session
        self.in_flight = workers
        self.inputs = tuple(_spec(argument) for argument in session.get_inputs())
        self.outputs = tuple(_spec(argument) for argument in session.get_outputs())

    def slot(self) -> OnnxSlot:
        """Fresh buffers for one more request in flight."""
        if self._session is None:
            raise AgentError("the model has been unloaded", kind="busy", hint="try again")
        return OnnxSlot(self._session, self.inputs, self.outputs)

    def ledger(self) -> tuple[MemoryItem, ...]:
        """What onnxruntime tells of its memory: nothing."""
        return (MemoryItem("weights", None, "onnxruntime does not tell"),)

    def facts(self) -> dict[str, Any]:
        """The execution providers in use."""
        return {"providers": list(self._session.get_providers()) if self._session is not None else []}

    def close(self) -> None:
        """Drop the session; its memory goes when the last slot does."""
        self._session = None


class OnnxSlot:
    """Buffers of one request in flight, and the bindings made on them."""

    def __init__(self, session: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        self._session = session
        self._inputs = inputs
        self._outputs = outputs
        self._arena = Arena()
        self._bindings: OrderedDict[tuple[tuple[int, ...], ...], tuple[int, OnnxBinding]] = OrderedDict()

    def bind(self, shapes: Shapes) -> Binding:
        """A binding for these input shapes: cached, unless a buffer had to move since.

        Raises:
            AgentError: a tensor would exceed 1 GiB (kind too_large).
        """
        key = tuple(shapes[spec.name] for spec in self._inputs)
        generation, binding = self._bindings.get(key, (-1, None))
        if binding is not None and generation == self._arena.generation:
            self._bindings.move_to_end(key)
            return binding
        outputs = self._output_shapes(shapes)
        for spec in (*self._inputs, *self._outputs):
            shape = shapes.get(spec.name) or outputs.get(spec.name) or ()
            size = spec.dtype.itemsize
            for dim in shape:
                size *= dim
            if size > _MAX_TENSOR_BYTES:
                raise AgentError(f"tensor {spec.name!r} of shape {list(shape)} is too large", kind="too_large")
        before = self._arena.generation
        binding = OnnxBinding(self._session, self._inputs, self._outputs, shapes, outputs, self._arena)
        if self._arena.generation != before:
            # Bindings to blocks that moved are of no use, and hold the old blocks in memory.
            self._bindings.clear()
        self._bindings[key] = (self._arena.generation, binding)
        while len(self._bindings) > _MAX_BINDINGS:
            self._bindings.popitem(last=False)
        return binding

    def close(self) -> None:
        """Give the buffers back."""
        self._bindings.clear()
        self._arena = Arena()

    def _output_shapes(self, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        known: dict[str, int] = {}
        for spec in self._inputs:
            for symbol, dim in zip(spec.symbols, shapes[spec.name], strict=True):
                if symbol and known.setdefault(symbol, dim) != dim:
                    raise AgentError(f"inputs disagree about the size of dimension {symbol!r}")
        out: dict[str, tuple[int, ...]] = {}
        for spec in self._outputs:
            dims = [
                dim if dim != DYNAMIC else known.get(symbol)
                for dim, symbol in zip(spec.shape, spec.symbols, strict=True)
            ]
            if None not in dims:
                out[spec.name] = tuple(dim for dim in dims if dim is not None)
        return out


class OnnxBinding:
    """An onnxruntime IOBinding over an arena's memory."""

    def __init__(
        self,
        session: Any,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        shapes: Shapes,
        output_shapes: Shapes,
        arena: Arena,
    ) -> None:
        self._session = session
        self.inputs: Buffers = {spec.name: arena.tensor(spec.name, spec.dtype, shapes[spec.name]) for spec in inputs}
        # An output may bear an input's name: its memory must still be another.
        fixed = {
            spec.name: arena.tensor(f"out:{spec.name}", spec.dtype, output_shapes[spec.name])
            for spec in outputs
            if spec.name in output_shapes
        }
        self._order = tuple(spec.name for spec in outputs)
        self._fixed: Buffers = fixed
        self._io = session.io_binding()
        for name, array in self.inputs.items():
            self._io.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in fixed.items():
            self._io.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        self.outputs: Buffers = fixed
        self._split = Split(0)

    def submit(self) -> None:
        """Execute once; the outputs then hold the results.

        Raises:
            AgentError: onnxruntime failed on these inputs.
        """
        # What onnxruntime allocated for the last run has that run's size: it must allocate again.
        for name in self._order:
            if name not in self._fixed:
                self._io.bind_output(name, "cpu")
        begin = time.perf_counter_ns()
        try:
            self._session.run_with_iobinding(self._io)
        except Exception as error:  # onnxruntime raises many unrelated classes
            kind = "bad_input" if "INVALID_ARGUMENT" in str(error) else "internal"
            raise AgentError(
                f"inference failed: {_first_line(error)}", kind=kind, hint="see the agent's log"
            ) from error
        if len(self._fixed) < len(self._order):
            self.outputs = {**self._fixed, **self._allocated()}
        self._split = Split(time.perf_counter_ns() - begin)

    def wait(self) -> Split:
        """The time the run took; it is over already."""
        return self._split

    def _allocated(self) -> dict[str, NDArray[Any]]:
        # Outputs stand in the order in which their names were first bound: ours, then these.
        values = self._io.get_outputs()[len(self._fixed) :]
        names = [name for name in self._order if name not in self._fixed]
        return {name: value.numpy() for name, value in zip(names, values, strict=True)}

"""onnxruntime: sessions on the CPU, or on what execution providers are here, over buffers that the agent allocated."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import AgentError
from ..formats.providers import CPU
from ..formats.tensors import BYTES, DYNAMIC, TensorSpec, counts_samples
from .base import Buffers, LayerTime, LoadOptions, MemoryItem
from .onnx_arena import SharedArena, arena_of_process
from .onnx_binding import Served, first_line
from .onnx_inputs import has_bounded_inputs
from .onnx_profile import MAX_PROFILED_RUNS, read_profile
from .onnx_providers import chosen
from .onnx_slot import OnnxSlot

__all__ = ["OnnxModel", "OnnxRuntime"]

# One of them brings the module; JetPack's wheels bear the second name.
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino")

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
    "tensor(string)": BYTES,
}


class OnnxRuntime:
    """The runtime every device has."""

    name = "onnxruntime"

    def version(self) -> str | None:
        """Version of the installed onnxruntime, without importing it; None when it is missing."""
        # Not at the top: it brings the parsers of e-mail and of archives along, 2 MB.
        from importlib import metadata

        for distribution in _DISTRIBUTIONS:
            try:
                return metadata.version(distribution)
            except metadata.PackageNotFoundError:
                continue
        return None

    def load(self, path: Path, options: LoadOptions) -> OnnxModel:
        """Load an ONNX file.

        Raises:
            AgentError: onnxruntime is missing or refuses the model (kind incompatible), or a provider or its options
                are not allowed (kind bad_input).
        """
        return _load(path, options)

    def layers(self, path: Path, options: LoadOptions, inputs: Buffers, runs: int) -> tuple[LayerTime, ...]:
        """Run a session of its own under onnxruntime's profiler, and tell what each node took in each run.

        One run more, the first, is not told of. Nodes are those of the graph as onnxruntime optimised it.

        Raises:
            AgentError: as `load` and `BoundBinding.submit`; or runs is out of range or too many for this model.
        """
        import tempfile

        if not 1 <= runs <= MAX_PROFILED_RUNS:
            raise AgentError(f"runs is {runs}; it goes from 1 to {MAX_PROFILED_RUNS}")
        with tempfile.TemporaryDirectory(prefix="kedge-profile-") as folder:
            model = _load(path, options, profile=Path(folder) / "run")
            slot = model.slot()
            try:
                binding = slot.bind({name: array.shape for name, array in inputs.items()})
                for _ in range(runs + 1):
                    for name, array in inputs.items():
                        binding.inputs[name][...] = array
                    binding.submit()
                    binding.wait()
            finally:
                slot.close()
                # Always: the profiler writes its file when the session goes, if not before, and the folder goes first.
                file = model.end_profile()
                model.close()
            return read_profile(file, runs)


def _load(path: Path, options: LoadOptions, profile: Path | None = None) -> OnnxModel:
    try:
        import onnxruntime
    except ImportError as error:
        raise AgentError(
            f"onnxruntime cannot be imported: {error}",
            kind="incompatible",
            hint="provision the device again: kedge device provision",
        ) from error
    providers = chosen(options.providers, onnxruntime.get_available_providers())
    # Other providers than the CPU's bring arenas of their own; beside those, sharing has not been tried. Requests that
    # differ in size without a bound have peaks to give back, which in a shared arena would stall the others.
    on_cpu = [name for name, _ in providers] == [CPU]
    fixed = on_cpu and has_bounded_inputs(path)
    limited = on_cpu and not fixed and options.most_samples is not None and has_bounded_inputs(path, batch=True)
    arena = arena_of_process() if fixed or limited else None
    model = OnnxModel(_session(path, options, providers, profile, arena), options, arena)
    if arena is not None and limited and not counts_samples((*model.inputs, *model.outputs)):
        # onnxruntime infers more than the file says: what is no batch by its word, nobody limits.
        model.close()
        model = OnnxModel(_session(path, options, providers, profile, None), options, None)
    return model


def _session(
    path: Path, options: LoadOptions, providers: Sequence[Any], profile: Path | None, arena: SharedArena | None
) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    # Idle worker threads that spin would burn a core of a device that serves one request now and then.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Errors are raised, and said where they are handled; a line of each on standard error would fill whatever takes it.
    settings.log_severity_level = 4
    if arena is not None:
        arena.share(settings)
    if profile is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile)
    try:
        return onnxruntime.InferenceSession(str(path), settings, providers=providers)
    except Exception as error:  # onnxruntime raises many unrelated classes
        raise AgentError(
            f"onnxruntime {onnxruntime.__version__} refuses the model: {first_line(error)}",
            kind="incompatible",
            hint="check the model's opset and IR version against the device's onnxruntime",
        ) from error


def _spec(argument: Any) -> TensorSpec:
    datatype = _DATATYPES.get(argument.type)
    if datatype is None:
        raise AgentError(
            f"tensor {argument.name!r} has the type {argument.type}, which the agent does not serve",
            kind="incompatible",
            hint="tensors of numbers, booleans and strings are served",
        )
    shape = tuple(dim if isinstance(dim, int) and dim >= 0 else DYNAMIC for dim in argument.shape)
    symbols = tuple(dim if isinstance(dim, str) else "" for dim in argument.shape)
    try:
        return TensorSpec(argument.name, datatype, shape, symbols)
    except ValueError as error:
        raise AgentError(str(error), kind="incompatible") from error


class OnnxModel:
    """A session and the specifications of its inputs and outputs."""

    def __init__(self, session: Any, options: LoadOptions, arena: SharedArena | None) -> None:
        self.in_flight = options.workers
        self.inputs = tuple(_spec(argument) for argument in session.get_inputs())
        self.outputs = tuple(_spec(argument) for argument in session.get_outputs())
        self._served: Served | None = Served(session, self.inputs, self.outputs, arena)
        self._arena = arena
        self._guard = threading.Lock()
        self._slots: weakref.WeakSet[OnnxSlot] = weakref.WeakSet()
        self._facts = {
            "providers_asked_for": [provider.name for provider in options.providers],
            "providers": list(session.get_providers()),
            "threads": options.threads,
            "bound": not self._served.has_strings,
            "arena": "own" if arena is None else "shared",
        }

    def slot(self) -> OnnxSlot:
        """Fresh buffers for one more request in flight."""
        if self._served is None:
            raise AgentError("the model has been unloaded", kind="busy", hint="try again")
        slot = OnnxSlot(self._served)
        with self._guard:
            self._slots.add(slot)
        return slot

    def ledger(self) -> tuple[MemoryItem, ...]:
        """What onnxruntime tells of its memory, which is nothing, and the slots' buffers."""
        with self._guard:
            sizes = [slot.buffer_bytes for slot in self._slots]
        arena = "an arena of its own" if self._arena is None else "the arena that it shares"
        return (
            MemoryItem("weights", None, "onnxruntime does not tell"),
            MemoryItem("activations", None, f"onnxruntime does not tell; free after each run, in {arena}"),
            MemoryItem("buffers", sum(sizes), f"the blocks of {len(list(filter(None, sizes)))} slots, counted"),
        )

    def facts(self) -> dict[str, Any]:
        """Execution providers, asked for and in use, threads, whether tensors are bound in place, and whose arena."""
        return dict(self._facts)

    def end_profile(self) -> Path:
        """Stop onnxruntime's profiler; the file it wrote.

        Raises:
            AgentError: the model has been unloaded (kind busy).
        """
        if self._served is None:
            raise AgentError("the model has been unloaded", kind="busy", hint="try again")
        return Path(self._served.session.end_profiling())

    def close(self) -> None:
        """Drop the session; its memory goes when the last slot does."""
        if self._served is not None:
            self._served = None
            if self._arena is not None:
                self._arena.give_back()

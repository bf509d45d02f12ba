"""TensorRT 10.3 to 11, and TensorRT for RTX, as runtimes of the agent: engines on the GPU of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine.here import gpu_here
from ..engine.library import Heard, Library, capture, library_of
from ..engine.report import FAULTS, EngineError
from ..errors import AgentError
from .base import Buffers, LayerTime, LoadOptions
from .cuda_lanes import Gpu, gpu_of_process

if TYPE_CHECKING:
    from .tensorrt_model import TensorRTModel

__all__ = ["TensorRTRuntime"]


class TensorRTRuntime:
    """Loads engines.

    Args:
        name: tensorrt or tensorrt-rtx.
        library: which to use; None: the one of this name.
        gpu: what gives the GPU; None: the one of this process, opened by the first engine that is loaded.
    """

    def __init__(self, name: str, *, library: Library | None = None, gpu: Callable[[], Gpu] | None = None) -> None:
        self.name = name
        self._library = library_of(name) if library is None else library
        self._gpu = gpu
        self._version: str | None = None

    def version(self) -> str | None:
        """Version of the installed library, without loading it; None where it is missing, or there is no GPU.

        TensorRT for RTX is installed on hosts too, where it compiles and runs nothing.
        """
        if self._gpu is None and gpu_here() is None:
            return None
        if self._version is None:  # where it was found it is not asked again: that may take a process of its own
            self._version = self._library.version()
        return self._version

    def load(self, path: Path, options: LoadOptions) -> TensorRTModel:
        """Load an engine.

        Raises:
            AgentError: library, driver or CUDA binding is missing, or the engine is refused (kind incompatible);
                there is no memory left (kind space).
        """
        # Not at the top: every agent has this runtime, few have a GPU.
        from .tensorrt_model import TensorRTModel

        with self._open() as (gpu, heard), gpu.cuda.current():
            return TensorRTModel(gpu, self._library, heard, path, options)

    def layers(self, path: Path, options: LoadOptions, inputs: Buffers, runs: int) -> tuple[LayerTime, ...]:
        """What each layer took in each of some runs, by IProfiler, on a model of its own.

        A layer's kind is not told: TensorRT's layers are several of the network's, and have their names.

        Raises:
            AgentError: as `load` and `Binding.submit`.
        """
        from .tensorrt_model import TensorRTModel

        profiler = _profiler(self._library.load())
        plain = LoadOptions(options.threads, cache=options.cache)
        with self._open() as (gpu, heard), gpu.cuda.current():
            model = TensorRTModel(gpu, self._library, heard, path, plain, plain=True)
            try:
                slot = model.slot()
                try:
                    binding = slot.bind({name: array.shape for name, array in inputs.items()})
                    for name, array in inputs.items():
                        np.copyto(binding.inputs[name], array)
                    binding.submit()
                    binding.wait()
                    model.seats.profile_with(profiler)
                    for _ in range(runs):
                        binding.submit()
                        binding.wait()
                finally:
                    slot.close()
            finally:
                model.close()
        return tuple(LayerTime(name, "", tuple(times)) for name, times in profiler.times.items())

    @contextmanager
    def _open(self) -> Iterator[tuple[Gpu, Heard]]:
        """The GPU, and TensorRT's ear; one load at a time.

        Raises:
            AgentError: the library, a driver or a CUDA binding is missing (kind incompatible).
        """
        gpu = (self._gpu or gpu_of_process)()
        try:
            with capture(self._library) as heard:
                yield gpu, heard
        except EngineError as error:
            raise AgentError(error.message, kind=FAULTS[error.kind], hint=error.hint) from error


def _profiler(trt: Any) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc]
        """Keeps the milliseconds that TensorRT tells of each layer, run after run."""

        def __init__(self) -> None:
            super().__init__()
            self.times: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times.setdefault(layer_name, []).append(float(ms))

    return Profiler()

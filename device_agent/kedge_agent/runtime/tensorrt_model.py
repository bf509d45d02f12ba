"""A model on a GPU: an engine, its contexts on the lanes, its slots; what it chose at load, what it holds."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.library import Heard, Library
from ..errors import AgentError
from ..formats.tensors import DYNAMIC
from .base import LoadOptions, MemoryItem, Shapes
from .cuda_lanes import Gpu
from .tensorrt_engine import Profile, read_engine
from .tensorrt_kernels import Kernels
from .tensorrt_seats import Graphs, Seat, Seats, set_shapes
from .tensorrt_slot import TensorRTSlot
from .transfers import Mode, choose

__all__ = ["TensorRTModel"]

_WARM_RUNS, _TIMED_RUNS = 2, 10
_GPU_HINT = "free memory (cuMemGetInfo) before and after, of all processes"


class TensorRTModel:
    """An engine that serves. Made within `Cuda.current` and `capture(library)`.

    Args:
        gpu: with the lanes that it shares with other models.
        library: TensorRT, or TensorRT for RTX.
        heard: what the library says.
        path: the engine's file.
        options: workers, transfer, and the folder for what is compiled here.
        plain: neither graphs nor trials, for profiling.

    Raises:
        AgentError: the engine is refused (kind incompatible), there is no memory left (kind space), or a run failed.
    """

    def __init__(
        self, gpu: Gpu, library: Library, heard: Heard, path: Path, options: LoadOptions, *, plain: bool = False
    ) -> None:
        self.cuda = cuda = gpu.cuda
        self._gpu = gpu
        self._guard = threading.Lock()
        self._slots: set[TensorRTSlot] = set()
        self._closed = False
        with ExitStack() as undo:
            begin = time.perf_counter_ns()
            self.loaded = loaded = read_engine(library, heard, path)
            undo.callback(loaded.close)
            self.inputs, self.outputs = loaded.inputs, loaded.outputs
            self.kernels = kernels = Kernels(loaded, options.cache, graphs=not plain)
            undo.callback(kernels.close)
            deserialised = time.perf_counter_ns()
            self._lanes = gpu.join(self, options.workers, loaded.scratch_bytes)
            undo.callback(lambda: gpu.leave(self, self._lanes))
            free = cuda.free_bytes()
            seats: list[Seat] = []
            # Undone last in, first out: contexts go before the engine does.
            undo.callback(lambda: Seats(seats).close())
            seats.extend(
                Seat(cuda, loaded, kernels, self._lanes[number % options.workers])
                for number in range(2 * options.workers + 1)
            )
            self._asked: Any = kernels.context() if any(DYNAMIC in spec.shape for spec in loaded.outputs) else None
            undo.callback(self._drop_asked)
            self.seats = Seats(seats)
            made = time.perf_counter_ns()
            self._contexts, self._context_bytes = len(seats), free - cuda.free_bytes()
            self.in_flight = 2 * options.workers
            ours = "profiled runs are plain" if plain else None
            self.graphs = Graphs(cuda, f"{library.title} captures its own" if kernels.own_graphs else ours)
            names = [spec.name for spec in (*loaded.inputs, *loaded.outputs)]
            copied: dict[str, Mode] = dict.fromkeys(names, "copy")
            first_ms = self._timed(copied, warm=0, runs=1)
            self._chosen = choose("copy" if plain else options.transfer, cuda.device, names, self._timed)
            tried = time.perf_counter_ns()
            self._warm(self._chosen.modes)
            kernels.keep()
            self._load_ms = {
                "deserialise_ms": (deserialised - begin) / 1e6,
                "contexts_ms": (made - deserialised) / 1e6,
                "first_run_ms": first_ms,
                "trials_ms": (tried - made) / 1e6 - first_ms,
                "warm_runs_ms": (time.perf_counter_ns() - tried) / 1e6,
            }
            undo.pop_all()

    def slot(self) -> TensorRTSlot:
        """Fresh buffers; memory is taken when shapes are bound.

        Raises:
            AgentError: the model has been closed (kind busy).
        """
        return self._slot(self._chosen.modes)

    def resolve(self, shapes: Shapes) -> tuple[Profile, Mapping[str, tuple[int, ...]]]:
        """The profile for shapes of inputs, and the shapes of outputs.

        Raises:
            AgentError: outside all profiles (kind bad_input), or an output's size depends on the data.
        """
        profile = self.loaded.profile_for(shapes)
        known = self.loaded.known_shapes(shapes)
        if known is not None:
            return profile, known
        lane = self._lanes[0]
        with lane.lock:
            set_shapes(self.loaded, self._asked, profile, shapes, lane)
            return profile, self.loaded.output_shapes(shapes, self._asked)

    def ledger(self) -> tuple[MemoryItem, ...]:
        """Weights, scratch, contexts, and the buffers of all slots that are open now."""
        weights, method = self.loaded.weights_bytes()
        with self._guard:
            slots = tuple(self._slots)
        count = f"of {len(slots)} slots, as allocated"
        scratch = sum(lane.scratch.size for lane in self._lanes) if not self._released() else None
        return (
            MemoryItem("weights", weights, method),
            MemoryItem(
                "scratch",
                scratch,
                f"as allocated for {len(self._lanes)} workers; this model needs {self.loaded.scratch_bytes} bytes each "
                "(device_memory_size_v2), shared with all models on this GPU",
            ),
            MemoryItem(
                "context",
                self._context_bytes if self._context_bytes >= 0 else None,
                f"{self._contexts} contexts: {_GPU_HINT}",
            ),
            MemoryItem("pinned", sum(slot.pinned.size for slot in slots), f"page-locked buffers {count}"),
            MemoryItem("managed", sum(slot.managed.size for slot in slots), f"managed buffers {count}"),
            MemoryItem("buffers", sum(slot.staging.size for slot in slots), f"device buffers {count}"),
        )

    def facts(self) -> dict[str, Any]:
        """What was chosen at load and why, as plain JSON."""
        return {
            "binding": self.cuda.binding,
            "device": self.cuda.device.to_json(),
            "load": self._load_ms,
            "kernels": self.kernels.facts(),
            "profiles": [
                {name: [list(shape) for shape in bounds] for name, bounds in each.bounds.items()}
                for each in self.loaded.profiles
            ],
            "transfers": {"chosen": dict(self._chosen.modes), **self._chosen.report},
            "graphs": {"captured": self.graphs.captured, "why_not": self.graphs.why_not},
        }

    def close(self) -> None:
        """Take no more slots; engine and contexts go with the last slot that is open. Idempotent."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
            last = not self._slots
        if last:
            self._release()

    def slot_closed(self, slot: TensorRTSlot) -> None:
        """A slot has given its memory back."""
        with self._guard:
            self._slots.discard(slot)
            last = self._closed and not self._slots
        if last:
            self._release()

    def _slot(self, modes: Mapping[str, Mode]) -> TensorRTSlot:
        with self._guard:
            if self._closed:
                raise AgentError("the model has been unloaded", kind="busy", hint="try again")
            slot = TensorRTSlot(self, modes)
            self._slots.add(slot)
            return slot

    def _released(self) -> bool:
        with self._guard:
            return self._closed and not self._slots

    def _release(self) -> None:
        with self.cuda.current():
            self.kernels.keep()
            self._drop_asked()
            self.seats.close()
            self._gpu.leave(self, self._lanes)
            self.kernels.close()
            self.loaded.close()

    def _drop_asked(self) -> None:
        self._asked = None

    def _warm(self, modes: Mapping[str, Mode]) -> None:
        """Run every context once, all at a time: a first run is slow, and no request should meet it."""
        with ExitStack() as held:
            bindings = []
            for _ in range(self._contexts):
                slot = self._slot(modes)
                held.callback(slot.close)
                binding = slot.bind(self.loaded.best_shapes)
                for array in binding.inputs.values():
                    array[...] = 0
                binding.submit()
                bindings.append(binding)
            for binding in bindings:
                binding.wait()

    def _timed(self, modes: Mapping[str, Mode], warm: int = _WARM_RUNS, runs: int = _TIMED_RUNS) -> float:
        """Median milliseconds of a request in the engine's best shapes: buffers filled, run, results read.

        The CPU's share is in it: memory that is fast for the GPU may be slow to fill.
        """
        slot = self._slot(modes)
        try:
            binding = slot.bind(self.loaded.best_shapes)
            given = {name: np.zeros_like(array) for name, array in binding.inputs.items()}
            taken = {name: np.zeros_like(array) for name, array in binding.outputs.items()}
            times = []
            for _ in range(warm + runs):
                begin = time.perf_counter_ns()
                for name, array in given.items():
                    binding.inputs[name][...] = array
                binding.submit()
                binding.wait()
                for name, array in taken.items():
                    array[...] = binding.outputs[name]
                times.append((time.perf_counter_ns() - begin) / 1e6)
            return statistics.median(times[warm:])
        finally:
            slot.close()

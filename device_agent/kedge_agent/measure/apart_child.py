"""What the child processes of `apart` run: each task takes its folder and request, and gives plain JSON."""

from __future__ import annotations

import functools
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AgentError
from ..formats.latency import summarize
from ..formats.strings import decode_strings
from ..formats.tensors import BYTES, DATATYPES
from ..runtime.base import Binding, LoadedModel, LoadOptions, Provider
from ..runtime.table import import_library, runtime_named
from ..wire import parse_json
from .memory import OwnPeak, forget_pages, phase
from .parity import compare_output, require_golden
from .schedule import TimingRules

__all__ = ["gate", "layers", "phases", "trial"]

_MOST_WARM_UPS = 100

Task = Callable[[Path, Mapping[str, Any]], dict[str, Any]]


def _answering(task: Task) -> Task:
    """What the agent's own errors say is an answer too."""

    @functools.wraps(task)
    def answer(folder: Path, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return task(folder, request)
        except AgentError as error:
            return {"error": {"message": error.message, "kind": error.kind, "hint": error.hint}}

    return answer


@_answering
def trial(folder: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """See `apart.try_load`."""
    runtime, options = runtime_named(request["runtime"]), _options(request)
    inputs = _tensors(folder, "inputs")
    took = _Took()
    with took.part("import_ms"):
        import_library(runtime.name)
    with took.part("load_ms"):
        model = runtime.load(Path(request["path"]), options)
    if inputs is not None:
        with took.part("run_ms"), _bound(model, inputs) as binding:
            _run(binding, inputs)
    model.close()
    return took.to_json()


@_answering
def gate(folder: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """See `apart.try_gates`."""
    runtime, options = runtime_named(request["runtime"]), _options(request)
    inputs, golden = _tensors(folder, "inputs") or {}, _tensors(folder, "outputs") or {}
    took = _Took()
    with took.part("import_ms"):
        import_library(runtime.name)
    imported = took.own_bytes
    if request["memory_bytes"] is not None:
        _confine(request["memory_bytes"])
    with took.part("load_ms"):
        model = runtime.load(Path(request["path"]), options)
    require_golden(inputs, golden, model.inputs, model.outputs)
    with ExitStack() as stack:
        with took.part("run_ms"):
            binding = stack.enter_context(_bound(model, inputs))
            _run(binding, inputs)
        parity = [asdict(compare_output(name, binding.outputs[name], golden[name])) for name in golden]
        times_ms = _times_ms(binding, TimingRules(**request["timing"]))
        took.peak.note()
    model.close()
    return {
        "trial": took.to_json(),
        "imported_bytes": imported,
        "libraries_bytes": took.peak.libraries_bytes,
        "parity": parity,
        "latency": summarize(times_ms).to_json(),
    }


class _Took:
    """Time of each part of a trial, and its memory, which is noted after each and is in the time of none."""

    def __init__(self) -> None:
        self.peak = OwnPeak()
        self.own_bytes: int | None = None
        self._ms: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.perf_counter_ns()
        yield
        self._ms[name] = (time.perf_counter_ns() - start) / 1e6
        self.own_bytes = self.peak.note()

    def to_json(self) -> dict[str, Any]:
        """As `apart.Trial`."""
        memory = {"peak_rss_bytes": self.peak.rss_bytes, "peak_bytes": self.peak.bytes}
        return {"run_ms": None, **self._ms, **memory}


def _times_ms(binding: Binding, rules: TimingRules) -> list[float]:
    """What runs take from when they are handed over until their results are there: a request's `compute`."""

    def once() -> float:
        start = time.perf_counter_ns()
        binding.submit()
        binding.wait()
        return (time.perf_counter_ns() - start) / 1e6

    begin = time.monotonic()
    for _ in range(_MOST_WARM_UPS):
        once()
        if time.monotonic() - begin >= rules.warm_up_s:
            break
    times_ms: list[float] = []
    begin = time.monotonic()
    while not rules.enough(len(times_ms), time.monotonic() - begin):
        times_ms.append(once())
    return times_ms


def _confine(more_bytes: int) -> None:
    """Let this process reserve so much more address space than it has already, and no more."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more_bytes,) * 2)


@_answering
def phases(folder: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """See `apart.measure_phases`."""
    runtime, path, inputs = runtime_named(request["runtime"]), Path(request["path"]), _tensors(folder, "inputs") or {}
    (folder / "cache").mkdir()
    options = replace(_options(request), cache=folder / "cache")
    forget_pages(path)
    with phase() as importing:
        import_library(runtime.name)
    with phase() as first_load:
        model = runtime.load(path, options)
    with phase() as first_run, _bound(model, inputs) as binding:
        _run(binding, inputs)
    model.close()
    with phase() as warm_load:
        model = runtime.load(path, options)
    times_ms = []
    with _bound(model, inputs) as binding:
        _run(binding, inputs)
        with phase() as inference:
            for _ in range(request["runs"]):
                start = time.perf_counter_ns()
                _run(binding, inputs)
                times_ms.append((time.perf_counter_ns() - start) / 1e6)
    model.close()
    found = {
        "import": importing,
        "first_load": first_load,
        "first_run": first_run,
        "warm_load": warm_load,
        "inference": inference,
    }
    return {
        **{name: part.to_json() for name, part in found.items()},
        "runs": request["runs"],
        "latency": summarize(times_ms).to_json(),
    }


@_answering
def layers(folder: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """See `apart.profile_layers`."""
    runtime, inputs = runtime_named(request["runtime"]), _tensors(folder, "inputs") or {}
    # What a profiler writes goes with the rest, also where this process is killed.
    tempfile.tempdir = str(folder)
    found = runtime.layers(Path(request["path"]), _options(request), inputs, request["runs"])
    return {"layers": [asdict(layer) for layer in found]}


def _options(request: Mapping[str, Any]) -> LoadOptions:
    told = dict(request["options"])
    providers = tuple(Provider(each["name"], each["options"]) for each in told.pop("providers"))
    cache = told.pop("cache")
    return LoadOptions(**told, providers=providers, cache=None if cache is None else Path(cache))


def _tensors(folder: Path, what: str) -> dict[str, NDArray[Any]] | None:
    file = folder / f"{what}.json"
    if not file.is_file():
        return None
    header = parse_json(file.read_bytes(), floats=True)
    data = memoryview((folder / f"{what}.bin").read_bytes())
    out: dict[str, NDArray[Any]] = {}
    offset = 0
    for entry in header["inputs"]:
        size, shape = entry["parameters"]["binary_data_size"], tuple(entry["shape"])
        part = data[offset : offset + size]
        if entry["datatype"] == BYTES:
            out[entry["name"]] = decode_strings(part, shape)
        else:
            out[entry["name"]] = np.frombuffer(part, DATATYPES[entry["datatype"]]).reshape(shape)
        offset += size
    return out


@contextmanager
def _bound(model: LoadedModel, inputs: Mapping[str, NDArray[Any]]) -> Iterator[Binding]:
    slot = model.slot()
    try:
        yield slot.bind({name: array.shape for name, array in inputs.items()})
    finally:
        slot.close()


def _run(binding: Binding, inputs: Mapping[str, NDArray[Any]]) -> None:
    for name, array in inputs.items():
        binding.inputs[name][...] = array
    binding.submit()
    binding.wait()

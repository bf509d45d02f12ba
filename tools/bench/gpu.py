"""What this project promises of a GPU, measured on the one that is here: bandwidth, latency, overlap.

    python tools/bench/gpu.py [--model MODEL.onnx] [--engine ENGINE --runtime NAME] [--out FOLDER] [--smoke]
    python tools/bench/gpu.py --stand-in

bandwidth: copies to the device from page-locked and from pageable memory. latency: a request through the agent's pool
against a bare loop of `execute_async_v3`, both with their copies, in turns in one run; the goal is a ratio of medians
of at most 1.05. The bare loop uses no CUDA graphs; the file says whether the agent did. overlap: which share of a copy
in passes while the request before it computes, by the GPU's events, and the rate of two clients against that of one.
Each goes to FOLDER/gpu-NAME.json with its conditions, all three at the end: a run that lacks TensorRT leaves no new
bandwidth beside the latency of another day. With --stand-in the engine is one of the tests' stand-in for TensorRT,
whose kernels take half a millisecond at 2 GHz: so what surrounds TensorRT is measured where none runs. The first
binding of CUDA that can be imported is used (pycuda, then cuda-bindings).
Exit status 7, and one line, where something is missing.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from facts import ROOT, SHARED, commit, not_measured, now, processor

from kedge_agent.engine.apart import compile_apart
from kedge_agent.engine.compile import COMPUTE_CAPABILITIES
from kedge_agent.engine.here import gpu_here, jetson_linux, power_mode
from kedge_agent.engine.library import RUNTIMES, Library, capture
from kedge_agent.engine.order import Order
from kedge_agent.engine.report import EngineError
from kedge_agent.errors import AgentError
from kedge_agent.formats.latency import summarize
from kedge_agent.measure.sensors.nvml import find_gpus
from kedge_agent.runtime.base import LoadOptions
from kedge_agent.runtime.cuda import Cuda
from kedge_agent.runtime.cuda_lanes import Gpu
from kedge_agent.runtime.cuda_lanes import gpu_of_process as the_gpu
from kedge_agent.runtime.pool import ModelPool, Timing
from kedge_agent.runtime.tensorrt import TensorRTRuntime
from kedge_agent.runtime.tensorrt_engine import read_engine
from kedge_agent.runtime.tensorrt_model import TensorRTModel

SIZES = (4 << 10, 602_112, 8 << 20, 64 << 20)
COPIES = 30
WARM_S = 0.5
BLOCK = 50
CLIENT_S = 3.0
STAND_IN = "602,112 bytes doubled by two kernels, in a million cycles of the GPU's clock"


class MissingError(Exception):
    """Something that a measurement needs is not here."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SHARED / "models" / "mobilenetv2_imagenet.onnx")
    parser.add_argument("--engine", type=Path, help="an engine of this GPU, instead of compiling the model")
    parser.add_argument("--runtime", choices=list(RUNTIMES), help="default: the first that is installed and fits")
    parser.add_argument("--stand-in", action="store_true", help="measure around a stand-in for TensorRT")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--rounds", type=int, default=20, help=f"turns of {BLOCK} requests each way (default: 20)")
    parser.add_argument("--smoke", action="store_true", help="four turns, to files of names of their own")
    given = parser.parse_args()
    suffix = ".smoke" if given.smoke else ""
    if given.smoke:
        given.rounds = 4
    try:
        gpu = opened()
        conditions = described(gpu.cuda)
        with gpu.cuda.current():
            copies = bandwidth(gpu.cuda)
        with tempfile.TemporaryDirectory(prefix="kedge-gpu-") as name:
            path = Path(name) / "model.engine"
            if given.stand_in:
                library, engine = stood_in(path)
                conditions |= {"runtime": library.title, "model": STAND_IN}
            else:
                library = chosen(given.runtime)
                engine = given.engine or compiled(library, given.model, path)
                conditions |= {"runtime": f"{library.title} {library.version()}"}
                conditions |= {"model": (given.engine or given.model).name}
            runtime = TensorRTRuntime(library.name, library=library, gpu=lambda: gpu)
            model = runtime.load(engine, LoadOptions(transfer="copy"))
            conditions |= {"transfer": "copy"}
            pool = ModelPool(model)
            try:
                found = latency(gpu.cuda, library, engine, pool, given.rounds)
                # The bare loop has none: where the agent has, a part of what it gains is theirs.
                conditions |= {"graphs_of_the_agent": model.facts()["graphs"]}
                results = {"bandwidth": copies, "latency": found, "overlap": overlap(model, pool)}
            finally:
                pool.retire()
        for measured, result in results.items():
            written(given.out, measured, suffix, conditions, result)
    except MissingError as error:
        return not_measured(str(error))
    return 0


def opened() -> Gpu:
    if gpu_here() is None:
        raise MissingError("no NVIDIA GPU and driver on this machine")
    try:
        return the_gpu()
    except AgentError as error:
        raise MissingError(f"{error.message} ({error.hint})") from error


def chosen(name: str | None) -> Library:
    """The runtime to measure.

    Raises:
        MissingError: none is installed, or none runs on this GPU.
    """
    gpu = gpu_here()
    for library in RUNTIMES.values():
        fits = not library.cross or (gpu is not None and gpu.compute_capability in COMPUTE_CAPABILITIES)
        if name in (None, library.name) and fits and library.version() is not None:
            return library
    capability = "none" if gpu is None else gpu.compute_capability
    raise MissingError(f"no TensorRT for this GPU (compute capability {capability}): latency and overlap")


def compiled(library: Library, model: Path, path: Path) -> Path:
    gpu = gpu_here()
    if gpu is None or not model.is_file():
        raise MissingError(f"no model {model}: latency and overlap")
    try:
        order = Order(library.name, (gpu.compute_capability,) if library.cross else ())
        path.write_bytes(compile_apart(model.read_bytes(), order).engine)
    except EngineError as error:
        raise MissingError(f"{model.name} does not compile: {error.message}") from error
    return path


def stood_in(path: Path) -> tuple[Library, Path]:
    """The tests' stand-in for TensorRT, and an engine of it."""
    sys.path.insert(0, str(ROOT))
    from tests.support import fake_tensorrt, ptx_tensorrt

    path.write_bytes(fake_tensorrt.plan({"x": [1, 3, 224, 224]}, scratch=602_112, spin_cycles=1_000_000))
    return ptx_tensorrt.library(), path


def bandwidth(cuda: Cuda) -> dict[str, Any]:
    """GB/s to the device by bytes, from page-locked and from pageable memory, copies of both in turns."""
    rows = []
    for size in SIZES:
        with ExitStack() as held:
            stream, begin, end = cuda.stream(), cuda.event(), cuda.event()
            locked, device = cuda.pinned(size), cuda.memory(size)
            for each in (device, locked, end, begin, stream):
                held.callback(each.close)
            pageable = np.ones(size, np.uint8)
            locked.array[:] = 1
            times: dict[str, list[float]] = {"pinned": [], "pageable": []}
            # Several small ones between two events, or Python's own time to queue them would be most of it.
            repeats = max(1, min(64, (32 << 20) // size))
            for _ in range(COPIES):
                for name, source in (("pinned", locked.array), ("pageable", pageable)):
                    begin.record(stream)
                    for _ in range(repeats):
                        stream.h2d(device.address, source)
                    end.record(stream)
                    end.synchronise()
                    times[name].append(end.elapsed_ms(begin) / repeats)
        rows.append(
            {"bytes": size}
            | {f"{name}_gb_per_s": size / statistics.median(took) / 1e6 for name, took in times.items()}
            | {"samples": COPIES, "copies_a_sample": repeats}
        )
    return {"rows": rows}


def latency(cuda: Cuda, library: Library, engine: Path, pool: ModelPool, rounds: int) -> dict[str, Any]:
    """Milliseconds of a request, bare and in the agent, `BLOCK` of each in turns."""
    with ExitStack() as held:
        held.enter_context(cuda.current())
        bare, shapes = bare_loop(cuda, library, engine, held)
        ways: Mapping[str, Callable[[], None]] = {"bare": bare, "agent": lambda: request(pool, shapes)}
        for way in ways.values():
            end = time.perf_counter() + WARM_S
            while time.perf_counter() < end:
                way()
        samples: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds):
            # Who goes first changes, so that a clock that falls as the GPU warms harms both alike.
            for name in sorted(ways, reverse=bool(number % 2)):
                for _ in range(BLOCK):
                    begin = time.perf_counter_ns()
                    ways[name]()
                    samples[name].append((time.perf_counter_ns() - begin) / 1e6)
    summaries = {name: summarize(found).to_json() for name, found in samples.items()}
    ratio = statistics.median(samples["agent"]) / statistics.median(samples["bare"])
    return {"ms": summaries, "agent_over_bare_p50": ratio, "goal": 1.05, "block": BLOCK, "rounds": rounds}


def bare_loop(
    cuda: Cuda, library: Library, path: Path, held: ExitStack
) -> tuple[Callable[[], None], dict[str, tuple[int, ...]]]:
    """What anyone would write: one context, one stream, page-locked buffers; and the shapes of its inputs."""
    heard = held.enter_context(capture(library))
    engine = read_engine(library, heard, path)
    held.callback(engine.close)
    context = engine.raw.create_execution_context()
    shapes = engine.best_shapes
    stream = cuda.stream()
    held.callback(stream.close)
    ins, outs = [], []
    for spec in (*engine.inputs, *engine.outputs):
        if spec.name in shapes and not context.set_input_shape(spec.name, shapes[spec.name]):
            raise engine.failed("a shape of the bare run")
        shape = tuple(context.get_tensor_shape(spec.name))
        size = max(int(np.prod(shape)) * spec.dtype.itemsize, 1)
        host, device = cuda.pinned(size), cuda.memory(size)
        held.callback(host.close)
        held.callback(device.close)
        host.array[:] = 0
        context.set_tensor_address(spec.name, device.address)
        (ins if spec.name in shapes else outs).append((device.address, host.array))

    def run() -> None:
        for address, array in ins:
            stream.h2d(address, array)
        if not context.execute_async_v3(stream.handle):
            raise engine.failed("the bare run")
        for address, array in outs:
            stream.d2h(array, address)
        stream.synchronise()

    return run, shapes


def overlap(model: TensorRTModel, pool: ModelPool) -> dict[str, Any]:
    """How much of the next copy in passes while a request computes, and what two clients get more than one."""
    shapes = model.loaded.best_shapes
    slots = [model.slot(), model.slot()]
    shares = []
    try:
        bindings = [slot.bind(shapes) for slot in slots]
        for _ in range(BLOCK):
            for binding in bindings:
                binding.submit()
            one, two = (binding.seat for binding in bindings)
            for binding in bindings:
                binding.wait()
            with model.cuda.current():
                begin, end, copy_begin, copy_end = (
                    mark.elapsed_ms(one.in_begin) for mark in (one.run_begin, one.run_end, two.in_begin, two.in_end)
                )
            passed = max(0.0, min(end, copy_end) - max(begin, copy_begin))
            shares.append(passed / (copy_end - copy_begin) if copy_end > copy_begin else 0.0)
    finally:
        for slot in slots:
            slot.close()
    return {
        "copy_in_beside_computation_share": {"median": statistics.median(shares), "samples": len(shares)},
        "requests_per_s": {str(clients): rate(pool, shapes, clients) for clients in (1, 2)},
    }


def rate(pool: ModelPool, shapes: Mapping[str, tuple[int, ...]], clients: int) -> float:
    """Requests a second of so many clients, each with the next one as soon as it has its answer."""
    counts = [0] * clients
    end = time.perf_counter() + CLIENT_S

    def client(number: int) -> None:
        while time.perf_counter() < end:
            request(pool, shapes)
            counts[number] += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / CLIENT_S


def request(pool: ModelPool, shapes: Mapping[str, tuple[int, ...]]) -> None:
    timing = Timing()
    with pool.request(shapes, timing) as binding:
        pool.run(binding, timing)


def described(cuda: Cuda) -> dict[str, Any]:
    """Under which conditions all of it is measured."""
    gpu, told = gpu_here(), find_gpus(Path("/"))
    named = {} if isinstance(told, str) else told.facts()[0]
    return {
        "started": now(),
        "machine": platform.machine(),
        "processor": processor(),
        "gpu": None if gpu is None else {"compute_capability": gpu.compute_capability, "memory": gpu.memory_bytes},
        "name": named.get("name"),
        "driver": named.get("driver"),
        "driver_cuda": None if gpu is None else gpu.driver_cuda,
        "jetson_linux": jetson_linux(),
        "power_mode": power_mode(),
        "device": cuda.device.to_json(),
        "binding": cuda.binding,
        "python": platform.python_version(),
        "kedge": commit(),
    }


def written(folder: Path, name: str, suffix: str, conditions: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    document = {"benchmark": f"gpu-{name}", "conditions": dict(conditions), "results": results}
    text = json.dumps(document, indent=1)
    (folder / f"gpu-{name}{suffix}.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    sys.exit(main())

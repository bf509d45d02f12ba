"""What models of onnxruntime take in one arena, and in arenas of their own: the figures of docs/agent.md.

    python tools/arena.py [--max-batch 8] mobilenetv2.onnx yolox_nano.onnx ultraface.onnx

Models with a free dimension have an arena of their own either way, save where it is a batch that is limited. Memory is
that of a process for each way, resident after malloc_trim. Run times are of one process, in turns with and without:
lower quartiles of the thread's own time, which other work moves least.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kedge_agent.runtime.base import LoadedModel, Slot

_RUNS = 12
_LARGE = 32
_TURNS, _INNER = 60, 3
_ENTRIES = 20_000
_BLOCK = 256 << 20
_FREE = 224  # pixels, where a model leaves a side free


def main() -> None:
    """Print a table, one row a moment."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--max-batch", type=int, help="as in the agent's settings; also the size of the large request")
    parser.add_argument("--child", choices=("own", "shared"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(_measured(given.child == "shared", given.models, given.max_batch)))
        return
    found = {}
    for way in ("own", "shared"):
        command = [sys.executable, __file__, "--child", way, *sys.argv[1:]]
        found[way] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    for moment, own in found["own"].items():
        print(f"{moment:<60} own {own / 1e6:6.1f} MB   shared {found['shared'][moment] / 1e6:6.1f} MB")
    for path in given.models:
        times = _times_ms(path, given.max_batch)
        if times is None:
            print(f"{path.stem:<60} has an arena of its own")
            continue
        own, shared = times
        print(f"{path.stem:<60} own {own:6.3f} ms   shared {shared:6.3f} ms   {shared / own:.3f} ×")
    print(f"{'entering and leaving the arena':<60} {_entry_us():.2f} µs")
    print(f"{f'the system takes {_BLOCK >> 20} MiB back':<60} {_return_ms():.1f} ms")


def _measured(shared: bool, paths: list[Path], max_batch: int | None) -> dict[str, int]:
    from kedge_agent.measure.memory import read_memory
    from kedge_agent.runtime import onnxruntime as runtime
    from kedge_agent.runtime.base import LoadOptions

    if not shared:
        runtime.arena_of_process = lambda: None
    options = LoadOptions(threads=1, most_samples=max_batch)
    models = [runtime.OnnxRuntime().load(path, options) for path in paths]
    slots = [model.slot() for model in models]
    out: dict[str, int] = {}

    def note(moment: str) -> None:
        ctypes.CDLL(None).malloc_trim(0)
        out[moment] = read_memory().rss_bytes or 0

    def run(index: int, batch: int = 1) -> None:
        _run(models[index], slots[index], batch)

    def loop(index: int, stop: threading.Event, times: int) -> None:
        while times and not stop.is_set():
            run(index)
            times -= 1

    def at_once(first: int, times: int) -> tuple[threading.Event, list[threading.Thread]]:
        stop = threading.Event()
        threads = [threading.Thread(target=loop, args=(index, stop, times)) for index in range(first, len(models))]
        for thread in threads:
            thread.start()
        return stop, threads

    note("loaded")
    for _ in range(4):
        for index in range(len(models)):
            run(index)
    note("after runs one after another")
    for thread in at_once(0, _RUNS)[1]:
        thread.join()
    note("after runs at the same time")
    large = max_batch or _LARGE
    run(0, large)
    note(f"after a request of {large} to the first")
    stop, threads = at_once(1, -1)
    for _ in range(200):
        run(0)
    note("after 200 of one, while the others run without pause")
    stop.set()
    for thread in threads:
        thread.join()
    for slot, model in zip(slots, models, strict=True):
        slot.close()
        model.close()
    del slot, model
    models.clear()
    slots.clear()
    note("after all were unloaded")
    return out


def _entry_us() -> float:
    from kedge_agent.runtime.onnx_arena import SharedArena

    arena, times = SharedArena(), []
    for _ in range(_TURNS):
        began = time.thread_time()
        for _ in range(_ENTRIES):
            arena.enter()
            arena.leave()
        times.append((time.thread_time() - began) / _ENTRIES * 1e6)
    return statistics.quantiles(times)[0]


def _return_ms() -> float:
    times = []
    for _ in range(4):
        block = mmap.mmap(-1, _BLOCK)
        for at in range(0, _BLOCK, mmap.PAGESIZE):
            block[at] = 1
        began = time.thread_time()
        block.close()
        times.append((time.thread_time() - began) * 1e3)
    return min(times)


def _times_ms(path: Path, max_batch: int | None) -> tuple[float, float] | None:
    from kedge_agent.runtime import onnxruntime as runtime
    from kedge_agent.runtime.base import LoadOptions

    shared, models, times = runtime.arena_of_process, [], ([], [])
    for way in (lambda: None, shared):
        runtime.arena_of_process = way
        models.append(runtime.OnnxRuntime().load(path, LoadOptions(threads=1, most_samples=max_batch)))
    if models[1].facts()["arena"] == "own":
        return None
    slots = [model.slot() for model in models]
    for turn in range(2 * _TURNS):
        way = (turn + turn // 2) % 2
        began = time.thread_time()
        for _ in range(_INNER):
            _run(models[way], slots[way], 1)
        times[way].append((time.thread_time() - began) / _INNER * 1e3)
    return statistics.quantiles(times[0])[0], statistics.quantiles(times[1])[0]


def _run(model: LoadedModel, slot: Slot, batch: int) -> None:
    shapes = {
        spec.name: tuple(dim if dim > 0 else (batch if at == 0 else _FREE) for at, dim in enumerate(spec.shape))
        for spec in model.inputs
    }
    binding = slot.bind(shapes)
    binding.submit()
    binding.wait()


if __name__ == "__main__":
    main()

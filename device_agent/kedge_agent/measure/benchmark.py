"""A closed-loop benchmark inside the agent: no socket, no host, the runtime and its buffers alone.

The rules are trtexec's: warm up for 200 ms, then run for at least 3 s and at least 10 times.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from ..formats.latency import summarize
from ..runtime.pool import ModelPool, Timing

__all__ = ["BenchmarkRules", "run_benchmark"]

_MAX_SAMPLES = 1_000_000
# Nothing can cancel the loop: a slow model and a large min_runs must not keep it going for days.
_LONGEST_MS = 600_000


@dataclass(frozen=True)
class BenchmarkRules:
    """How long to warm up and to measure."""

    warmup_ms: int = 200
    duration_ms: int = 3000
    min_runs: int = 10

    def __post_init__(self) -> None:
        if not (
            0 <= self.warmup_ms <= 600_000 and 0 <= self.duration_ms <= 600_000 and 1 <= self.min_runs <= 1_000_000
        ):
            raise ValueError("warmup_ms and duration_ms go to 600000, min_runs from 1 to 1000000")


def run_benchmark(pool: ModelPool, inputs: Mapping[str, NDArray[Any]], rules: BenchmarkRules) -> dict[str, Any]:
    """Measure one request at a time, inputs copied into the slot and outputs copied out of it.

    Returns:
        Documented in docs/bench-report.md, section `in_agent`.

    Raises:
        AgentError: the runtime failed, or the model was replaced meanwhile.
    """
    shapes = {name: array.shape for name, array in inputs.items()}

    def once() -> Timing:
        timing = Timing()
        with pool.request(shapes, timing) as binding:
            start = time.perf_counter_ns()
            for name, array in inputs.items():
                binding.inputs[name][...] = array
            filled = time.perf_counter_ns()
            pool.run(binding, timing)
            computed = time.perf_counter_ns()
            for array in binding.outputs.values():
                array.tobytes()
            timing.input_ns = filled - start
            timing.output_ns = time.perf_counter_ns() - computed
        return timing

    warmup_runs = 0
    begin = time.perf_counter_ns()
    while warmup_runs == 0 or time.perf_counter_ns() - begin < rules.warmup_ms * 1_000_000:
        once()
        warmup_runs += 1
    samples: list[Timing] = []
    begin = time.perf_counter_ns()
    elapsed = 0
    while (
        len(samples) < _MAX_SAMPLES
        and elapsed < (rules.duration_ms + _LONGEST_MS) * 1_000_000
        and (elapsed < rules.duration_ms * 1_000_000 or len(samples) < rules.min_runs)
    ):
        samples.append(once())
        elapsed = time.perf_counter_ns() - begin

    def summary(part: str) -> dict[str, Any]:
        return summarize([getattr(sample, part) / 1e6 for sample in samples]).to_json()

    totals = [s.queue_ns + s.input_ns + s.compute_ns + s.output_ns for s in samples]
    return {
        "warmup_runs": warmup_runs,
        "warmup_ms": rules.warmup_ms,
        "count": len(samples),
        "seconds": elapsed / 1e9,
        "throughput_per_s": len(samples) / (elapsed / 1e9),
        "total": summarize([total / 1e6 for total in totals]).to_json(),
        "queue": summary("queue_ns"),
        "input": summary("input_ns"),
        "compute": summary("compute_ns"),
        "output": summary("output_ns"),
    }

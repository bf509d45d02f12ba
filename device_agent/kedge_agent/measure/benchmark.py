"""A benchmark inside the agent: no socket, no host, the runtime and its buffers alone.

The rules are trtexec's: warm up for 200 ms, then run for at least 3 s and at least 10 times. Requests follow each
other, one or several at a time, or begin at a fixed rate (`schedule`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..errors import AgentError
from ..formats.trust import Reason, judge
from ..runtime.pool import ModelPool, PoolRetiredError, Timing
from .samples import Samples
from .schedule import BenchmarkRules, Schedule
from .watch import watch

__all__ = ["Measured", "run_benchmark"]

# Who is refused at once would ask again at once, and keep the processor from those who work.
_REFUSED_S = 0.001


@dataclass(frozen=True)
class Measured:
    """Samples, and the report on them that docs/bench-report.md has in `in_agent`."""

    samples: Samples
    report: dict[str, Any]


class _Loop:
    """Threads that send requests as a schedule has them. refused: how many the model's queue did not take."""

    def __init__(self, pool: ModelPool, inputs: Mapping[str, NDArray[Any]], rules: BenchmarkRules) -> None:
        self._pool = pool
        self._inputs = inputs
        self._shapes = {name: array.shape for name, array in inputs.items()}
        self._rules = rules
        self._failures: list[BaseException] = []
        self._guard = threading.Lock()
        self._refusal: AgentError | None = None
        self.refused = 0

    def run(self) -> tuple[Samples, Schedule, float]:
        """The samples, what asked for them, and the seconds from the first begin to the last end.

        Raises:
            AgentError: the runtime failed, the model was replaced meanwhile, or nothing but refusals came back.
        """
        schedule = Schedule(self._rules)
        several = [Samples() for _ in range(self._rules.concurrency)]
        threads = [threading.Thread(target=self._work, args=(schedule, samples), daemon=True) for samples in several]
        started = []
        try:
            for thread in threads:
                thread.start()
                started.append(thread)
        except RuntimeError as error:  # no more threads can be had: those that run see it, and end
            self._failures.append(AgentError(f"{len(threads)} threads cannot be had: {error}", kind="space"))
        for thread in started:
            thread.join()
        seconds = (time.perf_counter_ns() - schedule.begin_ns) / 1e9
        if self._failures:
            raise self._failures[0]
        samples = Samples.merged(several)
        if self._refusal is not None and not len(samples):
            raise self._refusal
        return samples, schedule, seconds

    def _work(self, schedule: Schedule, samples: Samples) -> None:
        try:
            while not self._failures and (start := schedule.next()) is not None:
                try:
                    timing = self._once(start)
                except PoolRetiredError:
                    raise
                except AgentError as error:
                    if error.kind != "busy":
                        raise
                    with self._guard:
                        self.refused += 1
                        self._refusal = error
                    time.sleep(_REFUSED_S)
                else:
                    samples.add(start - schedule.begin_ns, timing)
        except BaseException as error:  # it is raised again by whoever waits for this thread
            self._failures.append(error)

    def _once(self, intended_ns: int) -> Timing:
        # What it was late to begin is a wait like any other.
        timing = Timing(queue_ns=time.perf_counter_ns() - intended_ns)
        with self._pool.request(self._shapes, timing) as binding:
            start = time.perf_counter_ns()
            for name, array in self._inputs.items():
                binding.inputs[name][...] = array
            filled = time.perf_counter_ns()
            self._pool.run(binding, timing)
            computed = time.perf_counter_ns()
            for array in binding.outputs.values():
                array.tobytes()
            timing.input_ns = filled - start
            timing.output_ns = time.perf_counter_ns() - computed
        return timing


def run_benchmark(
    pool: ModelPool, inputs: Mapping[str, NDArray[Any]], rules: BenchmarkRules, root: Path = Path("/")
) -> Measured:
    """Measure requests, inputs copied into the slot and outputs copied out of it, and judge the result.

    Args:
        root: where the sensors of this device are found.

    Raises:
        AgentError: the runtime failed, or the model was replaced meanwhile.
    """
    warming = replace(rules, duration_ms=rules.warmup_ms, min_runs=1, rate_per_s=None)
    warmed, _, _ = _Loop(pool, inputs, warming).run()
    loop = _Loop(pool, inputs, rules)
    with watch(root) as readings:
        samples, schedule, seconds = loop.run()
    judged = samples.part_ms("kernel") or samples.part_ms("compute") or []
    intended = schedule.intended
    not_sent = 0 if intended is None else intended - len(samples) - loop.refused
    verdict = judge(judged, readings, more=_unserved(rules, len(samples) / seconds, not_sent, loop.refused))
    return Measured(
        samples,
        {
            "loop": "closed" if rules.rate_per_s is None else "rate",
            "concurrency": rules.concurrency,
            "rate_per_s": rules.rate_per_s,
            "warmup_runs": len(warmed),
            "warmup_ms": rules.warmup_ms,
            "count": len(samples),
            "refused": loop.refused,
            "not_sent": not_sent,
            "seconds": seconds,
            "throughput_per_s": len(samples) / seconds,
            **samples.summaries(),
            "trust": verdict.to_json(),
        },
    )


def _unserved(rules: BenchmarkRules, reached_per_s: float, not_sent: int, refused: int) -> list[Reason]:
    out = []
    if not_sent and rules.rate_per_s is not None:
        text = f"the device does not keep up with {rules.rate_per_s:g} requests/s: it served {reached_per_s:.1f}"
        out.append(Reason("overload", text, {"asked_per_s": rules.rate_per_s, "served_per_s": reached_per_s}))
    if refused:
        out.append(Reason("overload", f"the model's queue refused {refused} requests", {"refused": refused}))
    return out

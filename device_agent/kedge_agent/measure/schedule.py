"""When the requests of a benchmark begin: one after the other, or at a fixed rate.

At a fixed rate (an open loop) each request has an intended start, and its latency counts from there. What a slow one
makes the next ones wait is then in their latency, where a closed loop would just ask less often: Gil Tene, "How NOT to
Measure Latency", calls that coordinated omission.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from ..errors import AgentError

__all__ = ["MAX_SAMPLES", "BenchmarkRules", "Schedule", "TimingRules"]

MAX_SAMPLES = 1_000_000
# Nothing can cancel the loop: a slow model and a large min_runs must not keep it going for days.
_LONGEST_MS = 600_000
# What sleeping may overshoot by; the rest of the way to an intended start is waited for awake.
_SLEEP_SLACK_NS = 150_000


@dataclass(frozen=True)
class BenchmarkRules:
    """How to measure: trtexec's rules for how long, and when requests begin.

    concurrency: requests inside at a time; at a fixed rate, at most.
    rate_per_s: of an open loop; None: a closed loop.
    """

    warmup_ms: int = 200
    duration_ms: int = 3000
    min_runs: int = 10
    concurrency: int = 1
    rate_per_s: float | None = None

    def __post_init__(self) -> None:
        if not (
            0 <= self.warmup_ms <= 600_000 and 0 <= self.duration_ms <= 600_000 and 1 <= self.min_runs <= MAX_SAMPLES
        ):
            raise AgentError(
                "warmup_ms and duration_ms go to 600000, min_runs from 1 to 1000000", hint="kedge bench --help"
            )
        if not 1 <= self.concurrency <= 256:
            raise AgentError(f"concurrency is {self.concurrency}; it goes from 1 to 256", hint="kedge bench --help")
        if self.rate_per_s is not None and not 0.001 <= self.rate_per_s <= 1_000_000:
            raise AgentError(
                f"rate_per_s is {self.rate_per_s:g}; it goes from 0.001 to 1000000", hint="kedge bench --help"
            )
        if self.rate_per_s is not None and (self.min_runs - 1) / self.rate_per_s * 1e3 > self.duration_ms + _LONGEST_MS:
            raise AgentError(
                f"{self.min_runs} requests at {self.rate_per_s:g} a second take too long", hint="ask for fewer min_runs"
            )


@dataclass(frozen=True)
class TimingRules:
    """How long runs are timed one after the other: least_runs and least_s, but never beyond most_runs or most_s.

    warm_up_s: for how long it is run before, at most a hundred times.
    """

    warm_up_s: float
    least_runs: int
    least_s: float
    most_runs: int
    most_s: float

    def enough(self, runs: int, elapsed_s: float) -> bool:
        """Whether to stop after so many runs, which took so long."""
        if not runs:
            return False
        if runs >= self.most_runs or elapsed_s >= self.most_s:
            return True
        return runs >= self.least_runs and elapsed_s >= self.least_s


class Schedule:
    """Gives each request its start, to several threads."""

    def __init__(self, rules: BenchmarkRules) -> None:
        self._rules = rules
        self._guard = threading.Lock()
        self._issued = 0
        self.begin_ns = time.perf_counter_ns()

    @property
    def intended(self) -> int | None:
        """How many requests a fixed rate asks for in all; None of a closed loop."""
        rules = self._rules
        if rules.rate_per_s is None:
            return None
        return min(max(int(rules.rate_per_s * rules.duration_ms / 1e3), rules.min_runs), MAX_SAMPLES)

    def next(self) -> int | None:
        """Wait for the next request's start, and tell when that was meant to be, in ns of `time.perf_counter_ns`.

        None: there have been enough, or it has taken too long.
        """
        rules = self._rules
        with self._guard:
            now = time.perf_counter_ns()
            elapsed_ms = (now - self.begin_ns) / 1e6
            if self._issued >= MAX_SAMPLES or elapsed_ms >= rules.duration_ms + _LONGEST_MS:
                return None
            if rules.rate_per_s is None:
                if elapsed_ms >= rules.duration_ms and self._issued >= rules.min_runs:
                    return None
                self._issued += 1
                return now
            intended = self.intended
            # Who does not keep up falls further and further behind: twice the time shows it.
            late = elapsed_ms >= 2 * rules.duration_ms and self._issued >= rules.min_runs
            if intended is None or self._issued >= intended or late:
                return None
            start = self.begin_ns + int(self._issued * 1e9 / rules.rate_per_s)
            self._issued += 1
        _wait_until(start)
        return start


def _wait_until(moment_ns: int) -> None:
    left = moment_ns - time.perf_counter_ns() - _SLEEP_SLACK_NS
    if left > 0:
        time.sleep(left / 1e9)
    while time.perf_counter_ns() < moment_ns:
        time.sleep(0)

"""What happened to a model's requests, counted: Triton's statistics extension and /metrics read from here.

Source of the names: Triton, "Statistics Extension". A request that fails counts as `fail` with the time it took, and
nowhere else. Times are of whole requests: one that was joined with others into a batch counts the whole run.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import AgentError
from ..formats.histogram import Histogram
from ..formats.latency import percentile_index
from ..runtime.pool import Timing

__all__ = ["BUCKETS_S", "ModelStatistics", "Taken"]

BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the latency histogram in seconds."""

# A client chooses what it sends: a million batch sizes would be a million rows.
_MAX_BATCH_SIZES = 256
_RECENT = 1024
_PARTS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True)
class Taken:
    """What happened between two calls of `take`: times of what was answered, and failures by kind."""

    total: Histogram = field(default_factory=Histogram)
    compute: Histogram = field(default_factory=Histogram)
    failures: Mapping[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.failures) or bool(self.total.count)


class ModelStatistics:
    """Counters of one version of one model, from any thread."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._successes = self._failures = 0
        self._ns = dict.fromkeys(_PARTS, 0)
        self._buckets = [0] * (len(BUCKETS_S) + 1)
        self._inferences = 0
        self._executions = 0
        self._batches: dict[int, list[int]] = {}
        self._last_ms = 0
        self._copied = 0
        self._recent_ns: deque[int] = deque(maxlen=_RECENT)
        self._total = Histogram()
        self._compute = Histogram()
        self._failed: dict[str, int] = {}
        self.failures: dict[str, int] = {}

    def success(self, timing: Timing, samples: int, total_ns: int, copied: int) -> None:
        """A request that was answered.

        Args:
            samples: it carried; 1 for a model that does not batch.
            total_ns: from when its head was there to when its response was ready to be sent.
            copied: tensors that were not received into, or sent from, the runtime's own buffers.
        """
        now_ms = time.time_ns() // 1_000_000
        with self._guard:
            # A success counts once in each part: only the times differ.
            self._successes += 1
            ns = self._ns
            ns["success"] += total_ns
            ns["queue"] += timing.queue_ns
            ns["compute_input"] += timing.input_ns
            ns["compute_infer"] += timing.compute_ns
            self._recent_ns.append(timing.compute_ns)
            ns["compute_output"] += timing.output_ns
            self._buckets[bisect_left(BUCKETS_S, total_ns / 1e9)] += 1
            self._total.record(total_ns)
            self._compute.record(timing.compute_ns)
            self._inferences += samples
            self._copied += copied
            self._last_ms = now_ms
            # A run that served several requests is counted once, by the one that led it.
            if timing.joined == 1 or timing.led:
                self._execution(timing.led or samples, timing)

    def failure(self, error: AgentError | None, total_ns: int) -> None:
        """A request that was not answered, and why."""
        kind = "internal" if error is None else error.kind
        with self._guard:
            self._failures += 1
            self._ns["fail"] += total_ns
            self.failures[kind] = self.failures.get(kind, 0) + 1
            self._failed[kind] = self._failed.get(kind, 0) + 1

    def take(self) -> Taken:
        """What happened since the last call, for the flight recorder; nobody else is to call it."""
        with self._guard:
            total, compute, failed = self._total, self._compute, self._failed
            self._total, self._compute, self._failed = Histogram(), Histogram(), {}
        return Taken(total, compute, failed)

    def outcomes(self) -> tuple[int, int]:
        """Requests that reached the runtime and were answered, and those that failed there or by a defect of ours."""
        with self._guard:
            return self._successes, self.failures.get("internal", 0)

    def recent_p99_ms(self, least: int) -> float | None:
        """99th percentile of the compute time of the last 1,024 requests; None where they are fewer than `least`."""
        with self._guard:
            recent = sorted(self._recent_ns)
        if len(recent) < least:
            return None
        return recent[percentile_index(len(recent), 99)] / 1e6

    def to_json(self) -> dict[str, Any]:
        """As the statistics extension has it, without name and version."""
        with self._guard:
            parts = {
                part: {"count": self._failures if part == "fail" else self._successes, "ns": self._ns[part]}
                for part in _PARTS
            }
            nothing = {"count": 0, "ns": 0}
            return {
                "last_inference": self._last_ms,
                "inference_count": self._inferences,
                "execution_count": self._executions,
                # There is no response cache: its counters are Triton's for "none is used".
                "inference_stats": {**parts, "cache_hit": nothing, "cache_miss": nothing},
                "batch_stats": [
                    {
                        "batch_size": size,
                        "compute_input": {"count": row[0], "ns": row[1]},
                        "compute_infer": {"count": row[0], "ns": row[2]},
                        "compute_output": {"count": row[0], "ns": row[3]},
                    }
                    for size, row in sorted(self._batches.items())
                ],
                "copied_tensors": self._copied,
            }

    def histogram(self) -> tuple[list[int], int, float]:
        """Cumulative counts of BUCKETS_S and of all, the count, and the sum in seconds."""
        with self._guard:
            total, counts = 0, []
            for count in self._buckets:
                total += count
                counts.append(total)
            return counts, self._successes, self._ns["success"] / 1e9

    def _execution(self, samples: int, timing: Timing) -> None:
        self._executions += 1
        if samples not in self._batches and len(self._batches) >= _MAX_BATCH_SIZES:
            return
        row = self._batches.setdefault(samples, [0, 0, 0, 0])
        row[0] += 1
        row[1] += timing.input_ns
        row[2] += timing.compute_ns
        row[3] += timing.output_ns

"""`kedge bench`: a closed loop from the host, another inside the agent, and the memory ledger.

Every sample of the host's loop is split by what the agent reports in the same response
(`Server-Timing`); what is left over is the way there and back.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from kedge_agent.formats.latency import summarize

from .. import __version__
from ..errors import BadInputError, BusyError, IncompatibleError
from ..transport.base import Transport
from ..transport.client import AgentClient, InferResult

__all__ = ["AGENT_PARTS", "BenchRules", "run_bench"]

SCHEMA = 1
AGENT_PARTS = ("queue", "input", "compute", "output")
_INFO = ("version", "os", "arch", "python", "runtimes", "cores", "threads")
_MAX_SAMPLES = 1_000_000
# The agent ends its loop after so long whatever min_runs says; the host waits a little longer.
_LONGEST_S = 600

Tick = Callable[[str, float], None]
"""Called with the phase's name and the share of it that is done, from 0 to 1."""


@dataclass(frozen=True)
class BenchRules:
    """trtexec's rules: warm up, then at least so long and at least so many runs.

    batch: samples a request, where the model's first dimension is free.
    """

    warmup_ms: int = 200
    duration_ms: int = 3000
    min_runs: int = 10
    batch: int = 1

    def __post_init__(self) -> None:
        if not (
            0 <= self.warmup_ms <= 600_000
            and 0 <= self.duration_ms <= 600_000
            and 1 <= self.min_runs <= 1_000_000
            and 1 <= self.batch <= 4096
        ):
            raise BadInputError(
                "bench runs up to 600 s, a million times, in batches up to 4096", hint="kedge bench --help"
            )


def run_bench(
    transport: Transport, model: str, rules: BenchRules, tick: Tick = lambda phase, share: None
) -> dict[str, Any]:
    """Measure a model that is live on a device, on its release's recorded inputs.

    Returns:
        The report of docs/bench-report.md.

    Raises:
        KedgeError: the model is not there, or the device stopped answering.
    """
    client = AgentClient(transport, timeout_s=(rules.warmup_ms + rules.duration_ms) / 1e3 + _LONGEST_S + 60)
    try:
        info = client.get("/kedge/v1/info", expect=_INFO)
        rows = client.get("/kedge/v1/status", expect=("models",))["models"]
        status = next((row for row in rows if row["model"] == model and row["release"]), None)
        if status is None:
            raise BadInputError(
                f"{transport.name} serves no model named {model!r}", hint=f"see: kedge status --on {transport.name}"
            )
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        end_to_end = _end_to_end(client, model, rules, tick)
        tick("in the agent", 0.0)
        in_agent = client.post(
            f"/kedge/v1/models/{model}/benchmark",
            {
                "batch": rules.batch,
                "warmup_ms": rules.warmup_ms,
                "duration_ms": rules.duration_ms,
                "min_runs": rules.min_runs,
            },
            changes=False,
            expect=("release", "batch", "total", "compute"),
        )
        tick("in the agent", 1.0)
        memory = client.get(f"/kedge/v1/models/{model}/memory", expect=("release", "load", "now"))
    finally:
        client.close()
    if {in_agent["release"], memory["release"]} != {status["release"]}:
        raise BusyError(f"{model} was replaced while it was measured", hint="run the bench again")
    return {
        "schema": SCHEMA,
        "kind": "kedge-bench",
        "device": transport.name,
        "model": model,
        "version": status["version"],
        "release": status["release"],
        "runtime": status["runtime"],
        "precision": status["precision"],
        "conditions": {
            "started": started,
            "batch": in_agent["batch"],
            "warmup_ms": rules.warmup_ms,
            "duration_ms": rules.duration_ms,
            "min_runs": rules.min_runs,
            "loop": "closed",
            "concurrency": 1,
            "host": {
                "kedge": __version__,
                "os": platform.system().lower(),
                "arch": platform.machine(),
                "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            },
            "agent": {key: info[key] for key in _INFO},
        },
        "end_to_end": end_to_end,
        "in_agent": {key: value for key, value in in_agent.items() if key not in ("release", "batch")},
        "memory": {key: value for key, value in memory.items() if key != "release"},
    }


def _end_to_end(client: AgentClient, model: str, rules: BenchRules, tick: Tick) -> dict[str, Any]:
    body, header_bytes = client.golden(model, rules.batch)

    def once() -> InferResult:
        return client.infer_raw(model, [body], header_bytes)

    once()  # opens the connection, which is no part of the warm-up
    warmup_runs = 0
    begin = time.perf_counter()
    while warmup_runs == 0 or (time.perf_counter() - begin) * 1e3 < rules.warmup_ms:
        once()
        warmup_runs += 1
    totals: list[float] = []
    parts: dict[str, list[float]] = {part: [] for part in (*AGENT_PARTS, "transport")}
    begin = time.perf_counter()
    elapsed_ms = 0.0
    while len(totals) < _MAX_SAMPLES and (elapsed_ms < rules.duration_ms or len(totals) < rules.min_runs):
        result = once()
        if not result.agent_ms.keys() >= set(AGENT_PARTS):
            raise IncompatibleError("the agent does not say where a request's time went (Server-Timing)")
        totals.append(result.end_to_end_ms)
        for part in AGENT_PARTS:
            parts[part].append(result.agent_ms[part])
        parts["transport"].append(result.end_to_end_ms - sum(result.agent_ms[part] for part in AGENT_PARTS))
        elapsed_ms = (time.perf_counter() - begin) * 1e3
        if len(totals) % 64 == 0:
            tick("from the host", min(elapsed_ms / max(rules.duration_ms, 1), 1.0))
    return {
        "warmup_runs": warmup_runs,
        "count": len(totals),
        "seconds": elapsed_ms / 1e3,
        "throughput_per_s": len(totals) / (elapsed_ms / 1e3),
        "total": summarize(totals).to_json(),
        **{part: summarize(samples).to_json() for part, samples in parts.items()},
    }

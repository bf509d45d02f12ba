"""`kedge bench`: a loop from the host, others inside the agent, the memory ledger, and what else is asked for."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from .. import __version__
from ..errors import BadInputError, BusyError
from ..transport.base import Transport
from ..transport.client import AgentClient
from .end_to_end import measure_end_to_end
from .in_agent import measure_in_agent, measure_layers, measure_phases
from .rules import LONGEST_S, BenchRules, Tick
from .waterfall import measure_waterfall

__all__ = ["BenchRules", "run_bench"]

SCHEMA = 2
_INFO = ("version", "os", "arch", "python", "runtimes", "cores", "threads")


def run_bench(
    transport: Transport, model: str, rules: BenchRules, tick: Tick = lambda phase, share: None
) -> dict[str, Any]:
    """Measure a model that is live on a device, on its release's recorded inputs.

    Returns:
        The report of docs/bench-report.md.

    Raises:
        KedgeError: the model is not there, or the device stopped answering.
    """
    # A rate that the device does not keep up with is asked for twice as long.
    client = AgentClient(transport, timeout_s=(rules.warmup_ms + 2 * rules.duration_ms) / 1e3 + LONGEST_S + 60)
    try:
        info = client.get("/kedge/v1/info", expect=_INFO)
        rows = client.get("/kedge/v1/status", expect=("models",))["models"]
        status = next((row for row in rows if row["model"] == model and row["release"]), None)
        if status is None:
            raise BadInputError(
                f"{transport.name} serves no model named {model!r}", hint=f"see: kedge status --on {transport.name}"
            )
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        end_to_end, host_samples = measure_end_to_end(client, model, rules, tick)
        loops, agent_samples = measure_in_agent(client, model, rules, tick)
        waterfall = None
        if rules.waterfall:
            typical_ms = float(end_to_end["total"]["median_ms"])
            waterfall = measure_waterfall(transport, client, model, rules, typical_ms, tick)
        layers = measure_layers(client, model, rules, tick) if rules.layers else None
        phases = measure_phases(client, model, rules, tick) if rules.phases else None
        memory = client.get(f"/kedge/v1/models/{model}/memory", expect=("release", "load", "now", "ledger", "chosen"))
    finally:
        client.close()
    parts = [part for part in (*loops, waterfall, layers, phases, memory) if part is not None]
    if {part["release"] for part in parts} != {status["release"]}:
        raise BusyError(f"{model} was replaced while it was measured", hint="run the bench again")
    batch = loops[0]["batch"]
    return {
        "schema": SCHEMA,
        "kind": "kedge-bench",
        "device": transport.name,
        "model": model,
        "version": status["version"],
        "release": status["release"],
        "runtime": status["runtime"],
        "precision": status["precision"],
        "conditions": _conditions(info, rules, started, batch),
        "end_to_end": end_to_end,
        "in_agent": _own(loops[0]),
        "sweep": [_own(loop) for loop in loops] if len(loops) > 1 else None,
        "waterfall": _own(waterfall),
        "layers": _own(layers),
        "phases": _own(phases),
        "memory": _own(memory),
        "chosen": memory["chosen"],
        "samples": {"end_to_end": host_samples, "in_agent": agent_samples} if rules.samples else None,
    }


# What is said once of the whole report.
_OF_ALL = ("release", "batch", "chosen")


def _own(part: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A part of the report without what the report says of them all."""
    return (
        None
        if part is None
        else {key: value for key, value in part.items() if key not in ("release", "batch", "chosen")}
    )


def _conditions(info: Mapping[str, Any], rules: BenchRules, started: str, batch: int) -> dict[str, Any]:
    return {
        "started": started,
        "batch": batch,
        "warmup_ms": rules.warmup_ms,
        "duration_ms": rules.duration_ms,
        "min_runs": rules.min_runs,
        "loop": "closed" if rules.rate_per_s is None else "rate",
        "rate_per_s": rules.rate_per_s,
        "concurrency": list(rules.concurrency),
        "host": {
            "kedge": __version__,
            "os": platform.system().lower(),
            "arch": platform.machine(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        },
        "agent": {key: info[key] for key in _INFO},
    }

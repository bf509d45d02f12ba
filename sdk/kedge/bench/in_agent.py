"""The agent's own measurements, asked for through the control door: loops, raw samples, layers, load phases."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import IncompatibleError
from ..transport.client import AgentClient
from .rules import LONGEST_S, MAX_SAMPLES, BenchRules, Tick

__all__ = ["measure_in_agent", "measure_layers", "measure_phases"]

_LOOP = ("release", "batch", "loop", "concurrency", "count", "total", "compute", "trust", "samples")
_APART_S = LONGEST_S + 60
_PROFILED_RUNS = 100
_MOST_COLUMNS = 32


def measure_in_agent(
    client: AgentClient, model: str, rules: BenchRules, tick: Tick
) -> tuple[list[dict[str, Any]], dict[str, list[float] | None] | None]:
    """One loop for each concurrency, and the first one's raw samples in ms by column (None: not measured).

    Raises:
        KedgeError: what the agent reports, or that it cannot be reached.
    """
    loops = []
    samples = None
    for index, concurrency in enumerate(rules.concurrency):
        tick("in the agent", index / len(rules.concurrency))
        order: dict[str, Any] = {
            "batch": rules.batch,
            "warmup_ms": rules.warmup_ms,
            "duration_ms": rules.duration_ms,
            "min_runs": rules.min_runs,
            "concurrency": concurrency,
        }
        if rules.rate_per_s is not None:
            order["rate_per_s"] = rules.rate_per_s
        wanted = rules.samples and index == 0
        if wanted:
            order["samples"] = True
        loop = client.post(f"/kedge/v1/models/{model}/benchmark", order, changes=False, expect=_LOOP)
        told = loop.pop("samples")
        if wanted:
            samples = _samples(client, model, told)
        loops.append(loop)
    tick("in the agent", 1.0)
    return loops, samples


def measure_layers(client: AgentClient, model: str, rules: BenchRules, tick: Tick) -> dict[str, Any]:
    """The report's `layers`, with the release they are of. Raises as `measure_in_agent`."""
    tick("layers", 0.0)
    order = {"batch": rules.batch, "runs": _PROFILED_RUNS}
    path = f"/kedge/v1/models/{model}/layers"
    found: dict[str, Any] = client.post(
        path, order, timeout_s=_APART_S, changes=False, expect=("release", "count", "layers")
    )
    tick("layers", 1.0)
    return found


def measure_phases(client: AgentClient, model: str, rules: BenchRules, tick: Tick) -> dict[str, Any]:
    """The report's `phases`, with the release they are of. Raises as `measure_in_agent`."""
    tick("load phases", 0.0)
    order = {"batch": rules.batch, "runs": _PROFILED_RUNS}
    path = f"/kedge/v1/models/{model}/phases"
    expected = ("release", "import", "first_load", "warm_load", "inference")
    found: dict[str, Any] = client.post(path, order, timeout_s=_APART_S, changes=False, expect=expected)
    tick("load phases", 1.0)
    return found


def _samples(client: AgentClient, model: str, told: Any) -> dict[str, list[float] | None]:
    """Columns of nanoseconds, as the agent sends them, in ms."""
    try:
        names, count = [str(name) for name in told["columns"]], int(told["count"])
    except (KeyError, TypeError, ValueError) as error:
        raise IncompatibleError(f"the agent's samples make no sense: {error!r}") from error
    data = client.get_bytes(f"/kedge/v1/models/{model}/benchmark/samples", limit_bytes=8 * _MOST_COLUMNS * MAX_SAMPLES)
    if len(names) > _MOST_COLUMNS or len(data) != 8 * len(names) * count:
        raise IncompatibleError("the agent's samples do not have the bytes that it announced")
    table = np.frombuffer(data, "<i8").reshape(len(names), count)
    return {
        name: None if (column < 0).any() else (column / 1e6).tolist() for name, column in zip(names, table, strict=True)
    }

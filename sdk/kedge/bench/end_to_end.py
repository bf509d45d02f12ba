"""The host's loop: requests one at a time through the channel and the inference door.

Every sample is split by what the agent reports in the same response (`Server-Timing`); what is left over is the way
there and back.
"""

from __future__ import annotations

import time
from typing import Any

from kedge_agent.formats.latency import summarize
from kedge_agent.formats.trust import Conditions, judge

from ..errors import IncompatibleError
from ..transport.client import AgentClient, InferResult
from .rules import MAX_SAMPLES, BenchRules, Tick

__all__ = ["AGENT_PARTS", "device_conditions", "measure_end_to_end"]

AGENT_PARTS = ("queue", "input", "compute", "output")

Columns = dict[str, list[float]]


def device_conditions(client: AgentClient) -> Conditions:
    """What the device's sensors say now.

    Raises:
        KedgeError: it cannot be reached, or its answer makes no sense.
    """
    try:
        return Conditions.from_json(client.get("/kedge/v1/conditions"))
    except ValueError as error:
        raise IncompatibleError(f"the agent's answer makes no sense: {error}") from error


def measure_end_to_end(
    client: AgentClient, model: str, rules: BenchRules, tick: Tick
) -> tuple[dict[str, Any], Columns]:
    """The report's `end_to_end`, and raw samples in ms by column: start, total, transport and what the agent reports.

    Raises:
        KedgeError: the device stopped answering, or the model is not there.
    """
    body, header_bytes = client.golden(model, rules.batch)

    def once() -> InferResult:
        return client.infer_raw(model, [body], header_bytes)

    once()  # opens the connection, which is no part of the warm-up
    warmup_runs = 0
    begin = time.perf_counter()
    while warmup_runs == 0 or (time.perf_counter() - begin) * 1e3 < rules.warmup_ms:
        once()
        warmup_runs += 1
    before = device_conditions(client)
    columns: Columns = {name: [] for name in ("start", "total", "transport", *AGENT_PARTS)}
    begin = time.perf_counter()
    elapsed_ms = 0.0
    count = 0
    while count < MAX_SAMPLES and (elapsed_ms < rules.duration_ms or count < rules.min_runs):
        columns["start"].append(elapsed_ms)
        result = once()
        if not result.agent_ms.keys() >= set(AGENT_PARTS):
            raise IncompatibleError("the agent does not say where a request's time went (Server-Timing)")
        columns["total"].append(result.end_to_end_ms)
        for part in AGENT_PARTS:
            columns[part].append(result.agent_ms[part])
        columns["transport"].append(result.end_to_end_ms - sum(result.agent_ms[part] for part in AGENT_PARTS))
        elapsed_ms = (time.perf_counter() - begin) * 1e3
        count += 1
        if count % 64 == 0:
            tick("from the host", min(elapsed_ms / max(rules.duration_ms, 1), 1.0))
    verdict = judge(columns["total"], (before, device_conditions(client)), others=False)
    return {
        "warmup_runs": warmup_runs,
        "count": count,
        "seconds": elapsed_ms / 1e3,
        "throughput_per_s": count / (elapsed_ms / 1e3),
        **{name: summarize(samples).to_json() for name, samples in columns.items() if name != "start"},
        "trust": verdict.to_json(),
    }, columns

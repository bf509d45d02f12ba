"""What every pruning pass reports of a graph before and after: parameters, MACs, time where it can be measured."""

from __future__ import annotations

from typing import Any

from ...model.graph import Graph
from ..work import Work
from .counts import count

__all__ = ["BYTES_NOT_TIME", "sizes"]

BYTES_NOT_TIME = "saves bytes, not time"


def sizes(before: Graph, after: Graph, work: Work) -> dict[str, Any]:
    """Counts before and after, and p50 latency of batch one when there is a probe, else None (not measured)."""
    old, new = count(before), count(after)
    return {
        "parameters": {"before": old.parameters, "after": new.parameters},
        "nonzero": {"before": old.nonzero, "after": new.nonzero},
        "macs": {"before": old.macs, "after": new.macs},
        "latency": _latency(before, after, work),
    }


def _latency(before: Graph, after: Graph, work: Work) -> dict[str, Any] | None:
    if work.probe is None:
        return None
    paths = {"before": work.scratch / "prune-before.onnx", "after": work.scratch / "prune-after.onnx"}
    before.write(paths["before"])
    after.write(paths["after"])
    return {name: latency.to_json() for name, latency in work.probe.measure(paths).items()}

"""What each layer of a model takes, as rows of a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..runtime.base import LayerTime

__all__ = ["layer_rows"]

_MOST_LAYERS = 10_000
_MOST_CHARACTERS = 200


def layer_rows(layers: Sequence[LayerTime]) -> list[dict[str, Any]]:
    """A row a layer, in the order in which they ran; docs/bench-report.md, `layers`.

    share is of the sum of all layers, as in the file of trtexec's --exportProfile.
    """
    totals = [sum(layer.times_ms) for layer in layers]
    whole = sum(totals)
    return [
        {
            "name": layer.name[:_MOST_CHARACTERS],
            "kind": layer.kind[:_MOST_CHARACTERS],
            "total_ms": total,
            "mean_ms": total / len(layer.times_ms),
            "median_ms": _middle(layer.times_ms),
            "share": total / whole if whole > 0 else 0.0,
        }
        for layer, total in zip(layers[:_MOST_LAYERS], totals, strict=False)
        if layer.times_ms
    ]


def _middle(times_ms: Sequence[float]) -> float:
    """The median as trtexec's profiler has it: of an even count, the mean of the two in the middle."""
    ordered = sorted(times_ms)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2

"""Raw samples and layer profiles as the files that trtexec writes, for tools that read those.

Source: NVIDIA/TensorRT, samples/common/sampleReporting.cpp (`exportJSONTrace`, `Profiler::exportJSONProfile`) and, for
runs without data transfers, samples/common/sampleInference.cpp (`getTrace`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["trtexec_profile", "trtexec_times"]


def trtexec_times(samples: Mapping[str, Sequence[float] | None]) -> list[dict[str, float | None]]:
    """An object a request, as --exportTimes has them; ms from the begin of the loop.

    kedge times parts, not moments: they are laid end to end in the order in which they happen. Where there are no
    copies to and from a GPU, or they cannot be told, they are of no length, as trtexec writes them with
    --noDataTransfers, and `computeMs` is the whole run. What it took to hand a run over is not measured: the two of
    Enq are null.

    Args:
        samples: columns in ms: start, queue, input, compute, and h2d, kernel, d2h or None.
    """
    columns = {name: samples[name] for name in ("start", "queue", "input", "compute", "h2d", "kernel", "d2h")}
    told = columns["kernel"] is not None
    out: list[dict[str, float | None]] = []
    for index in range(len(columns["start"] or ())):
        row = {name: 0.0 if values is None else values[index] for name, values in columns.items()}
        h2d, d2h = row["h2d"], row["d2h"]
        compute = row["kernel"] if told else row["compute"]
        begin = row["start"] + row["queue"] + row["input"]
        copied, computed = begin + h2d, begin + h2d + compute
        out.append(
            {
                "startEnqMs": None,
                "endEnqMs": None,
                "startH2dMs": begin,
                "endH2dMs": copied,
                "startComputeMs": copied,
                "endComputeMs": computed,
                "startD2hMs": computed,
                "endD2hMs": computed + d2h,
                "h2dMs": h2d,
                "computeMs": compute,
                "d2hMs": d2h,
                "latencyMs": h2d + compute + d2h,
            }
        )
    return out


def trtexec_profile(layers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The report's `layers` as --exportProfile has them: first the count of runs, then an object a layer."""
    rows = [
        {
            "name": layer["name"],
            "timeMs": layer["total_ms"],
            "averageMs": layer["mean_ms"],
            "medianMs": layer["median_ms"],
            "percentage": 100 * layer["share"],
        }
        for layer in layers["layers"]
    ]
    return [{"count": layers["count"]}, *rows]

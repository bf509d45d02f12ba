"""`/metrics` in Prometheus text: Triton's names where Triton has one, and what field engineers ask for besides.

Sources: Triton, "Metrics" (names and meaning); Prometheus, "Exposition formats", text version 0.0.4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .. import __version__
from ..measure.memory import read_memory
from ..measure.recorder.recorder import Recorder
from .loading import LiveModel
from .repository import Repository
from .statistics import BUCKETS_S

__all__ = ["CONTENT_TYPE", "render_metrics", "render_recorder"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PARTS = (
    ("nv_inference_request_duration_us", "Time of requests that were answered, in all", "success"),
    ("nv_inference_queue_duration_us", "Time of waiting for a slot and for the turn to compute", "queue"),
    ("nv_inference_compute_input_duration_us", "Time of receiving inputs", "compute_input"),
    ("nv_inference_compute_infer_duration_us", "Time of running the model", "compute_infer"),
    ("nv_inference_compute_output_duration_us", "Time of making responses", "compute_output"),
)


_PERCENTILES = (50, 99)


def render_metrics(repository: Repository) -> str:
    """All metrics as text. Counters begin anew when a release is loaded; the label `version` tells which."""
    entries = [(live, live.statistics.to_json()) for live in repository.live()]
    lines: list[str] = []

    def metric(kind: str, name: str, text: str, value: Callable[[LiveModel, dict[str, Any]], float]) -> None:
        _head(lines, kind, name, text)
        lines.extend(f"{name}{_labels(live)} {_number(value(live, stats))}" for live, stats in entries)

    def failures() -> Iterable[str]:
        for live, _ in entries:
            for kind, count in sorted(live.statistics.failures.items()):
                yield f"nv_inference_request_failure{_labels(live, reason=kind)} {count}"

    metric(
        "counter", "nv_inference_request_success", "Requests that were answered",
        lambda _, stats: stats["inference_stats"]["success"]["count"],
    )  # fmt: skip
    _head(lines, "counter", "nv_inference_request_failure", "Requests that were refused or failed, by kind of fault")
    lines.extend(failures())
    metric("counter", "nv_inference_count", "Samples that were inferred", lambda _, stats: stats["inference_count"])
    metric("counter", "nv_inference_exec_count", "Runs of the model", lambda _, stats: stats["execution_count"])
    for name, text, part in _PARTS:
        metric("counter", name, text, lambda _, stats, part=part: stats["inference_stats"][part]["ns"] / 1e3)  # type: ignore[misc]
    metric(
        "gauge", "nv_inference_pending_request_count", "Requests that wait for their turn",
        lambda live, _: live.pool.waiting,
    )  # fmt: skip
    metric(
        "counter", "kedge_copied_tensors_total", "Tensors copied between socket and runtime, beyond the one receive",
        lambda _, stats: stats["copied_tensors"],
    )  # fmt: skip
    _histogram(lines, [live for live, _ in entries])
    _drift(lines, [live for live, _ in entries])
    _deploys(lines, repository.deploys_ended)
    _process(lines)
    return "\n".join(lines) + "\n"


def render_recorder(recorder: Recorder) -> str:
    """Metrics of the flight recorder: its last readings of the sensors, the last minute of each model, its own cost."""
    lines: list[str] = []
    sampled = recorder.sampled()
    if sampled is not None:
        _head(lines, "gauge", "kedge_sensor", "The last reading of a channel, in its unit")
        for channel, value in sorted(sampled.channels.items()):
            unit = sampled.units.get(channel, "")
            lines.append(f"kedge_sensor{_pairs({'channel': channel, 'unit': unit})} {_number(value)}")
    name = "kedge_inference_last_minute_seconds"
    _head(lines, "gauge", name, "Latency of what was answered in the last minute: of the whole, and of the run alone")
    for model, each in sorted(recorder.last_minute().items()):
        for part, histogram in (("total", each.total), ("compute", each.compute)):
            for percentile, ns in zip(_PERCENTILES, histogram.percentiles_ns(_PERCENTILES), strict=True):
                # Where nothing was answered, there is no latency.
                if ns is not None:
                    pairs = {"model": model, "version": str(each.version), "part": part}
                    pairs["quantile"] = f"{percentile / 100:g}"
                    lines.append(f"{name}{_pairs(pairs)} {_number(ns / 1e9)}")
    name = "kedge_inference_last_minute_requests"
    _head(lines, "gauge", name, "Requests that were answered in the last minute: those of its latencies")
    for model, each in sorted(recorder.last_minute().items()):
        pairs = {"model": model, "version": str(each.version)}
        lines.append(f"{name}{_pairs(pairs)} {each.compute.count}")
    _head(lines, "gauge", "kedge_recorder_bytes", "What the flight recorder takes of the disk")
    lines.append(f"kedge_recorder_bytes {recorder.bytes}")
    _head(lines, "gauge", "kedge_recorder_writing", "1 where the disk took a record within the last minute")
    lines.append(f"kedge_recorder_writing {int(recorder.writes)}")
    if recorder.cpu_share is not None:
        _head(lines, "gauge", "kedge_recorder_cpu_ratio", "Share of one core that the flight recorder takes")
        lines.append(f"kedge_recorder_cpu_ratio {_number(recorder.cpu_share)}")
    return "\n".join(lines) + "\n"


def _histogram(lines: list[str], entries: list[LiveModel]) -> None:
    name = "kedge_inference_request_duration_seconds"
    _head(lines, "histogram", name, "Time of requests that were answered, from head to response")
    for live in entries:
        counts, count, total = live.statistics.histogram()
        for bound, cumulative in zip([*map(str, BUCKETS_S), "+Inf"], counts, strict=True):
            lines.append(f"{name}_bucket{_labels(live, le=bound)} {cumulative}")
        lines.append(f"{name}_sum{_labels(live)} {_number(total)}")
        lines.append(f"{name}_count{_labels(live)} {count}")


def _drift(lines: list[str], entries: list[LiveModel]) -> None:
    rows = [(live, row) for live in entries if live.drift is not None for row in live.drift.report()]
    _head(lines, "counter", "kedge_input_values_total", "Values of calibrated inputs that were looked at")
    lines.extend(f"kedge_input_values_total{_labels(live, input=row['name'])} {row['values']}" for live, row in rows)
    _head(lines, "counter", "kedge_input_values_outside_total", "Of those, values outside the calibrated range")
    lines.extend(
        f"kedge_input_values_outside_total{_labels(live, input=row['name'])} {row['outside']}" for live, row in rows
    )
    _head(lines, "gauge", "kedge_input_drift_ratio", "Share of the latest values outside the calibrated range")
    lines.extend(
        f"kedge_input_drift_ratio{_labels(live, input=row['name'])} {_number(row['share'])}"
        for live, row in rows
        if row["share"] is not None
    )


def _deploys(lines: list[str], ended: Mapping[str, int]) -> None:
    _head(lines, "counter", "kedge_deploys_total", "Deploys that ended since the agent began, by outcome")
    lines.extend(f'kedge_deploys_total{{outcome="{state}"}} {count}' for state, count in sorted(ended.items()))


def _process(lines: list[str]) -> None:
    memory = read_memory()
    for name, text, value in (
        ("process_resident_memory_bytes", "Resident set of the agent", memory.rss_bytes),
        ("kedge_process_proportional_memory_bytes", "Proportional set of the agent", memory.pss_bytes),
        ("kedge_memory_available_bytes", "What the system could give without swapping", memory.available_bytes),
    ):
        # What could not be read is left out: a 0 would be a figure.
        if value is not None:
            _head(lines, "gauge", name, text)
            lines.append(f"{name} {value}")
    _head(lines, "gauge", "kedge_agent_info", "The agent that answers")
    lines.append(f'kedge_agent_info{{version="{__version__}"}} 1')


def _head(lines: list[str], kind: str, name: str, text: str) -> None:
    lines.append(f"# HELP {name} {text}")
    lines.append(f"# TYPE {name} {kind}")


def _labels(live: LiveModel, **more: str) -> str:
    return _pairs({"model": live.manifest.model, "version": str(live.manifest.version), **more})


def _pairs(pairs: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return repr(value)

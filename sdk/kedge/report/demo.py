"""The demo's table: FP32 and INT8 side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .deploy_text import probation_words
from .tables import key_values, print_table
from .text import byte_size, milliseconds, per_cent, rate

__all__ = ["demo_tables"]


def demo_tables(document: dict[str, Any]) -> None:
    """Accuracy, size, latency with its split, throughput and memory, of both precisions."""
    results, ratios = document["results"], document["int8_over_fp32"]
    data = document["data"]

    def row(label: str, value: Callable[[dict[str, Any]], str], ratio: str = "") -> list[str]:
        return [label, value(results["fp32"]), value(results["int8"]), ratio]

    def latency(part: str, where: str = "end_to_end") -> Callable[[dict[str, Any]], str]:
        def text(result: dict[str, Any]) -> str:
            summary = result["bench"][where][part]
            return " / ".join(milliseconds(summary[key]) for key in ("median_ms", "p90_ms", "p99_ms"))

        return text

    def memory(key: str) -> Callable[[dict[str, Any]], str]:
        return lambda result: byte_size(result["bench"]["memory"]["now"][key])

    count = data["held_out_images"]
    rows = [
        row(
            f"accuracy ({count} held-out images)",
            lambda r: f"{per_cent(r['accuracy']['share'])} ({r['accuracy']['correct']})",
            f"{ratios['accuracy_points']:+.2f} points",
        ),
        row("gates on the device", _gates),
        row(f"probation of {results['int8']['probation']['seconds']} s", lambda r: probation_words(r["probation"])),
        row("model", lambda r: byte_size(r["model_bytes"]), f"{ratios['model_bytes']:.2f} ×"),
        row("latency p50 / p90 / p99", latency("total"), f"{ratios['end_to_end_median']:.2f} ×"),
        row("  to the agent and back", latency("transport")),
        row("  queue", latency("queue")),
        row("  input", latency("input")),
        row("  compute", latency("compute")),
        row("  output", latency("output")),
        row("compute inside the agent", latency("compute", "in_agent"), f"{ratios['compute_median']:.2f} ×"),
        row("throughput, one at a time", lambda r: rate(r["bench"]["end_to_end"]["throughput_per_s"])),
        row("agent RSS", memory("rss_bytes")),
        row("agent peak RSS", memory("peak_rss_bytes")),
    ]
    print_table(
        "Handwritten digits, trained, quantised and deployed just now",
        ["", "FP32", "INT8", "INT8 : FP32"],
        rows,
        right=[1, 2, 3],
    )
    bench = results["int8"]["bench"]
    conditions = bench["conditions"]
    agent = conditions["agent"]
    split = f"{data['train_images']} train, {count} held out, {data['calibration_images']} calibrate"
    requests = f"{bench['end_to_end']['count']} + {bench['in_agent']['count']} INT8 requests"
    how = (
        f"batch {conditions['batch']}, closed loop, {requests} after {conditions['warmup_ms']} ms of warm-up,"
        f" {agent['threads']} threads on {agent['cores']} cores;"
        f" the median of {document['rounds']} rounds in alternation"
    )
    key_values(
        [
            ("data", f"{data['name']}: {split}"),
            ("device", f"local agents, {document['target']}, onnxruntime {agent['runtimes']['onnxruntime']}"),
            ("conditions", how),
            ("took", f"{document['seconds']:.0f} s"),
        ]
    )


def _gates(result: dict[str, Any]) -> str:
    return ", ".join(gate["gate"] for gate in result["gates"] if gate["passed"]) + " passed"

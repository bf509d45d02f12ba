"""The report of a bench as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .bench_chart import waterfall_svg
from .bench_words import GPU_PARTS, PHASE_COLUMNS, conditions_sentence, lock_word, phase_rows, trust_lines
from .page import render_page
from .text import NOT_MEASURED, byte_size, milliseconds, rate, sentence

__all__ = ["bench_html"]

_COLUMNS = ("min", "mean", "median", "p90", "p95", "p99", "max")
_SHOWN_LAYERS = 1000


def bench_html(report: Mapping[str, Any]) -> str:
    """The page of one bench (docs/bench-report.md), complete in itself; the same report gives the same text.

    Raises:
        IncompatibleError: jinja2 is not installed.
    """
    end, inside = report["end_to_end"], report["in_agent"]
    view = {
        "r": report,
        "state": "passed" if end["trust"]["stable"] and inside["trust"]["stable"] else "failed",
        "headline": f"{milliseconds(end['total']['median_ms'])} a request from this host (median)",
        "sentences": [
            f"From the host: {'; '.join(trust_lines(end['trust']))}.",
            f"In the agent: {'; '.join(trust_lines(inside['trust']))}.",
        ],
        "tiles": _tiles(report),
        "waterfall": _waterfall(report["waterfall"]),
        "columns": _COLUMNS,
        "loops": [
            ("From this host", end, _rows(end, ("transport", "queue", "input", "compute", "output"))),
            ("In the agent", inside, _rows(inside, ("queue", "input", "compute", *GPU_PARTS, "output"))),
        ],
        "clocks": [
            (
                clock["name"],
                f"{clock['min_hz'] / 1e6:.0f} to {clock['max_hz'] / 1e6:.0f} MHz",
                lock_word(clock["locked"]),
            )
            for clock in inside["trust"]["clocks"]
        ],
        "sweep": [_sweep_row(loop) for loop in report["sweep"] or ()],
        "layers": _layers(report["layers"]),
        "phases": None if report["phases"] is None else phase_rows(report["phases"]),
        "phase_columns": PHASE_COLUMNS,
        "conditions": sentence(conditions_sentence(report)),
    }
    return render_page("bench.html.j2", view, {"rate": rate})


def _tiles(report: Mapping[str, Any]) -> list[dict[str, str]]:
    end, inside, memory = report["end_to_end"], report["in_agent"], report["memory"]

    def tile(name: str, value: str, detail: str) -> dict[str, str]:
        return {"name": name, "value": value, "detail": detail}

    return [
        tile("p99 from this host", milliseconds(end["total"]["p99_ms"]), f"{end['count']} requests"),
        tile("compute in the agent", milliseconds(inside["compute"]["median_ms"]), f"p50 of {inside['count']} runs"),
        tile("throughput in the agent", rate(inside["throughput_per_s"]), f"{inside['concurrency']} at a time"),
        tile("agent's memory", byte_size(memory["now"]["rss_bytes"]), "resident, with every model in it"),
    ]


def _rows(loop: Mapping[str, Any], parts: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    return [(part, _figures(loop[part])) for part in ("total", *parts)]


def _figures(summary: Mapping[str, Any] | None) -> list[str]:
    if summary is None:
        return [NOT_MEASURED, *[""] * (len(_COLUMNS) - 1)]
    return [milliseconds(summary[f"{column}_ms"]) for column in _COLUMNS]


def _waterfall(waterfall: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if waterfall is None:
        return None
    last = waterfall["levels"][-1]
    return {
        "drawing": waterfall_svg(waterfall["steps"], last["median_ms"]),
        "steps": [
            (step["name"], step["what"], milliseconds(step["p50_ms"]), milliseconds(step["p99_ms"]))
            for step in waterfall["steps"]
        ],
        "whole": (milliseconds(last["median_ms"]), milliseconds(last["p99_ms"])),
        "how": f"{waterfall['rounds']} rounds of {waterfall['runs']} requests a level, in turn",
        "left_out": waterfall["left_out"],
        "trust": "; ".join(trust_lines(waterfall["trust"])),
    }


def _sweep_row(loop: Mapping[str, Any]) -> list[str]:
    total = loop["total"]
    return [
        str(loop["concurrency"]),
        rate(loop["throughput_per_s"]),
        milliseconds(total["median_ms"]),
        milliseconds(total["p99_ms"]),
        str(loop["refused"]),
        "; ".join(trust_lines(loop["trust"])),
    ]


def _layers(layers: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if layers is None:
        return None
    rows = sorted(layers["layers"], key=lambda row: -float(row["total_ms"]))
    return {"count": layers["count"], "rows": rows[:_SHOWN_LAYERS], "left_out": max(0, len(rows) - _SHOWN_LAYERS)}

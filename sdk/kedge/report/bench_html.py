"""The report of a bench as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .bench_chart import waterfall_svg
from .bench_words import GPU_PARTS, PHASE_COLUMNS, conditions_sentence, lock_word, phase_rows, trust_lines
from .page import cell, markup, render_page
from .text import NOT_MEASURED, byte_size, milliseconds, per_cent, rate, sentence

__all__ = ["bench_html"]

_COLUMNS = ("min", "mean", "median", "p90", "p95", "p99", "max")
_SHOWN_LAYERS = 1000


def bench_html(report: Mapping[str, Any]) -> str:
    """The page of one bench (docs/bench-report.md), complete in itself; the same report gives the same text.

    Raises:
        IncompatibleError: jinja2 is not installed.
    """
    end, inside = report["end_to_end"], report["in_agent"]
    stable = end["trust"]["stable"] and inside["trust"]["stable"]
    view = {
        "r": report,
        "state": "ok" if stable else "warning",
        "badge": "stable" if stable else "not stable",
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
                f"{clock['min_hz'] / 1e6:.0f} to {clock['max_hz'] / 1e6:.0f} MHz, {lock_word(clock['locked'])}",
            )
            for clock in inside["trust"]["clocks"]
        ],
        "sweep": [_sweep_row(loop) for loop in report["sweep"] or ()],
        "layers": _layers(report["layers"]),
        "ledger": [
            ("model on disk", _size(report["memory"]["model_bytes"]), "the artefact's file"),
            *((row["what"], _size(row["bytes"]), row["method"]) for row in report["memory"]["ledger"]),
        ],
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


def _rows(loop: Mapping[str, Any], parts: tuple[str, ...]) -> list[tuple[Any, ...]]:
    return [(part, *_figures(loop[part])) for part in ("total", *parts)]


def _figures(summary: Mapping[str, Any] | None) -> list[str]:
    if summary is None:
        return [NOT_MEASURED, *[""] * (len(_COLUMNS) - 1)]
    return [milliseconds(summary[f"{column}_ms"]) for column in _COLUMNS]


def _waterfall(waterfall: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if waterfall is None:
        return None
    last = waterfall["levels"][-1]
    return {
        "drawing": markup(waterfall_svg(waterfall["steps"], last["median_ms"])),
        "steps": [
            (step["name"], step["what"], _time(step["p50_ms"]), _time(step["p99_ms"])) for step in waterfall["steps"]
        ],
        "whole": (
            "in all",
            "a request as an application on this host sees it",
            _time(last["median_ms"]),
            _time(last["p99_ms"]),
        ),
        "how": f"{waterfall['rounds']} rounds of {waterfall['runs']} requests a level, in turn",
        "left_out": waterfall["left_out"],
        "trust": "; ".join(trust_lines(waterfall["trust"])),
    }


def _sweep_row(loop: Mapping[str, Any]) -> list[Any]:
    total, throughput = loop["total"], loop["throughput_per_s"]
    return [
        loop["concurrency"],
        cell(rate(throughput), throughput),
        _time(total["median_ms"]),
        _time(total["p99_ms"]),
        loop["refused"],
        "; ".join(trust_lines(loop["trust"])),
    ]


def _layers(layers: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if layers is None:
        return None
    rows = sorted(layers["layers"], key=lambda row: -float(row["total_ms"]))
    shown = [
        (
            cell(row["name"], code=True),
            row["kind"],
            _time(row["mean_ms"]),
            _time(row["median_ms"]),
            cell(per_cent(row["share"]), row["share"]),
        )
        for row in rows[:_SHOWN_LAYERS]
    ]
    return {"count": layers["count"], "rows": shown, "left_out": max(0, len(rows) - _SHOWN_LAYERS)}


def _time(value_ms: float | None) -> dict[str, Any]:
    return cell(milliseconds(value_ms), value_ms)


def _size(value: int | None) -> dict[str, Any]:
    return cell(byte_size(value), value)

"""A bench report on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .bench_words import GPU_PARTS, PHASE_COLUMNS, conditions_sentence, lock_word, phase_rows, trust_lines
from .tables import key_values, print_table
from .text import NOT_MEASURED, byte_size, milliseconds, per_cent, rate

__all__ = ["bench_tables"]

_COLUMNS = ("min", "mean", "median", "p90", "p95", "p99", "max")
_RIGHT = range(1, len(_COLUMNS) + 1)
_SHOWN_LAYERS = 20
_BAR_CELLS = 40


def bench_tables(report: Mapping[str, Any]) -> None:
    """A bench report as tables: latency as the host sees it and in the agent, what else was asked for, memory."""
    conditions, end, inside = report["conditions"], report["end_to_end"], report["in_agent"]
    print_table(
        f"{report['model']} {report['precision']} on {report['device']}: end to end, as this host sees it"
        f" ({end['count']} requests in {end['seconds']:.1f} s, {rate(end['throughput_per_s'])})",
        ["", *_COLUMNS],
        [
            _latency_row("end to end", end["total"]),
            *(_latency_row(f"  {part}", end[part]) for part in ("transport", "queue", "input", "compute", "output")),
        ],
        right=_RIGHT,
    )
    _say_trust(end["trust"])
    print_table(
        f"Inside the agent, no transport ({inside['count']} runs in {inside['seconds']:.1f} s,"
        f" {rate(inside['throughput_per_s'])})",
        ["", *_COLUMNS],
        [
            _latency_row("total", inside["total"]),
            *(_latency_row(f"  {part}", inside[part]) for part in ("queue", "input", "compute")),
            *(_latency_row(f"    {part}", inside[part]) for part in GPU_PARTS),
            _latency_row("  output", inside["output"]),
        ],
        right=_RIGHT,
    )
    _say_trust(inside["trust"])
    if report["sweep"] is not None:
        _sweep(report["sweep"])
    if report["waterfall"] is not None:
        _waterfall(report["waterfall"])
    if report["layers"] is not None:
        _layers(report["layers"])
    if report["phases"] is not None:
        print_table(
            "Load phases, in a process of their own", PHASE_COLUMNS, phase_rows(report["phases"]), right=range(1, 6)
        )
    _memory(report["memory"])
    key_values([("conditions", conditions_sentence(report)), ("started", conditions["started"])])


def _latency_row(label: str, summary: Mapping[str, Any] | None) -> list[str]:
    if summary is None:
        return [label, *[NOT_MEASURED, *[""] * (len(_COLUMNS) - 1)]]
    return [label, *(milliseconds(summary[f"{column}_ms"]) for column in _COLUMNS)]


def _say_trust(trust: Mapping[str, Any]) -> None:
    first, *more = trust_lines(trust)
    rows = [("trust", first), *(("", line) for line in more)]
    rows += [("clock", f"{clock['name']}: {_hertz(clock)}, {lock_word(clock['locked'])}") for clock in trust["clocks"]]
    if trust["unavailable"]:
        rows.append(("not known", "; ".join(trust["unavailable"])))
    key_values([*rows, ("", "")])


def _hertz(clock: Mapping[str, Any]) -> str:
    low, high = clock["min_hz"] / 1e6, clock["max_hz"] / 1e6
    return f"{high:.0f} MHz" if round(low) == round(high) else f"{low:.0f} to {high:.0f} MHz"


def _sweep(loops: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        [
            str(loop["concurrency"]),
            rate(loop["throughput_per_s"]),
            *(milliseconds(loop["total"][key]) for key in ("median_ms", "p99_ms")),
            milliseconds(loop["queue"]["median_ms"]),
            milliseconds(loop["compute"]["median_ms"]),
            str(loop["refused"]),
            "stable" if loop["trust"]["stable"] else ", ".join(r["what"] for r in loop["trust"]["reasons"]),
        ]
        for loop in loops
    ]
    columns = ("at a time", "throughput", "p50", "p99", "queue p50", "compute p50", "refused", "trust")
    print_table("Requests at a time, inside the agent", columns, rows, right=range(7))


def _waterfall(waterfall: Mapping[str, Any]) -> None:
    whole = max((level["median_ms"] for level in waterfall["levels"]), default=0.0) or 1.0
    rows, end = [], 0.0
    for step in waterfall["steps"]:
        start, end = end, end + step["p50_ms"]
        left, right = sorted((round(start / whole * _BAR_CELLS), round(end / whole * _BAR_CELLS)))
        bar = " " * left + ("█" * (right - left) or "▏")
        rows.append([step["name"], bar, milliseconds(step["p50_ms"]), milliseconds(step["p99_ms"]), step["what"]])
    last = waterfall["levels"][-1]
    rows.append(["in all", "", milliseconds(last["median_ms"]), milliseconds(last["p99_ms"]), ""])
    title = (
        f"Where a request's time goes ({waterfall['rounds']} rounds of {waterfall['runs']} requests a level, in turn)"
    )
    print_table(title, ("", "", "p50", "p99", ""), rows, right=(2, 3))
    for line in waterfall["left_out"]:
        key_values([("left out", line)])
    _say_trust(waterfall["trust"])


def _layers(layers: Mapping[str, Any]) -> None:
    rows = sorted(layers["layers"], key=lambda row: -float(row["total_ms"]))
    table = [
        [row["name"], row["kind"], milliseconds(row["mean_ms"]), milliseconds(row["median_ms"]), per_cent(row["share"])]
        for row in rows[:_SHOWN_LAYERS]
    ]
    left_out = len(rows) - len(table)
    if left_out:
        rest = sum(row["share"] for row in rows[_SHOWN_LAYERS:])
        table.append([f"{left_out} more (--json)", "", "", "", per_cent(rest)])
    title = f"Layers, of {layers['count']} runs with the profiler on, the longest first"
    print_table(title, ("layer", "kind", "mean", "median", "share"), table, right=(2, 3, 4))


def _memory(memory: Mapping[str, Any]) -> None:
    load = memory["load"]
    rows = [
        ["model on disk", byte_size(memory["model_bytes"]), "the artefact's file"],
        *([row["what"], byte_size(row["bytes"]), row["method"]] for row in memory["ledger"]),
        ["process peak RSS", byte_size(memory["now"]["peak_rss_bytes"]), "VmHWM of /proc/self/status"],
    ]
    print_table("Memory; lines overlap, and are not to be added up", ("", "", "from"), rows, right=(1,))
    key_values([("load", milliseconds(load["load_ms"]))])

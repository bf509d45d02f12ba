"""The Markdown table of tools/bench/optimize.py."""

from __future__ import annotations

from typing import Any

__all__ = ["markdown"]

_NONE = "not measured"
_COLUMNS = (
    *("correct", "95 %", "lost, points", "size", "× FP32", "p50 ms", "p90 ms", "p99 ms", "speed-up (rounds)"),
    *("wall s", "processor s", "call s"),
)


def markdown(document: dict[str, Any]) -> str:
    """The whole page."""
    facts = document["conditions"]
    load = facts["load_average"]
    lines = [
        "# Static INT8: kedge, onnxruntime, ModelOpt",
        "",
        "Made by `tools/bench/optimize.py`; the figures with all their digits are in the `.json` beside this.",
        "",
        f"- {facts['processor']}, {facts['machine']}; {facts['started']} to {facts['ended']}.",
        f"- Load average {load['started'][0]:.1f} before, {load['ended'][0]:.1f} after: trust ratios before times.",
        f"- kedge {facts['kedge']}; ModelOpt {facts['modelopt']}; Python {facts['python']}; "
        + ", ".join(f"{name} {version}" for name, version in facts["libraries"].items())
        + ".",
        f"- Latency: {facts['latency']}; {facts['rounds']} rounds.",
        f"- Seconds: {facts['seconds']}, {facts['repeats']} for each model and tool.",
        f"- rtx-ada-2000: {facts['rtx']}.",
        "- Intervals: Wilson 95 %. p: McNemar's exact test of kedge against the most accurate of the others.",
        "",
        "## Goals",
        "",
        *_goals(document),
    ]
    for case in document["cases"].values():
        for target, found in case["targets"].items():
            lines += ["", f"## {case['model']}, {target}", "", f"{_capital(case['measured'])}.", "", *_rows(found)]
            versus = found["kedge_against_best"]
            if versus is not None:
                lines += ["", _versus(found["best_other"], versus)]
            lines += [f"\n{row['tool']}: {note}." for row in found["rows"] for note in row.get("notes", ())]
            lines += [
                f"\nNot measured: {row['tool']}: {row['not_measured']}." for row in found["rows"] if row["not_measured"]
            ]
    about = {row["tool"]: row["about"] for case in document["cases"].values() for row in _all_rows(case)}
    lines += ["", "## Tools", "", *(f"- {name}: {text}." for name, text in about.items())]
    return "\n".join(lines) + "\n"


def _versus(best: str, versus: dict[str, Any]) -> str:
    low, high = versus["interval_95"]
    pairs = versus["mcnemar"]
    return (
        f"kedge against {best}: {-versus['points_behind']:+.2f} points ({-high:+.2f} to {-low:+.2f}), "
        f"{pairs['only_kedge']} samples right by kedge alone and {pairs['only_other']} by the other alone, "
        f"p = {pairs['p_value']:.2g}."
    )


def _goals(document: dict[str, Any]) -> list[str]:
    """A line a goal: how often it holds, and where it does not."""
    entries: dict[str, list[dict[str, Any]]] = {}
    for entry in document["goals"]:
        entries.setdefault(_goal(entry), []).append(entry)
    lines = []
    for text, group in entries.items():
        known = [entry for entry in group if entry["held"] is not None]
        missed = [_missed(entry) for entry in known if not entry["held"]]
        state = f"{len(known) - len(missed)} of {len(known)}" if known else _NONE
        lines.append(f"- {text}: {state}{'; not ' + ', '.join(missed) if missed else ''}.")
    return sorted(lines)


def _goal(entry: dict[str, Any]) -> str:
    if entry["goal"] == "accuracy":
        return "accuracy at most 0.1 points below the best of the others"
    if entry["goal"] == "seconds":
        return f"seconds of “{entry['of']}” below those of “{entry['than']}”"
    if entry["goal"] == "latency":
        return f"latency of the model of “{entry['of']}” below that of “{entry['than']}”"
    return "speed-up of the ResNets over FP32 at least 1.8"


def _missed(entry: dict[str, Any]) -> str:
    where = f"{entry['case']} on {entry['target']}"
    if entry["goal"] == "accuracy":
        return f"{where} ({entry['figure']:+.2f} points from “{entry['than']}”, p = {entry['p_value']:.2g})"
    return f"{where} ({entry['figure']:.2f} ×)"


def _rows(found: dict[str, Any]) -> list[str]:
    fp32 = found["fp32"]
    lines = [
        f"| | {' | '.join(_COLUMNS)} |",
        f"|---|{'--:|' * len(_COLUMNS)}",
        _row("FP32", fp32 | {"bytes_over_fp32": 1.0, "seconds": None}),
    ]
    return lines + [_row(row["tool"], row) for row in found["rows"]]


def _row(name: str, row: dict[str, Any]) -> str:
    cells = [name]
    accuracy, latency, seconds = row["accuracy"], row["latency"], row["seconds"]
    if accuracy is None:
        cells += ["–"] * 3
    else:
        low, high = accuracy["interval_95"]
        cells += [f"{accuracy['share'] * 100:.2f} %", f"{low * 100:.2f}–{high * 100:.2f}"]
        cells.append(f"{accuracy['against_fp32']['drop'] * 100:+.2f}")
    cells += ["–"] * 2 if row["bytes"] is None else [f"{row['bytes'] / 1e3:,.0f} kB", f"{row['bytes_over_fp32']:.3f}"]
    if latency is None:
        cells += ["–"] * 4
    else:
        figures, speedup = latency["summary"], latency["speedup"]
        cells += [f"{figures[key]:.3g}" for key in ("median_ms", "p90_ms", "p99_ms")]
        cells.append(f"{speedup['median']:.2f} × ({speedup['low']:.2f}–{speedup['high']:.2f})")
    for key in ("wall", "processor", "call"):
        cells.append("–" if seconds is None or seconds[key] is None else f"{seconds[key]['median']:.1f}")
    return "| " + " | ".join(cells) + " |"


def _all_rows(case: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for found in case["targets"].values() for row in found["rows"]]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]

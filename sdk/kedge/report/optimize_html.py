"""The report of an optimisation as one HTML page: what goes into its sections and tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from . import charts, layer_charts
from .optimize_gate import badge, gate_rows
from .optimize_sections import (
    classes,
    data_row,
    layers_section,
    outputs,
    robustness_section,
    search_section,
    sensitivity_section,
)
from .optimize_words import (
    Verdict,
    amount,
    before_after_rows,
    compact,
    comparable,
    not_measured,
    points,
    verdict,
)
from .page import markup, render_page
from .text import NOT_MEASURED, byte_size, milliseconds, per_cent, sentence

__all__ = ["optimize_html"]

Json = Mapping[str, Any]

_HISTOGRAMS = 12
_DETAIL_LINES = 1000

# (its id, its name, what of the view it shows; None: always there).
_SECTIONS = (
    ("before-after", "Before and after", None),
    ("passes", "Passes", None),
    ("data", "Data", None),
    ("sensitivity", "Sensitivity", "sensitivity"),
    ("search", "Search", "search"),
    ("activations", "Activations", "histograms"),
    ("layers", "Layers", "layers"),
    ("robustness", "Robustness", "robustness"),
    ("gate", "Gate", None),
    ("environment", "Environment", None),
)


def optimize_html(document: Mapping[str, Any]) -> str:
    """The page of one report (docs/optimize-report.md), complete in itself; the same document gives the same text.

    Names in the document may hold anything: they are escaped, and characters that do not print are replaced.

    Raises:
        IncompatibleError: jinja2 or matplotlib is not installed.
    """
    gate, found = document["gate"], verdict(document)
    view: dict[str, Any] = {
        "d": document,
        "verdict": found,
        "state": found.state if gate else "none",
        "badge": badge(gate) if gate else "",
        "gate": gate_rows(gate) if gate else [],
        "sentences": _sentences(found, gate),
        "tiles": _tiles(document),
        "rows": [(row.name, row.before, row.after, row.change) for row in before_after_rows(document)],
        "before_after": markup(charts.before_after(document["before"], document["after"])),
        "conditions": _conditions(document),
        "outputs": outputs(document["comparison"]),
        "classes": classes(document),
        "passes": [_pass(entry) for entry in document["passes"]],
        "data": [data_row(use, document["data"][use]) for use in ("calibration", "train", "evaluation")],
        "sensitivity": sensitivity_section(document),
        "search": search_section(document),
        "histograms": [
            markup(layer_charts.histogram(item, index))
            for index, item in enumerate(document["histograms"][:_HISTOGRAMS])
        ],
        "layers": layers_section(document["layers"]),
        "robustness": robustness_section(document["robustness"]),
        "not_measured": not_measured(document),
    }
    view["sections"] = [(key, name) for key, name, of in _SECTIONS if of is None or view[of]]
    return render_page("optimize.html.j2", view)


def _sentences(found: Verdict, gate: Json | None) -> list[str]:
    accuracy = [found.accuracy] if found.accuracy else []
    to_do = [f"Next: {gate['next']}"] if gate and not gate["passed"] and gate["next"] else []
    return [*accuracy, *found.sentences, *to_do]


def _seconds(value: float) -> str:
    if value < 120:
        return f"{value:.3g} s"
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes} min {seconds} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _tiles(document: Json) -> list[dict[str, str]]:
    """The four figures people ask for first."""
    before, after = document["before"], document["after"]
    first, second = ((side["metrics"] or {}).get("top1") for side in (before, after))
    tiles = [
        {
            "name": "Top-1 accuracy",
            "value": points(second["share"] - first["share"]) if first and second else NOT_MEASURED,
            "detail": f"{per_cent(first['share'])} → {per_cent(second['share'])}" if first and second else "",
        },
        _ratio_tile("Size", before["bytes"], after["bytes"], ("smaller", "larger"), byte_size),
    ]
    if comparable(before["latency"], after["latency"]):
        old, new = before["latency"]["p50_ms"], after["latency"]["p50_ms"]
        tiles.append(_ratio_tile("Latency, p50", old, new, ("faster", "slower"), milliseconds))
    else:
        tiles.append({"name": "Latency, p50", "value": NOT_MEASURED, "detail": ""})
        if before["latency"] and after["latency"]:
            tiles[-1] |= {"value": "not comparable", "detail": "measured under different conditions"}
    tiles.append(_ratio_tile("MACs", before["macs"], after["macs"], ("fewer", "more"), amount))
    return tiles


def _ratio_tile(name: str, before: Any, after: Any, words: tuple[str, str], text: Any) -> dict[str, str]:
    if not before or not after:
        return {"name": name, "value": NOT_MEASURED, "detail": ""}
    ratio = before / after
    value = f"{max(ratio, 1 / ratio):.3g} × {words[0] if ratio > 1 else words[1]}"
    if f"{max(ratio, 1 / ratio):.3g}" == "1":
        value = "unchanged"
    return {"name": name, "value": value, "detail": f"{text(before)} → {text(after)}"}


def _conditions(document: Json) -> list[str]:
    """How latency was measured: one sentence when both models were measured alike."""
    sides = [(side, document[side]["latency"]) for side in ("before", "after") if document[side]["latency"]]
    if len(sides) == 2 and comparable(sides[0][1], sides[1][1]):
        return [sentence(f"Latency: {sides[0][1]['conditions']}")]
    return [sentence(f"Latency {side}: {latency['conditions']}") for side, latency in sides]


def _pass(entry: Json) -> dict[str, Any]:
    changed = entry["changed"]
    lines = list(_lines(changed))
    cut = ["… (the rest is in the JSON report)"] if len(lines) > _DETAIL_LINES else []
    return {
        "kind": entry["kind"],
        "took": _seconds(entry["seconds"]),
        "parameters": [(key, compact(value)) for key, value in entry["parameters"].items()],
        "changed": [(key, compact(value)) for key, value in changed.items()],
        "whole": [*lines[:_DETAIL_LINES], *cut] if len(lines) > len(changed) else [],
        "notes": entry["notes"],
    }


def _lines(value: Json, indent: str = "") -> Iterator[str]:
    """All of a nested dictionary, a line an entry."""
    for key, item in value.items():
        if isinstance(item, Mapping) and list(item) != ["before", "after"]:
            yield f"{indent}{key}:"
            yield from _lines(item, indent + "  ")
        else:
            yield f"{indent}{key}: {compact(item, limit=100)}"

"""Sections of an optimisation's page: the rows of its tables, beside the drawings that they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import charts, layer_charts
from .optimize_words import compact, interval, points
from .page import cell, markup
from .text import NOT_MEASURED, milliseconds, per_cent, sentence

__all__ = [
    "classes",
    "data_row",
    "layers_section",
    "outputs",
    "robustness_section",
    "search_section",
    "sensitivity_section",
]

Json = Mapping[str, Any]

_WORST_LAYERS = 10


def outputs(comparison: Json | None) -> list[tuple[Any, ...]]:
    """How far each output is from the original's."""
    return [
        (cell(each["name"], code=True), _figure(each["mse"]), _figure(each["psnr_db"]), _figure(each["cosine"], 6))
        for each in (comparison or {}).get("outputs") or []
    ]


def data_row(use: str, data: Json | None) -> tuple[Any, ...]:
    """What data a use had."""
    if data is None:
        return use, "none given", "", ""
    return use, data["name"], f"{data['count']:,}", cell(data["sha256"], code=True)


def classes(document: Json) -> list[tuple[Any, ...]]:
    """Sensitivity and specificity per class, the largest loss of sensitivity first."""
    sides = [(document[side]["metrics"] or {}).get("per_class") for side in ("before", "after")]
    if not sides[0] or not sides[1]:
        return []
    before = {entry["label"]: entry for entry in sides[0]}
    rows = []
    for entry in sides[1]:
        was, now = before.get(entry["label"], {}).get("share"), entry["share"]
        change = None if was is None or now is None else now - was
        spared = [(each or {}).get("specificity") for each in (before.get(entry["label"]), entry)]
        rows.append((entry["label"], entry["count"], was, now, change, spared))
    rows.sort(key=lambda row: (row[4] is None, row[4] or 0.0, row[0]))
    return [
        (
            label,
            cell(f"{count:,}", count),
            _share(was),
            _share(now),
            cell("" if by is None else points(by), by),
            *(_share(None if each is None else each["share"]) for each in spared),
        )
        for label, count, was, now, by, spared in rows
    ]


def sensitivity_section(document: Json) -> dict[str, Any] | None:
    """What each layer's change alone does to the output; None where it was not measured."""
    rows = document["sensitivity"]
    if not rows:
        return None
    chosen = {layer["name"]: layer["precision"] for layer in document["layers"]}
    layers, shown = len({row["layer"] for row in rows}), layer_charts.SENSITIVITY_BARS
    some = f"; the {shown} most sensitive of {layers} layers" if layers > shown else ""
    return {
        "chart": markup(layer_charts.sensitivity(rows, chosen)),
        "caption": f"Error of the output when one layer alone is changed{some}."
        " Pale: a precision that the result does not use for this layer.",
        "rows": [
            (
                cell(row["layer"], code=True),
                row["op"],
                row["precision"],
                _figure(row["error"]),
                chosen.get(row["layer"], "–"),
            )
            for row in sorted(rows, key=lambda row: (-row["error"], row["layer"]))
        ],
    }


def search_section(document: Json) -> dict[str, Any] | None:
    """The trials of a search for a mix of precisions; None where there was none."""
    search = document["search"]
    if search is None or not search["trials"]:
        return None
    wanted = {*search["front"], search["chosen"]}
    trials = sorted((t for t in search["trials"] if t["number"] in wanted), key=lambda t: (t["cost"], t["drop"]))
    gate = document["gate"]
    measured = any(trial["measured_ms"] is not None for trial in trials)
    rows = [
        (
            trial["number"],
            _figure(trial["cost"], 4, f" {trial['cost_unit']}"),
            cell(points(trial["drop"]), trial["drop"]),
            *([cell(milliseconds(trial["measured_ms"]), trial["measured_ms"])] if measured else []),
            compact(trial["counts"]),
            "★ chosen" if trial["number"] == search["chosen"] else "",
        )
        for trial in trials
    ]
    return {
        "chart": markup(charts.pareto(search, gate["max_drop"] if gate else None)),
        "columns": ["Trial", "Cost", "Drop", *(["Measured"] if measured else []), "Layers by precision", ""],
        "rows": rows,
    }


def layers_section(layers: Sequence[Json]) -> dict[str, Any] | None:
    """Error of the layers, worst first; those without a figure last."""
    if not layers:
        return None
    numbered = [{"place": place, **layer} for place, layer in enumerate(layers, start=1)]
    ranked = sorted(numbered, key=lambda row: (row["snr_db"] is None, row["snr_db"] or 0.0, row["place"]))
    rows = [_layer(row) for row in ranked]
    known = any(layer["snr_db"] is not None for layer in layers)
    return {
        "chart": markup(layer_charts.error_profile(layers)) if known else None,
        "worst": rows[:_WORST_LAYERS],
        "rows": rows if len(rows) > _WORST_LAYERS else [],
    }


def robustness_section(robustness: Json | None) -> dict[str, Any] | None:
    """Accuracy under disturbances; None where it was not measured."""
    if robustness is None or not robustness["points"]:
        return None
    clean = robustness.get("clean")
    undamaged = ""
    if clean:
        shares = [f"{per_cent(clean[side]['share'])} {side}" for side in ("before", "after") if clean[side]]
        undamaged = f"On the same samples undamaged: {', '.join(shares)}."
    return {
        "charts": [markup(svg) for svg in charts.robustness(robustness["points"])],
        "rows": [
            (
                point["kind"],
                _figure(point["strength"], 4, f" {point['unit']}"),
                _accuracy(point["before"]),
                _accuracy(point["after"]),
            )
            for point in robustness["points"]
        ],
        "conditions": sentence(robustness["conditions"]),
        "undamaged": undamaged,
    }


def _layer(layer: Json) -> tuple[Any, ...]:
    exact = layer["snr_db"] is None and layer["cosine"] == 1
    return (
        layer["place"],
        cell(layer["name"], code=True),
        layer["op"],
        layer["precision"],
        cell("exact") if exact else _figure(layer["snr_db"]),
        _figure(layer["cosine"], 5),
    )


def _figure(value: float | None, digits: int = 3, unit: str = "") -> dict[str, Any]:
    text = "–" if value is None else f"{value:.{digits}g}{unit}".replace("-", "\N{MINUS SIGN}")
    return cell(text, value)


def _share(share: float | None) -> dict[str, Any]:
    return cell(per_cent(share), share)


def _accuracy(accuracy: Json | None) -> dict[str, Any]:
    if accuracy is None:
        return cell(NOT_MEASURED)
    return cell(f"{per_cent(accuracy['share'])} ({interval(accuracy)})", accuracy["share"])

"""The report of an optimisation as one HTML page: what goes into its sections and tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import charts, layer_charts
from .optimize_words import (
    Verdict,
    amount,
    before_after_rows,
    compact,
    comparable,
    interval,
    not_measured,
    points,
    verdict,
)
from .page import cell, markup, render_page
from .text import NOT_MEASURED, byte_size, milliseconds, per_cent

__all__ = ["optimize_html"]

Json = Mapping[str, Any]

_WORST_LAYERS = 10
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
    allowed = points(gate["max_drop"], sign=False) if gate else ""
    view: dict[str, Any] = {
        "d": document,
        "verdict": found,
        "state": found.state if gate else "none",
        "badge": f"Gate {'passed' if gate['passed'] else 'not passed'}: a drop of {allowed} is allowed" if gate else "",
        "allowed": allowed,
        "sentences": _sentences(found, gate),
        "tiles": _tiles(document),
        "rows": [(row.name, row.before, row.after, row.change) for row in before_after_rows(document)],
        "before_after": markup(charts.before_after(document["before"], document["after"])),
        "conditions": _conditions(document),
        "outputs": _outputs(document["comparison"]),
        "classes": _classes(document),
        "passes": [_pass(entry) for entry in document["passes"]],
        "data": [_data(use, document["data"][use]) for use in ("calibration", "train", "evaluation")],
        "sensitivity": _sensitivity(document),
        "search": _search(document),
        "histograms": [
            markup(layer_charts.histogram(item, index))
            for index, item in enumerate(document["histograms"][:_HISTOGRAMS])
        ],
        "layers": _layers(document["layers"]),
        "robustness": _robustness(document["robustness"]),
        "not_measured": not_measured(document),
    }
    view["sections"] = [(key, name) for key, name, of in _SECTIONS if of is None or view[of]]
    return render_page("optimize.html.j2", view)


def _sentences(found: Verdict, gate: Json | None) -> list[str]:
    accuracy = [found.accuracy] if found.accuracy else []
    to_do = [f"Next: {gate['next']}"] if gate and not gate["passed"] and gate["next"] else []
    return [*accuracy, *found.sentences, *to_do]


def _outputs(comparison: Json | None) -> list[tuple[Any, ...]]:
    return [
        (cell(each["name"], code=True), _figure(each["mse"]), _figure(each["psnr_db"]), _figure(each["cosine"], 6))
        for each in (comparison or {}).get("outputs") or []
    ]


def _data(use: str, data: Json | None) -> tuple[Any, ...]:
    if data is None:
        return use, "none given", "", ""
    return use, data["name"], f"{data['count']:,}", cell(data["sha256"], code=True)


def _figure(value: float | None, digits: int = 3, unit: str = "") -> dict[str, Any]:
    text = "–" if value is None else f"{value:.{digits}g}{unit}".replace("-", "\N{MINUS SIGN}")
    return cell(text, value)


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
        return [_sentence(f"Latency: {sides[0][1]['conditions']}")]
    return [_sentence(f"Latency {side}: {latency['conditions']}") for side, latency in sides]


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _classes(document: Json) -> list[tuple[Any, ...]]:
    """Accuracy per class, the largest loss first."""
    sides = [(document[side]["metrics"] or {}).get("per_class") for side in ("before", "after")]
    if not sides[0] or not sides[1]:
        return []
    before = {entry["label"]: entry for entry in sides[0]}
    rows = []
    for entry in sides[1]:
        was, now = before.get(entry["label"], {}).get("share"), entry["share"]
        change = None if was is None or now is None else now - was
        rows.append((entry["label"], entry["count"], was, now, change))
    rows.sort(key=lambda row: (row[4] is None, row[4] or 0.0, row[0]))
    return [
        (label, cell(f"{count:,}", count), _share(was), _share(now), cell("" if by is None else points(by), by))
        for label, count, was, now, by in rows
    ]


def _share(share: float | None) -> dict[str, Any]:
    return cell(per_cent(share), share)


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


def _sensitivity(document: Json) -> dict[str, Any] | None:
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


def _search(document: Json) -> dict[str, Any] | None:
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


def _layers(layers: Sequence[Json]) -> dict[str, Any] | None:
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


def _robustness(robustness: Json | None) -> dict[str, Any] | None:
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
        "conditions": _sentence(robustness["conditions"]),
        "undamaged": undamaged,
    }


def _accuracy(accuracy: Json | None) -> dict[str, Any]:
    if accuracy is None:
        return cell(NOT_MEASURED)
    return cell(f"{per_cent(accuracy['share'])} ({interval(accuracy)})", accuracy["share"])

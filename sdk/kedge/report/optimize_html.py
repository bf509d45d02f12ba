"""The report of an optimisation as one HTML page: no script, nothing fetched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from . import charts, layer_charts
from .optimize_words import (
    amount,
    before_after_rows,
    compact,
    comparable,
    interval,
    not_measured,
    points,
    verdict,
)
from .page import render_page
from .text import NOT_MEASURED, byte_size, milliseconds, per_cent

__all__ = ["optimize_html"]

Json = Mapping[str, Any]

_WORST_LAYERS = 10
_HISTOGRAMS = 12
_DETAIL_LINES = 1000


def optimize_html(document: Mapping[str, Any]) -> str:
    """The page of one report (docs/optimize-report.md), complete in itself; the same document gives the same text.

    Names in the document may hold anything: they are escaped, and characters that do not print are replaced.

    Raises:
        IncompatibleError: jinja2 or matplotlib is not installed.
    """
    view = {
        "d": document,
        "verdict": verdict(document),
        "tiles": _tiles(document),
        "rows": before_after_rows(document),
        "before_after": _chart(charts.before_after(document["before"], document["after"])),
        "conditions": _conditions(document),
        "classes": _classes(document),
        "passes": [_pass(entry) for entry in document["passes"]],
        "sensitivity": _sensitivity(document),
        "search": _search(document),
        "histograms": [
            _chart(layer_charts.histogram(item, index))
            for index, item in enumerate(document["histograms"][:_HISTOGRAMS])
        ],
        "layers": _layers(document["layers"]),
        "robustness": _robustness(document["robustness"]),
        "not_measured": not_measured(document),
    }
    filters: dict[str, Callable[..., Any]] = {
        "amount": amount,
        "figure": _figure,
        "interval": interval,
        "points": points,
        "seconds": _seconds,
    }
    return render_page("optimize.html.j2", view, filters)


def _chart(svg: str) -> Any:
    from markupsafe import Markup

    return Markup(svg)  # noqa: S704  (serialised by an XML library, which escapes every name)


def _figure(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}g}".replace("-", "\N{MINUS SIGN}")


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


def _classes(document: Json) -> list[dict[str, Any]]:
    """Accuracy per class, the largest loss first."""
    sides = [(document[side]["metrics"] or {}).get("per_class") for side in ("before", "after")]
    if not sides[0] or not sides[1]:
        return []
    before = {entry["label"]: entry for entry in sides[0]}
    rows = []
    for entry in sides[1]:
        was, now = before.get(entry["label"], {}).get("share"), entry["share"]
        change = None if was is None or now is None else now - was
        rows.append({"label": entry["label"], "count": entry["count"], "before": was, "after": now, "change": change})
    return sorted(rows, key=lambda row: (row["change"] is None, row["change"] or 0.0, row["label"]))


def _pass(entry: Json) -> dict[str, Any]:
    changed = entry["changed"]
    lines = list(_lines(changed))
    return {
        "kind": entry["kind"],
        "seconds": entry["seconds"],
        "parameters": [(key, compact(value)) for key, value in entry["parameters"].items()],
        "changed": [(key, compact(value)) for key, value in changed.items()],
        "whole": lines[:_DETAIL_LINES] if len(lines) > len(changed) else [],
        "cut": len(lines) > _DETAIL_LINES,
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
    return {
        "chart": _chart(layer_charts.sensitivity(rows, chosen)),
        "rows": sorted(rows, key=lambda row: (-row["error"], row["layer"])),
        "layers": len({row["layer"] for row in rows}),
        "shown": layer_charts.SENSITIVITY_BARS,
        "chosen": chosen,
    }


def _search(document: Json) -> dict[str, Any] | None:
    search = document["search"]
    if search is None or not search["trials"]:
        return None
    wanted = {*search["front"], search["chosen"]}
    rows = sorted((t for t in search["trials"] if t["number"] in wanted), key=lambda t: (t["cost"], t["drop"]))
    gate = document["gate"]
    return {
        "chart": _chart(charts.pareto(search, gate["max_drop"] if gate else None)),
        "rows": [trial | {"plan": compact(trial["counts"])} for trial in rows],
        "measured": any(trial["measured_ms"] is not None for trial in rows),
    }


def _layers(layers: Sequence[Json]) -> dict[str, Any] | None:
    """Error of the layers, worst first; those without a figure last."""
    if not layers:
        return None
    numbered = [{"place": place, **layer} for place, layer in enumerate(layers, start=1)]
    rows = sorted(numbered, key=lambda row: (row["snr_db"] is None, row["snr_db"] or 0.0, row["place"]))
    known = any(layer["snr_db"] is not None for layer in layers)
    return {
        "chart": _chart(layer_charts.error_profile(layers)) if known else None,
        "worst": rows[:_WORST_LAYERS],
        "rows": rows if len(rows) > _WORST_LAYERS else [],
    }


def _robustness(robustness: Json | None) -> dict[str, Any] | None:
    if robustness is None or not robustness["points"]:
        return None
    clean = robustness.get("clean")
    undamaged = ""
    if clean:
        shares = [f"{per_cent(clean[side]['share'])} {side}" for side in ("before", "after") if clean[side]]
        undamaged = f"On the same samples undamaged: {', '.join(shares)}."
    return {
        "charts": [_chart(svg) for svg in charts.robustness(robustness["points"])],
        "rows": robustness["points"],
        "conditions": _sentence(robustness["conditions"]),
        "undamaged": undamaged,
    }

"""What an optimisation did, in words and rows: shared by the page and the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .text import NOT_MEASURED, byte_size, milliseconds, per_cent

__all__ = [
    "Row",
    "Verdict",
    "amount",
    "before_after_rows",
    "compact",
    "comparable",
    "factor",
    "figure",
    "interval",
    "mcnemar",
    "not_measured",
    "points",
    "verdict",
]

Json = Mapping[str, Any]

_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Row:
    """One line of the table: change is empty where there is nothing to compare."""

    name: str
    before: str
    after: str
    change: str = ""


@dataclass(frozen=True)
class Verdict:
    """What to read when one reads no more.

    state: "passed" or "failed" of the gate, "open" without one.
    accuracy: both accuracies with their intervals; empty where not measured.
    sentences: what the comparison says.
    """

    state: str
    headline: str
    accuracy: str
    sentences: tuple[str, ...]


def amount(value: float | None) -> str:
    """`272 k`, `41.2 M`: powers of ten, three significant figures."""
    if value is None:
        return NOT_MEASURED
    size = float(value)
    for unit in ("", " k", " M", " G"):
        if abs(size) < 999.5:
            return f"{size:.3g}{unit}"
        size /= 1000
    return f"{size:.3g} T"


def points(share: float, *, sign: bool = True) -> str:
    """`−0.03 points`: a difference of two shares in percentage points."""
    value = round(100 * share, 2) + 0.0
    return f"{value:{'+' if sign else ''}.2f} points".replace("-", "\N{MINUS SIGN}").replace("+0.00", "0.00")


def factor(before: float | None, after: float | None) -> str:
    """`0.26 ×`: after over before; empty where one of them is missing or nothing."""
    return f"{after / before:.3g} ×" if before and after is not None else ""


def compact(value: Any, limit: int = 8) -> str:
    """A parameter or a change of any shape, in one line; long lists and strings are cut, and say so."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}" if abs(value) >= 10_000 else f"{value:g}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        if list(value) == ["before", "after"]:
            return f"{compact(value['before'], limit)} → {compact(value['after'], limit)}"
        limit = _nested(value.values(), limit)
        parts = [f"{key}: {compact(item, limit)}" for key, item in list(value.items())[:limit]]
        return _cut(parts, len(value), limit)
    if isinstance(value, (list, tuple)):
        limit = _nested(value, limit)
        return _cut([compact(item, limit) for item in value[:limit]], len(value), limit)
    text = str(value)
    return text if len(text) <= 400 else f"{text[:400]}…"


def _nested(values: Iterable[Any], limit: int) -> int:
    """Fewer where each is itself many."""
    return 3 if any(isinstance(value, (Mapping, list, tuple)) for value in values) else limit


def _cut(parts: list[str], count: int, limit: int) -> str:
    return (", ".join(parts) or "none") + (f" … and {count - limit} more" if count > limit else "")


def before_after_rows(document: Json) -> list[Row]:
    """Accuracy, size, parameters, MACs and latency, of both models."""
    before, after = document["before"], document["after"]
    rows = _metric_rows(before["metrics"], after["metrics"])
    for name, key, text in (
        ("size", "bytes", byte_size),
        ("parameters", "parameters", amount),
        ("MACs", "macs", amount),
    ):
        was, now = before[key], after[key]
        rows.append(Row(name, _known(text, was), _known(text, now), factor(was, now)))
    was, now = before["latency"], after["latency"]
    if was is None and now is None:
        return [*rows, Row("latency", NOT_MEASURED, NOT_MEASURED)]
    for name, key in (("latency p50", "p50_ms"), ("latency p90", "p90_ms")):
        first, second = (side and side[key] for side in (was, now))
        change = factor(first, second) if comparable(was, now) else ""
        rows.append(Row(name, milliseconds(first), milliseconds(second), change))
    runs = [f"{side['samples']} runs" if side else NOT_MEASURED for side in (was, now)]
    return [*rows, Row("latency from", runs[0], runs[1])]


def comparable(before: Json | None, after: Json | None) -> bool:
    """Whether two latencies were measured, and alike: a ratio of others would say nothing."""
    return before is not None and after is not None and before["conditions"] == after["conditions"]


def _known(text: Callable[[Any], str], value: Any) -> str:
    return NOT_MEASURED if value is None else text(value)


def _metric_rows(before: Json | None, after: Json | None) -> list[Row]:
    was, now = before or {}, after or {}
    rows = []
    for name, key in (("top-1 accuracy", "top1"), ("top-5 accuracy", "top5")):
        first, second = was.get(key), now.get(key)
        if first is None and second is None and key != "top1":
            continue
        change = points(second["share"] - first["share"]) if first and second else ""
        rows.append(Row(name, _accuracy(first), _accuracy(second), change))
    first, second = was.get("f1_macro"), now.get("f1_macro")
    if first is not None or second is not None:
        rows.append(Row("F1, mean of classes", figure(first), figure(second), _difference(first, second)))
    first, second = ((side.get("calibration_error") or {}).get("error") for side in (was, now))
    if first is not None or second is not None:
        rows.append(Row("calibration error", figure(first), figure(second), _difference(first, second)))
    for name in dict.fromkeys([*was.get("user", {}), *now.get("user", {})]):
        first, second = (side.get("user", {}).get(name) for side in (was, now))
        rows.append(Row(name, figure(first), figure(second), _difference(first, second)))
    return rows


def figure(value: float | None) -> str:
    """`0.8794`: four significant digits of a figure without a unit."""
    return NOT_MEASURED if value is None else f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def _difference(first: float | None, second: float | None) -> str:
    if first is None or second is None:
        return ""
    return "0" if first == second else f"{second - first:+.3g}".replace("-", "\N{MINUS SIGN}")


def _accuracy(value: Json | None) -> str:
    if value is None:
        return NOT_MEASURED
    return f"{per_cent(value['share'])} ({interval(value)})"


def interval(value: Json) -> str:
    """`91.17 to 92.25 %` of an accuracy."""
    low, high = value["interval_95"]
    return f"{100 * low:.2f} to {100 * high:.2f} %"


def verdict(document: Json) -> Verdict:
    """The headline, and what the paired test and the intervals do and do not say."""
    before, after = ((document[side]["metrics"] or {}).get("top1") for side in ("before", "after"))
    comparison, gate = document["comparison"], document["gate"]
    if before and after:
        headline = f"Top-1 accuracy {per_cent(before['share'])} → {per_cent(after['share'])}"
    elif comparison and comparison["agreement"]:
        headline = f"Same answer as before on {per_cent(comparison['agreement']['share'])} of the samples"
    elif figures := _user_headline(document):
        headline = figures
    elif comparison and comparison["cosine"] is not None:
        headline = f"Cosine of the outputs to those before: {comparison['cosine']:.5f}"
    else:
        headline = "Accuracy was not measured"
    accuracy = ""
    if before and after:
        accuracy = (
            f"Before {_accuracy(before)}, after {_accuracy(after)}, on {after['count']:,} samples;"
            " in brackets the 95 % intervals."
        )
    compared = (
        _compared(comparison) if comparison else ["The two models were not compared: there was no evaluation data."]
    )
    state = "open" if gate is None else "passed" if gate["passed"] else "failed"
    return Verdict(state, headline, accuracy, tuple(compared))


def _user_headline(document: Json) -> str:
    """`mean_iou 0.8811 → 0.8794`: the user's own metrics, those that the gate limits where it limits any."""
    before, after = ((document[side]["metrics"] or {}).get("user", {}) for side in ("before", "after"))
    names = {reference: reference.rpartition(":")[2] for reference in before if reference in after}
    gated = {check["metric"] for check in (document["gate"] or {}).get("checks", ())}
    shown = [each for each, name in names.items() if gated & {each, name}] or list(names)
    return ", ".join(f"{names[each]} {figure(before[each])} → {figure(after[each])}" for each in shown)


def _compared(comparison: Json) -> list[str]:
    sentences = []
    test, drop, limits = comparison["mcnemar"], comparison["drop"], comparison["drop_interval_95"]
    if test:
        sentences.append(f"McNemar's test: {mcnemar(test)}.")
    if drop is not None and limits is not None:
        caution = "This is no proof of equality: with" if test and test["p_value"] >= _SIGNIFICANT else "With"
        low, high = (f"{100 * x:+.2f}".replace("-", "\N{MINUS SIGN}") for x in limits)
        sentences.append(
            f"{caution} 95 % confidence the drop lies between {low} and {high} points (found: {points(drop)};"
            " above zero is a loss)."
        )
    agreement = comparison["agreement"]
    if agreement:
        sentences.append(
            f"Both models answer alike on {agreement['correct']:,} of {agreement['count']:,} samples:"
            f" {per_cent(agreement['share'])} ({interval(agreement)})."
        )
    if comparison["cosine"] is not None:
        sentences.append(f"Cosine between the outputs, the lowest: {comparison['cosine']:.5f}.")
    return sentences


def mcnemar(test: Json) -> str:
    """`no significant loss (p = 0.62): 31 samples right only before, 28 only after`."""
    lost, won, p_value = test["only_before"], test["only_after"], test["p_value"]
    if lost + won == 0:
        return "no sample is right in one model and wrong in the other, so there is nothing to test"
    what = "loss" if lost > won else "gain" if won > lost else "difference"
    if p_value >= _SIGNIFICANT:
        what = f"no significant {'loss' if lost >= won else 'difference'}"
    else:
        what = f"a significant {what}"
    p_text = "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}" if p_value < 0.995 else "p = 1"
    return f"{what} ({p_text}): {lost:,} samples are right only before, {won:,} only after"


def not_measured(document: Json) -> list[str]:
    """What the document has no figures for, by name."""
    after = document["after"]
    metrics = after["metrics"] or {}
    missing = {
        "accuracy": metrics.get("top1") is None,
        "comparison of both models": document["comparison"] is None,
        "MACs": after["macs"] is None,
        "latency": after["latency"] is None,
        "accuracy per class": metrics.get("per_class") is None,
        "sensitivity of the layers": not document["sensitivity"],
        "error of the layers": not document["layers"],
        "activation ranges": not document["histograms"],
        "plans of mixed precision": document["search"] is None,
    }
    names = [name for name, is_missing in missing.items() if is_missing]
    robustness = document["robustness"]
    if robustness is None:
        names.append("robustness")
    elif not robustness["points"]:
        reasons = dict.fromkeys(entry["reason"] for entry in robustness.get("not_measured", ()))
        names.append(f"robustness ({'; '.join(reasons)})" if reasons else "robustness")
    return names

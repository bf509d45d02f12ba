"""The gate of an optimisation in words: each condition, what was found, and whether it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .optimize_words import figure, points
from .page import cell
from .text import NOT_MEASURED, capital, per_cent

__all__ = ["badge", "check_line", "check_name", "gate_rows", "refusal"]

Json = Mapping[str, Any]

_NAMED = 3
_FIGURES = {
    "drop": "drop of accuracy",
    "disagreement": "answers unlike the model's as given",
    "calibration_error": "calibration error",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "sensitivity_drop": "drop of sensitivity",
    "specificity_drop": "drop of specificity",
}


def badge(gate: Json) -> str:
    """`Gate passed: a drop of 1.00 points is allowed`, or how many conditions there are, and which do not hold."""
    checks, failed = gate["checks"], _failed(gate)
    if len(checks) == 1 and checks[0]["figure"] in ("drop", "disagreement"):
        return f"Gate {'not ' if failed else ''}passed: a drop of {points(checks[0]['limit'], sign=False)} is allowed"
    if not failed:
        return "Gate passed" if len(checks) == 1 else f"Gate passed: all {len(checks)} conditions hold"
    return f"Gate not passed: {'; '.join(check_name(check) for check in failed)}"


def refusal(gate: Json) -> str:
    """What does not hold, in one line: the figures, and what was wanted."""
    failed = _failed(gate)
    more = f"; and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
    return "; ".join(_sentence(check) for check in failed[:_NAMED]) + more


def check_name(check: Json) -> str:
    """`sensitivity of 'malignant'`, `calibration error`, `mean_iou`, `drop of mean_iou`."""
    if check["metric"] is not None:
        kind = check["figure"].removeprefix("metric").removeprefix("_")
        return f"{kind} of {check['metric']}" if kind else str(check["metric"])
    name = _FIGURES[check["figure"]]
    return name if check["class"] is None else f"{name} of '{check['class']}'"


def check_line(check: Json) -> str:
    """`sensitivity of 'malignant': 91.07 % (51 of 56, 80.74 to 96.13 %), at least 95.00 %: NOT PASSED`."""
    verdict = "passed" if check["passed"] else "NOT PASSED"
    return f"{check_name(check)}: {_value(check)}{_detail(check)}, {_limit(check)}: {verdict}"


def gate_rows(gate: Json) -> list[tuple[Any, ...]]:
    """Condition, what was found, in what samples, the limit, the verdict: the page's table."""
    return [
        (
            check_name(check) if check["figure"] == "metric" else capital(check_name(check)),
            cell(_value(check), check["value"]),
            _inside(check) or check["reason"],
            _limit(check),
            cell("passed" if check["passed"] else "not passed", state="passed" if check["passed"] else "failed"),
        )
        for check in gate["checks"]
    ]


def _failed(gate: Json) -> list[Json]:
    return [check for check in gate["checks"] if not check["passed"]]


def _sentence(check: Json) -> str:
    if check["value"] is None:
        return f"{check_name(check)} was not measured: {check['reason']}"
    limit, value = check["limit"], check["value"]
    if check["figure"] == "drop":
        return f"{points(value, sign=False)} lost, {100 * limit:.2f} allowed"
    if check["figure"] == "disagreement":
        return f"{per_cent(1 - value)} agreement with the model as given, {per_cent(1 - limit)} wanted"
    if check["class"] is not None and check["figure"].endswith("_drop"):
        what = f"{check['figure'].removesuffix('_drop')} of '{check['class']}'"
        return f"{points(value, sign=False)} of the {what} lost{_detail(check)}, {100 * limit:.2f} allowed"
    return f"{check_name(check)} is {_value(check)}{_detail(check)}, {_limit(check)} wanted"


def _value(check: Json) -> str:
    value = check["value"]
    if value is None:
        return NOT_MEASURED
    if check["metric"] is not None:
        return figure(value)
    if check["figure"] in ("sensitivity", "specificity", "disagreement"):
        return per_cent(value)
    return f"{value:.4f}" if check["figure"] == "calibration_error" else points(value, sign=False)


def _limit(check: Json) -> str:
    limit, bound = check["limit"], "at least" if check["bound"] == "min" else "at most"
    if check["metric"] is not None or check["figure"] == "calibration_error":
        return f"{bound} {limit:g}"
    return f"{bound} {points(limit, sign=False) if check['figure'].endswith('drop') else per_cent(limit)}"


def _detail(check: Json) -> str:
    inside = _inside(check) or check["reason"]
    return f" ({inside})" if inside else ""


def _inside(check: Json) -> str:
    """Counts and the 95 % interval of the figure, where it has them; of a metric, that of the model as given."""
    if check["metric"] is not None:
        return "" if check["given"] is None else f"{figure(check['given'])} as given"
    parts = []
    if check["correct"] is not None:
        parts.append(f"{check['correct']:,} of {check['count']:,}")
    elif check["only_before"] is not None:
        parts.append(
            f"of {check['count']:,} samples {check['only_before']:,} right only before,"
            f" {check['only_after']:,} only after"
        )
    if check["interval_95"] is not None:
        low, high = (f"{100 * value:.2f}".replace("-", "\N{MINUS SIGN}") for value in check["interval_95"])
        parts.append(f"95 % interval {low} to {high} {'points' if check['figure'].endswith('drop') else '%'}")
    return ", ".join(parts)

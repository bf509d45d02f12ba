"""What a device serves, on the terminal: rows of `kedge status`, whether signatures bind, how last deploys ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .history_text import outcome_words
from .text import printable

__all__ = ["STATUS_COLUMNS", "outcome_lines", "signature_rows", "status_rows"]

STATUS_COLUMNS = ("model", "state", "version", "precision", "release", "signed", "rolls back to")

# How a deploy ends when nothing was amiss.
_QUIET = ("committed", "rolled-back")


def status_rows(models: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Rows of the table; an agent of before a figure leaves it out."""
    return [
        [
            str(row["model"]),
            _state(row),
            str(row["version"] or "–"),
            row["precision"] or "–",
            (row["release"] or row["current"] or "–")[:12],
            _signed(row.get("signed")),
            (row["previous"] or "–")[:12],
        ]
        for row in models
    ]


def _signed(value: Any) -> str:
    return "–" if value is None else "yes" if value else "no"


def _state(row: Mapping[str, Any]) -> str:
    probation = row.get("probation")
    if not isinstance(probation, Mapping):
        return str(row["state"])
    return f"on probation, {probation.get('elapsed_s', 0):.0f} of {probation.get('seconds')} s"


def outcome_lines(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each model that has a problem, or whose last deploy did not end well."""
    lines = []
    for row in models:
        if row["problem"]:
            lines.append(printable(f"{row['model']}: {row['problem']}"))
        last = row.get("last")
        if isinstance(last, Mapping) and last.get("step") not in _QUIET and not row.get("probation"):
            release = str(last.get("release"))[:12]
            words = outcome_words(last.get("step"), last.get("reason"))
            lines.append(printable(f"{row['model']}: release {release} was {words}"))
    return lines


def signature_rows(rules: Any) -> list[tuple[str, str]]:
    """What the device asks for, whether it binds the user that the agent runs as, and what is wrong with it."""
    if not isinstance(rules, Mapping):
        return []
    if not rules.get("required"):
        return [("signatures", "none are asked for: whoever may connect may deploy")]
    threshold = rules.get("threshold")
    keys = "1 key" if threshold == 1 else f"{threshold} distinct keys"
    rows = [("signatures", f"required: {keys} of {rules.get('file')}")]
    if rules.get("problem"):
        rows.append(("", str(rules["problem"])))
    if rules.get("binding"):
        rows.append(("", f"they do not bind: {rules['binding']}"))
    return rows

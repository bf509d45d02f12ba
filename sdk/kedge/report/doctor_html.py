"""What the doctor found, as one HTML page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from .doctor_text import MARKS, doctor_headline
from .page import cell, render_page
from .text import ended, sentence

__all__ = ["doctor_html", "doctor_view"]

_COMMENT = re.compile(r"(.+)  # ([^'\"]+)")
_STATES = {"ok": "ok", "fault": "fault", "warning": "warning", "unknown": "unavailable"}
_BADGES = {"fault": "Something is at fault", "warning": "Nothing is at fault", "ok": "All is well"}


def doctor_html(document: Mapping[str, Any]) -> str:
    """The page of one diagnosis (docs/doctor.md), complete in itself; the same document gives the same text.

    Raises:
        IncompatibleError: jinja2 is not installed.
    """
    thresholds = [
        (name.replace("_", " "), cell(f"{each['value']:,}", each["value"]), each["unit"], sentence(each["reason"]))
        for name, each in document["thresholds"].items()
    ]
    return render_page("doctor.html.j2", {"d": document, "thresholds": thresholds, **doctor_view(document)})


def doctor_view(document: Mapping[str, Any]) -> dict[str, Any]:
    """What the macros of a page show of a diagnosis: `state`, `badge`, `headline`, `sentences`, `amiss`, `columns`,
    `rows`, `at`."""
    findings, first = document["findings"], document["first_cause"]
    warned = any(each["result"] == "warning" for each in findings) or document["problems"]
    state = "fault" if first is not None else "warning" if warned else "ok"
    sentences = [] if first is None else [ended(f"Cause: {first['cause']}"), _to_do(first["cure"])]
    if first is not None and document["sentence"] != first["brief"]:
        sentences.append(sentence(f"In all: {document['sentence']}"))
    order = {"fault": 0, "warning": 1}
    amiss = sorted(
        (each for each in findings if each["result"] in order),
        key=lambda each: (each != first, order[each["result"]]),
    )
    return {
        "state": _STATES[state],
        "badge": _BADGES[state],
        "headline": doctor_headline(document),
        "sentences": sentences,
        "amiss": [_finding(each) for each in amiss],
        "columns": ("Check", "Result", "What was seen"),
        "rows": [
            (each["title"], cell(MARKS[each["result"]][1], state=_STATES[each["result"]]), each["evidence"])
            for each in findings
        ],
        "at": _time(document["at"]),
    }


def _to_do(cure: str) -> str:
    """A cure in running text: what a shell takes for a comment stands in brackets. A quoted # is none."""
    told = _COMMENT.fullmatch(cure)
    return f"To do: {cure}" if told is None else f"To do: {told[1]} ({told[2]})"


def _finding(finding: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "state": _STATES[finding["result"]],
        "word": MARKS[finding["result"]][1],
        "title": finding["title"],
        "text": ended(finding["evidence"]),
        "pairs": [("Cause", ended(finding["cause"]))] if finding["cause"] else [],
        "commands": [finding["cure"]] if finding["cure"] else [],
    }


def _time(at_s: Any) -> str:
    try:
        return datetime.fromtimestamp(at_s, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC, by the device's clock")
    except (TypeError, ValueError, OverflowError, OSError):
        return "The device told no time"

"""The report of preflight as one HTML page, and as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .build_html import share_bars
from .page import render_page
from .text import byte_size

__all__ = ["headline", "memory_sentence", "preflight_html"]

_SHOWN = 200
_TITLES = {"error": "What will not run", "warning": "What may not run, or not well", "info": "Worth knowing"}


def preflight_html(document: Mapping[str, Any]) -> str:
    """The page of one preflight (docs/preflight-report.md), complete in itself.

    Raises:
        IncompatibleError: jinja2 is not installed.
    """
    groups = []
    for severity, title in _TITLES.items():
        rows = [each for each in document["findings"] if each["severity"] == severity]
        if rows:
            groups.append(
                {
                    "severity": severity,
                    "title": title,
                    "rows": rows[:_SHOWN],
                    "left_out": max(0, document["counts"][severity] - _SHOWN),
                }
            )
    refused = {each["op"] for each in document["findings"] if each["severity"] == "error" and each["op"]}
    bars = share_bars(
        [
            (name, count, str(count), "orange" if name.rsplit(".", 1)[-1] in refused else "blue")
            for name, count in list(document["operators"].items())[:40]
        ]
    )
    view = {
        "d": document,
        "groups": groups,
        "bars": bars,
        "headline": headline(document),
        "memory": memory_sentence(document),
    }
    return render_page("preflight.html.j2", view)


def headline(document: Mapping[str, Any]) -> str:
    """One sentence: how many findings of which kind."""
    counts = document["counts"]
    if not any(counts.values()):
        return "no findings"
    names = {"error": ("error", "errors"), "warning": ("warning", "warnings"), "info": ("note", "notes")}
    parts = [f"{counts[key]} {names[key][counts[key] != 1]}" for key in names if counts[key]]
    return ", ".join(parts)


def memory_sentence(document: Mapping[str, Any]) -> str:
    """What the memory estimate says."""
    memory = document["memory"]
    if memory is None:
        return "not estimated"
    usable = memory["usable_bytes"]
    there = "the target's memory is not stated" if usable is None else f"{byte_size(usable)} are there for models"
    return f"about {byte_size(memory['needed_bytes'])} needed (estimate); {there}"

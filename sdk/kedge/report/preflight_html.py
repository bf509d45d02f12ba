"""The report of preflight as one HTML page, and as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .build_html import share_bars
from .memory import memory_sentence
from .page import render_page
from .text import sentence

__all__ = ["grouped", "headline", "preflight_html"]

_STATES = {"error": "fault", "warning": "warning", "info": "info"}
_TITLES = {"error": "What will not run", "warning": "What may not run, or not well", "info": "Worth knowing"}


def preflight_html(document: Mapping[str, Any]) -> str:
    """The page of one preflight (docs/preflight-report.md), complete in itself.

    Raises:
        IncompatibleError: jinja2 is not installed.
    """
    groups = []
    for severity, title in _TITLES.items():
        found = [each for each in document["findings"] if each["severity"] == severity]
        if found:
            groups.append(
                {
                    "severity": severity,
                    "title": title,
                    "rows": [_shown(each) for each in grouped(found)],
                    "left_out": document["counts"][severity] - len(found),
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
        "memory": sentence(memory_sentence(document["memory"])),
    }
    return render_page("preflight.html.j2", view)


def _shown(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group of findings as a page's finding."""
    return {
        "state": _STATES[group["severity"]],
        "word": group["severity"] if group["severity"] != "info" else "note",
        "title": f"{group['op']}: {group['message']}" if group["op"] else group["message"],
        "text": f"To do: {group['suggestion']}" if group["suggestion"] else "",
        "nodes": group["nodes"],
        "judge": group["judge"],
    }


def grouped(findings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Findings that say the same of several nodes as one, the nodes (node, place) listed in its `nodes`."""
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for each in findings:
        key = tuple(each[name] for name in ("severity", "rule", "op", "message", "suggestion", "judge"))
        group = groups.setdefault(key, {**each, "nodes": []})
        if each["node"]:
            group["nodes"].append({"node": each["node"], "place": each["place"]})
    return list(groups.values())


def headline(document: Mapping[str, Any]) -> str:
    """One sentence: how many findings of which kind."""
    counts = document["counts"]
    if not any(counts.values()):
        return "no findings"
    names = {"error": ("error", "errors"), "warning": ("warning", "warnings"), "info": ("note", "notes")}
    parts = [f"{counts[key]} {names[key][counts[key] != 1]}" for key in names if counts[key]]
    return ", ".join(parts)

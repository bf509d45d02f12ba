"""A snapshot that was opened, as one page: judged by the doctor, its recording drawn."""

from __future__ import annotations

import contextlib
from typing import Any

from kedge_agent.formats.recording import read_ends

from ..errors import BadInputError, IncompatibleError
from ..report.history_html import recording_figures
from ..report.snapshot_html import snapshot_html
from .doctor import diagnose
from .opened import Opened
from .recording import recording_of

__all__ = ["snapshot_page"]

_LOGS = "logs/"
_MOST_LOG_BYTES = 256 << 10
_LEAST_SPAN_S = 10.0


def snapshot_page(opened: Opened) -> str:
    """The page, complete in itself; the same snapshot gives the same text.

    Raises:
        IncompatibleError: jinja2 is not installed. Without matplotlib the page has no drawings.
    """
    facts = opened.facts()
    document = {
        "name": opened.device,
        "file": opened.path.name,
        "problems": opened.problems,
        "manifest": opened.manifest,
        "facts": facts,
        "members": {name: len(data) for name, data in opened.members.items()},
        "logs": {name: _lines(data) for name, data in opened.members.items() if name.startswith(_LOGS)},
    }
    return snapshot_html(document, _judged(opened), _figures(opened, facts))


def _judged(opened: Opened) -> dict[str, Any] | None:
    try:
        return diagnose(opened.evidence()).to_json()
    except BadInputError:
        return None


def _figures(opened: Opened, facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Drawings of the last hours that were recorded; none where there is nothing to draw, or nothing to draw with."""
    # Minutes reach further back, and are what is left where the seconds are lost.
    for ring, most_s in (("seconds", 2 * 3600), ("minutes", 48 * 3600)):
        data = opened.recording(ring)
        ends = read_ends(data)
        if ends is None:
            continue
        span_s = min(max(ends[1].at_s - ends[0].at_s + ends[0].seconds, _LEAST_SPAN_S), most_s)
        recording = recording_of(data, span_s)
        if recording is not None and recording.steps:
            with contextlib.suppress(IncompatibleError):
                return recording_figures({"entries": _entries(facts), "recording": recording.to_json()})
    return []


def _entries(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The journal's entries that have what an entry has; whoever made the file may have put anything there."""
    data = (facts["collectors"].get("journal") or {}).get("data")
    entries = data.get("entries") if isinstance(data, dict) else None
    wanted = {"model": str, "release": str, "step": str, "at_s": int}
    return [
        entry
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in wanted.items())
    ]


def _lines(data: bytes) -> list[str]:
    return data[-_MOST_LOG_BYTES:].decode("utf-8", "replace").splitlines()

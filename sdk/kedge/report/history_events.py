"""What happened on a device meanwhile: deploys, starts of its agent, gaps; and what its recording sums up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from .history_panels import Panel
from .text import byte_size

__all__ = ["Event", "duration", "events_of", "marks_of", "models_of", "moment", "notes_of"]

_LIVE = "live"
_DEPLOYS = {"switched": _LIVE, "refused": "refused", "reverted": "taken back", "rolled-back": "rolled back"}
_STARTS = {"takeover": "took over from the agent before it", "after-crash": "started after a crash"}


@dataclass(frozen=True)
class Event:
    """at_s: wall seconds, by the device's clock. brief: as a mark in a drawing; empty: none is made. until_s: of what
    lasted. fault: it is amiss. model: whose; None: the agent's."""

    at_s: float
    text: str
    brief: str = ""
    until_s: float | None = None
    fault: bool = False
    model: str | None = None


def events_of(document: Mapping[str, Any]) -> list[Event]:
    """What happened in the time of the recording, in order; nothing where there is none.

    Args:
        document: of `kedge history --json` (docs/history.md).
    """
    recording = document["recording"]
    if recording is None:
        return []
    events = _deploys(document["entries"])
    for each in recording["starts"]:
        crashed = each["how"] == "after-crash"
        text = f"agent {each['version']} {_STARTS.get(each['how'], 'started')}"
        events.append(Event(each["at_s"], text, "agent crashed" if crashed else "agent", fault=crashed))
    for each in recording["gaps"]:
        text = f"nothing was recorded for {duration(each['to_s'] - each['from_s'])}"
        events.append(Event(each["from_s"], text, until_s=each["to_s"]))
    for each in recording["clock_jumps"]:
        way = "forward" if each["by_s"] > 0 else "back"
        events.append(Event(each["at_s"], f"the device's clock was set {way} by {duration(abs(each['by_s']))}"))
    return sorted(
        (each for each in events if recording["from_s"] <= each.at_s <= recording["to_s"]), key=lambda each: each.at_s
    )


def marks_of(panel: Panel, events: Sequence[Event]) -> list[tuple[Event, str]]:
    """What is marked in a panel, and by which words: where it is a model's, nothing of other models."""
    wanted = (
        each for each in events if each.brief and (None in (panel.model, each.model) or panel.model == each.model)
    )
    return [(each, each.brief if panel.model or not each.model else f"{each.model} {each.brief}") for each in wanted]


def notes_of(recording: Mapping[str, Any]) -> list[str]:
    """What there is to say of a recording, a line each."""
    summary = recording["summary"]
    span_s = recording["to_s"] - recording["from_s"]
    recorded = f"recorded: {duration(summary['seconds'])} of {duration(span_s)}"
    first_s = summary["from_s"]
    if first_s is not None and first_s - recording["from_s"] > 2 * recording["step_s"]:
        recorded += f", the first of {moment(first_s)}"
    if recording["gaps"]:
        longest = max(each["to_s"] - each["from_s"] for each in recording["gaps"])
        count = len(recording["gaps"])
        recorded += f"; {count} gap{'' if count == 1 else 's'}, the longest of {duration(longest)}"
    notes = [recorded]
    share, counts = summary["throttled_share"], summary["throttles"]
    if share is None:
        notes.append("throttling: unavailable, the device has no counters of it")
    else:
        rose = "; ".join(f"{name}: {count:,} times" for name, count in counts.items() if count)
        notes.append(f"throttled: {share * 100:.3g} % of the time{f' ({rose})' if rose else ''}")
    cost, size = (summary["channels"].get(f"recorder.{name}") for name in ("cpu_share", "bytes"))
    if cost is not None and size is not None:
        notes.append(
            f"the recorder itself: {cost['mean'] * 100:.2g} % of one core, {byte_size(int(size['last']))} on the disk"
        )
    if recording["lost"]:
        notes.append(f"damaged: {recording['lost']} places of the recording cannot be read")
    return notes


def models_of(recording: Mapping[str, Any]) -> list[str]:
    """Models that were served in that time, the busiest first."""
    models = recording["summary"]["models"]
    return sorted(models, key=lambda name: (-_asked(models[name]), name))


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `2.5 h`, `3 d`."""
    if seconds < 99.5:
        return f"{seconds:.3g} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h" if seconds < 48 * 3600 else f"{seconds / 86_400:.3g} d"


def moment(at_s: Any) -> str:
    """`2026-11-26 05:10:00`, in UTC; a dash where it is none."""
    try:
        return datetime.fromtimestamp(at_s, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    except (TypeError, ValueError, OverflowError, OSError):
        return "–"


def _asked(figures: Mapping[str, Any]) -> int:
    return int(figures["requests"] + sum(figures["failures"].values()))


def _deploys(entries: list[dict[str, Any]]) -> list[Event]:
    events = []
    versions: dict[str, Any] = {}
    for entry in entries:
        release, at_s = entry["release"], entry.get("at_s")
        versions[release] = entry.get("version", versions.get(release))
        words = _DEPLOYS.get(entry["step"])
        if words is None or isinstance(at_s, bool) or not isinstance(at_s, (int, float)):
            continue
        version = versions[release]
        which = f"release {release[:12]}" if version is None else f"version {version}"
        reason = entry.get("reason")
        text = f"{entry['model']}: {which} {words}{f': {reason}' if isinstance(reason, str) and reason else ''}"
        brief = f"{'' if version is None else f'v{version} '}{words}"
        events.append(Event(float(at_s), text, brief, fault=words != _LIVE, model=entry["model"]))
    return events

"""A rollout in words: what its states are called and how each is marked, on the terminal and on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .history_events import duration
from .svg import BLUE, GREEN, GREY, ORANGE, PURPLE, RED
from .text import one_line

__all__ = [
    "FAILED",
    "GATE_MARKS",
    "SERVES",
    "STATES",
    "State",
    "count_words",
    "counts_of",
    "gate_marks",
    "headline",
    "in_order",
    "plural",
    "wave_words",
]


@dataclass(frozen=True)
class State:
    """How a device's state is shown: never by its colour alone.

    sign: one character. style: of the terminal. mark: of `report.page.STATES`. colour: in a drawing. group: what all
    states of this colour have in common, for its legend.
    """

    word: str
    sign: str
    style: str
    mark: str
    colour: str
    group: str


#: In the order in which people read: what went wrong, what is at work, what is well, what has not begun.
STATES: Mapping[str, State] = {
    "rollback_failed": State("rollback failed", "✗", "bold red", "failed", RED, "failed"),
    "failed": State("failed", "✗", "bold red", "failed", RED, "failed"),
    "refused": State("refused", "✗", "bold red", "failed", ORANGE, "refused or taken back"),
    "reverted": State("reverted", "✗", "bold red", "failed", ORANGE, "refused or taken back"),
    "unknown": State("unknown", "?", "bold red", "failed", PURPLE, "no answer in time"),
    "unreachable": State("unreachable", "✗", "bold red", "failed", PURPLE, "no answer in time"),
    "late": State("late", "✗", "bold red", "failed", PURPLE, "no answer in time"),
    "rolled_back": State("rolled back", "↩", "yellow", "warning", GREY, "rolled back or not begun"),
    "rolling_back": State("rolling back", "●", "cyan", "info", BLUE, "at work"),
    "building": State("building", "●", "cyan", "info", BLUE, "at work"),
    "running": State("running", "●", "cyan", "info", BLUE, "at work"),
    "waits_for_engine": State("waits for engine", "…", "cyan", "info", BLUE, "at work"),
    "updated": State("updated", "✓", "green", "ok", GREEN, "updated or current"),
    "current": State("current", "✓", "green", "ok", GREEN, "updated or current"),
    "waiting": State("waiting", "·", "bright_black", "unavailable", GREY, "rolled back or not begun"),
    "not_begun": State("not begun", "–", "bright_black", "unavailable", GREY, "rolled back or not begun"),
}

#: The device serves the release.
SERVES = frozenset({"updated", "current"})
#: Counted against --max-failures.
FAILED = frozenset({"refused", "unreachable", "late", "unknown", "failed", "reverted"})

#: What a gate of a wave came to; without a measurement or a limit it is not judged, and that is no pass.
GATE_MARKS: Mapping[bool | None, str] = {True: "✓", False: "✗", None: "–"}


def plural(count: int, what: str) -> str:
    """`1 device`, `1,000 devices`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def counts_of(devices: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many devices are in each state, in the order of STATES; states of none are left out."""
    found: dict[str, int] = {}
    for device in devices:
        found[device["state"]] = found.get(device["state"], 0) + 1
    return {state: found[state] for state in STATES if state in found}


def count_words(counts: Mapping[str, int]) -> str:
    """`14 updated, 1 refused, 1 unreachable`: the well ones first, as in a sentence."""
    well = [state for state in STATES if state in SERVES and counts.get(state)]
    rest = [state for state in STATES if state not in SERVES and counts.get(state)]
    return ", ".join(f"{counts[state]:,} {STATES[state].word}" for state in (*well, *rest)) or "none"


def headline(document: Mapping[str, Any]) -> str:
    """What came of a rollout, in one sentence."""
    counts, devices = document["counts"], len(document["devices"])
    serves = sum(counts.get(state, 0) for state in SERVES)
    took = f" in {duration(document['seconds'])}" if document["seconds"] is not None else ""
    if document["state"] == "done" and serves == devices:
        return f"{plural(devices, 'device')} {'serves' if devices == 1 else 'serve'} the release: done{took}"
    rest = {state: count for state, count in counts.items() if state not in SERVES}
    what = f"{plural(devices, 'device')} {'serves' if devices == 1 else 'serve'} the release"
    return f"{document['state']}{took}: {serves:,} of {what}" + (f"; {count_words(rest)}" if rest else "")


def wave_words(document: Mapping[str, Any], wave: Mapping[str, Any]) -> str:
    """`wave 2 of 4: 47 updated, 2 unreachable; passed in 42 s`: one line for a pipe."""
    counts = counts_of([each for each in document["devices"] if each["wave"] == wave["wave"]])
    took = ""
    if wave["begun_s"] is not None and wave["ended_s"] is not None:
        took = f" in {duration(wave['ended_s'] - wave['begun_s'])}"
    refused = [one_line(gate["why"]) for gate in wave["gates"] if gate["passed"] is False]
    why = f": {'; '.join(refused)}" if refused else ""
    waves = len(document["waves"])
    return f"wave {wave['wave']} of {waves}: {count_words(counts)}; {wave['state']}{took}{why}"


def gate_marks(wave: Mapping[str, Any]) -> str:
    """`✓ failures  – p99`, of each gate of a wave."""
    return "  ".join(f"{GATE_MARKS[gate['passed']]} {gate['gate']}" for gate in wave["gates"])


def in_order(devices: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What went wrong first; within a state as they stand."""
    order = {state: place for place, state in enumerate(STATES)}
    return sorted(devices, key=lambda device: order[device["state"]])

"""Drawings of a rollout: its devices over time, and where their time went."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .history_events import duration
from .rollout_words import FAILED, STATES
from .svg import BLUE, GREEN, GREY, GRID, INK, MUTED, NARROW_PX, ORANGE, PURPLE, WIDE_PX, draw, elide, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PARTS", "devices_over_time", "part_s", "time_by_wave"]

Json = Mapping[str, Any]

#: Part of a device's time → (its steps as the task names them, colour).
PARTS: dict[str, tuple[tuple[str, ...], str]] = {
    "push": (("push", "verify"), BLUE),
    "gates": (("stage", "gate"), ORANGE),
    "switch": (("switch", "activate"), GREY),
    "probation": (("probation",), GREEN),
}
_REST = "else"
_REST_COLOUR = PURPLE

_AMISS = frozenset(STATES[state].colour for state in FAILED)
_UNITS = ((1, "seconds"), (60, "minutes"), (3600, "hours"), (86_400, "days"))
_MOST_TICKS = 150

_NAMED = 40
_ROW_PX, _MOST_ROWS_PX = 17, 640
# Narrower than this nobody sees a bar.
_LEAST_SHARE = 1 / 400
# Names of waves that stand nearer would lie upon one another.
_NAME_SHARE = 1 / 45


def part_s(device: Json, part: str) -> float | None:
    """Seconds of a part of PARTS, or of what is none of them; None: the device never came to it."""
    steps = device["steps"]
    if part in PARTS:
        names: Sequence[str] = PARTS[part][0]
    else:
        known = {name for each, _ in PARTS.values() for name in each}
        names = [name for name in steps if name not in known]
    found = [steps[name] for name in names if name in steps]
    return sum(found) if found else None


def devices_over_time(document: Json) -> str:
    """A bar a device from when it began to its end, coloured by its state; waves under one another, and their pauses.

    Nothing is drawn of a device that has not begun. Names stand beside the bars of few devices only.
    """
    drawn = [each for each in document["devices"] if each["begun_s"] is not None]
    if not drawn:
        return ""
    drawn.sort(key=lambda each: (each["wave"], each["begun_s"], each["device"]))
    began = document["created_s"]
    waves = [wave for wave in document["waves"] if wave["begun_s"] is not None]
    ends = [each["ended_s"] for each in [*drawn, *waves] if each["ended_s"] is not None]
    last = max([*ends, *(each["begun_s"] for each in drawn), document["ended_s"] or 0.0])
    span = max(last - began, 1e-3)
    unit_s, unit = next((each for each in _UNITS if span < _MOST_TICKS * each[0]), _UNITS[-1])
    groups = {STATES[each["state"]].group: STATES[each["state"]].colour for each in drawn}
    height = min(_ROW_PX * len(drawn), _MOST_ROWS_PX)
    # Of many each is a line, and a gap between two would only pale it.
    half = 0.4 if len(drawn) <= _NAMED else 0.5

    def paint(figure: Figure) -> None:
        from matplotlib.collections import PolyCollection

        axes = figure.add_subplot()
        _waves(axes, waves, drawn, lambda at_s: ((at_s or last) - began) / unit_s)
        for colour in dict.fromkeys(groups.values()):
            bars = []
            for place, each in enumerate(drawn):
                if STATES[each["state"]].colour == colour:
                    left = (each["begun_s"] - began) / unit_s
                    right = max(((each["ended_s"] or last) - began) / unit_s, left + span / unit_s * _LEAST_SHARE)
                    low, high = place - half, place + half
                    bars.append([(left, low), (right, low), (right, high), (left, high)])
            axes.add_collection(PolyCollection(bars, facecolors=colour, edgecolors="none"))
            if len(drawn) > _NAMED and colour in _AMISS:
                # A line among so many would not be seen.
                axes.scatter(
                    [bar[2][0] for bar in bars], [bar[2][1] - half for bar in bars], s=18, color=colour, zorder=3
                )
        axes.set_xlim(0, span / unit_s * 1.01)
        axes.set_ylim(len(drawn) - 0.5, -0.5)
        axes.set_xlabel(f"{unit} since the rollout began")
        axes.grid(axis="y", visible=False)
        if len(drawn) <= _NAMED:
            axes.set_yticks(range(len(drawn)), [elide(each["device"], 24) for each in drawn], color=INK)
            axes.tick_params(axis="y", length=0)
        else:
            axes.set_ylabel("devices, in the order in which they began")
        legend(figure, list(groups.items()))

    title = f"{len(drawn)} devices over {duration(span)}, each from when it began to its end"
    return draw("rollout-devices", title, (WIDE_PX, 70 + height), paint)


def _waves(axes: Axes, waves: Sequence[Json], drawn: Sequence[Json], place_of: Callable[[float | None], float]) -> None:
    """A line where a wave's devices begin; behind all a band from the end of a wave's last device to its own."""
    named = -math.inf
    for wave in waves:
        places = [place for place, each in enumerate(drawn) if each["wave"] == wave["wave"]]
        if not places:
            continue
        top = min(places) - 0.5
        if wave is not waves[0]:
            axes.axhline(top, color=MUTED, linewidth=0.8, linestyle=(0, (4, 2)))
        if top - named >= len(drawn) * _NAME_SHARE:
            named = top
            axes.annotate(
                f"wave {wave['wave']}",
                (1, top),
                xycoords=("axes fraction", "data"),
                xytext=(5, 0),
                textcoords="offset points",
                verticalalignment="top",
                fontsize=11,
                color=MUTED,
                annotation_clip=False,
            )
        rest = max(place_of(drawn[place]["ended_s"]) for place in places)
        if wave["ended_s"] is not None and place_of(wave["ended_s"]) > rest:
            axes.axvspan(rest, place_of(wave["ended_s"]), color=GRID, linewidth=0, zorder=0)


def time_by_wave(document: Json) -> str:
    """Where the time of a wave's devices went: medians of each part, one bar a wave."""
    rows = []
    for wave in document["waves"]:
        devices = [each for each in document["devices"] if each["wave"] == wave["wave"] and each["steps"]]
        if devices:
            found = {}
            for part in (*PARTS, _REST):
                known = [seconds for each in devices if (seconds := part_s(each, part)) is not None]
                found[part] = statistics.median(known) if known else 0.0
            rows.append((f"wave {wave['wave']} ({len(devices):,})", found))
    if not rows:
        return ""
    colours = {**{part: colour for part, (_, colour) in PARTS.items()}, _REST: _REST_COLOUR}

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for place, (_, found) in enumerate(rows):
            left = 0.0
            for part, seconds in found.items():
                axes.barh(place, seconds, left=left, height=0.6, color=colours[part])
                left += seconds
            axes.annotate(
                duration(left),
                (left, place),
                xytext=(5, 0),
                textcoords="offset points",
                verticalalignment="center",
                fontsize=11,
                color=INK,
            )
        axes.set_yticks(range(len(rows)), [name for name, _ in rows], color=INK)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, max(sum(found.values()) for _, found in rows) * 1.2 or 1.0)
        axes.xaxis.set_major_formatter(lambda value, _: duration(value) if value else "0")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        legend(figure, list(colours.items()))

    told = "; ".join(
        f"{name}: " + ", ".join(f"{part} {duration(s)}" for part, s in found.items() if s) for name, found in rows
    )
    return draw("rollout-parts", f"Median seconds of each part. {told}", (NARROW_PX, 70 + 36 * len(rows)), paint)

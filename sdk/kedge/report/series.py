"""Figures over time as drawings for a page: lines and bands with their gaps, and what happened meanwhile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from .svg import BLUE, INK, MUTED, ORANGE, draw, elide, signed
from .text import byte_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["SERIES_PX", "Mark", "Series", "series_svg"]

SERIES_PX = (960, 210)

# Left, bottom, width, height, as shares of the drawing: under a legend, and without one.
_AXES, _AXES_ALONE = (0.075, 0.225, 0.915, 0.63), (0.075, 0.225, 0.915, 0.74)
# A drawing has some 900 pixels of time; a pair of points in each shows every peak that a screen could.
_PLACES = 900
_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
_TICKS = 10
_LABEL_SHARE = 0.1
_DAY_S = 86_400


@dataclass(frozen=True)
class Series:
    """A line over time, and a band around or above it.

    times_s: wall seconds since 1970, ascending. values: as many; None or NaN where nothing is known, which stays a gap.
    colour: one of report.svg's. low, high: the band's edges, as many as times, or None for no band.
    """

    name: str
    times_s: Sequence[float]
    values: Sequence[float | None]
    colour: str = BLUE
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None


@dataclass(frozen=True)
class Mark:
    """Something that happened: at a moment, a dashed line with its text; until another, a shaded span in the legend."""

    at_s: float
    text: str
    until_s: float | None = None
    colour: str = ORANGE


def series_svg(
    name: str,
    title: str,
    series: Sequence[Series],
    marks: Sequence[Mark] = (),
    unit: str = "",
    *,
    span_s: tuple[float, float] | None = None,
    gap_s: float | None = None,
    from_zero: bool = True,
) -> str:
    """An `<svg>` element: figures over time, the axis in UTC.

    More points than a screen shows are reduced to the least and the greatest of each place on it, so that no peak is
    lost (as in Jugel and others, M4, VLDB 2014).

    Args:
        name: begins every id in the drawing; unique on the page, of letters, digits and hyphens.
        title: what the drawing shows, for those who cannot see it.
        unit: of the values; "bytes" are written with kB, MB, GB.
        span_s: the axis, from and to; None: as far as there are points.
        gap_s: points further apart than this are not joined; None: three times the usual distance.
        from_zero: the axis of values begins at 0 (or below).

    Raises:
        IncompatibleError: matplotlib is not installed.
    """
    first, last = span_s or _span(series)

    def paint(figure: Figure) -> None:
        # All drawings of a page have their axes in one place: what happened at one time stands in one line.
        figure.set_layout_engine("none")
        axes = figure.add_axes(_AXES)
        axes.set_xlim(first, last)
        for each in series:
            _line(axes, each, first, last, gap_s)
        if not any(len(each.times_s) for each in series):
            axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center", va="center", color=MUTED)
            axes.set_yticks([])
        elif from_zero:
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0] if axes.dataLim.y0 < 0 else 0.0))
        _marks(axes, marks, first, last)
        _time_axis(axes, first, last)
        axes.yaxis.set_major_formatter(_bytes if unit == "bytes" else signed)
        if unit != "bytes":
            axes.set_ylabel(elide(unit, 20))
            axes.yaxis.set_label_coords(-0.055, 0.5)
        handles, labels = axes.get_legend_handles_labels()
        if len(labels) > 1:
            figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(0, 1), borderaxespad=0.2, ncols=6)
        else:
            axes.set_position(_AXES_ALONE)

    return draw(name, title, SERIES_PX, paint)


def _span(series: Sequence[Series]) -> tuple[float, float]:
    known = [each.times_s for each in series if len(each.times_s)]
    if not known:
        return 0.0, 1.0
    first, last = min(times[0] for times in known), max(times[-1] for times in known)
    return first, max(last, first + 1.0)


def _line(axes: Axes, series: Series, first: float, last: float, gap_s: float | None) -> None:
    times = np.asarray(series.times_s, dtype=np.float64)
    columns = [_floats(values) for values in (series.values, series.low, series.high) if values is not None]
    inside = (times >= first) & (times <= last)
    times, columns = times[inside], [column[inside] for column in columns]
    if not len(times):
        return
    gap = gap_s or 3.0 * max(float(np.median(np.diff(times))) if len(times) > 1 else 1.0, (last - first) / _PLACES)
    label = elide(series.name, 40).lstrip("_") or "other"
    where, shown = _reduced(times, columns, first, last, gap)
    if series.low is not None and series.high is not None:
        axes.fill_between(where, shown[1], shown[2], color=series.colour, alpha=0.22, linewidth=0)
    axes.plot(where, shown[0], color=series.colour, linewidth=1.4, label=label)
    # A figure between two gaps has no neighbour to be joined to.
    known = np.isfinite(shown[0])
    alone = known & ~np.r_[False, known[:-1]] & ~np.r_[known[1:], False]
    if alone.any():
        axes.plot(where[alone], shown[0][alone], color=series.colour, linestyle="", marker="o", markersize=4)


def _floats(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.asarray([math.nan if value is None else value for value in values], dtype=np.float64)


def _reduced(
    times: NDArray[np.float64], columns: Sequence[NDArray[np.float64]], first: float, last: float, gap_s: float
) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    """At most two points a place, and a NaN in each gap: the line's least and greatest, the band's widest."""
    if len(times) > 2 * _PLACES:
        place = np.minimum((times - first) / (last - first) * _PLACES, _PLACES - 1).astype(int)
        starts = np.flatnonzero(np.r_[True, np.diff(place) > 0])
        chosen: list[int] = []
        for start, end in pairwise([*starts, len(times)]):
            part = columns[0][start:end]
            if np.isnan(part).all():
                chosen.append(start)
            else:
                chosen += sorted({start + int(np.nanargmin(part)), start + int(np.nanargmax(part))})
        keep = np.asarray(chosen)
        index = np.searchsorted(starts, keep, side="right") - 1
        bands = [
            reduce.reduceat(column, starts)[index]
            for reduce, column in zip((np.fmin, np.fmax), columns[1:], strict=False)
        ]
        times, columns = times[keep], [columns[0][keep], *bands]
    breaks = np.flatnonzero(np.diff(times) > gap_s) + 1
    where = np.insert(times, breaks, (times[breaks - 1] + times[breaks]) / 2)
    return where, [np.insert(column, breaks, math.nan) for column in columns]


def _marks(axes: Axes, marks: Sequence[Mark], first: float, last: float) -> None:
    told: set[str] = set()
    free_from = -math.inf
    for mark in sorted(marks, key=lambda mark: mark.at_s):
        until = mark.at_s if mark.until_s is None else mark.until_s
        if until < first or mark.at_s > last:
            continue
        text = elide(mark.text, 40).lstrip("_") or "other"
        if mark.until_s is not None:
            low, high = max(mark.at_s, first), min(until, last)
            # One second of a day would be too narrow to be seen.
            high = max(high, low + (last - first) / _PLACES)
            label = "" if text in told else text
            axes.axvspan(low, high, color=mark.colour, alpha=0.18, linewidth=0, label=label or None)
            told.add(text)
            continue
        # Under the lines: it must not hide what happened then.
        axes.axvline(mark.at_s, color=mark.colour, linewidth=1.2, linestyle=(0, (4, 2)), zorder=1.5)
        share = (mark.at_s - first) / (last - first)
        if share >= free_from:
            axes.annotate(
                elide(text, 24),
                (share, 1.0),
                xycoords="axes fraction",
                xytext=(-3 if share > 1 - 2 * _LABEL_SHARE else 3, -2),
                textcoords="offset points",
                ha="right" if share > 1 - 2 * _LABEL_SHARE else "left",
                va="top",
                fontsize=10,
                color=INK,
            )
            free_from = share + 2 * _LABEL_SHARE


def _time_axis(axes: Axes, first: float, last: float) -> None:
    span = last - first
    step = next((step for step in _STEPS_S if span / step <= _TICKS), _DAY_S * math.ceil(span / _DAY_S / _TICKS))
    ticks = [step * index for index in range(math.ceil(first / step), math.floor(last / step) + 1)]
    axes.set_xticks(ticks, [_moment(tick, step) for tick in ticks])
    days = [datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d") for at in (first, last)]
    axes.set_xlabel(f"UTC, {days[0]}" if days[0] == days[1] else f"UTC, {days[0]} to {days[1]}")


def _moment(at_s: float, step_s: float) -> str:
    moment = datetime.fromtimestamp(at_s, timezone.utc)
    if step_s >= _DAY_S:
        return moment.strftime("%m-%d")
    return moment.strftime("%H:%M:%S" if step_s < 60 else "%H:%M")


def _bytes(value: float, _position: Any = None) -> str:
    return byte_size(round(value))

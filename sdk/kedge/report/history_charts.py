"""Panels of a device's history drawn with characters, as wide as the terminal is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from typing import Any

import plotext  # type: ignore[import-untyped]
from rich.text import Text

from .history_panels import Line, Panel, points
from .svg import elide
from .text import printable

__all__ = ["chart", "columns_of_time"]

_ROWS = 9
_LABEL = 8
_NARROWEST, _WIDEST = 40, 160
_TICK = 14
_TICKS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
_DAY_S = 86_400
# Of the 256 of xterm: each can be read on black and on white. In the order of a panel's lines.
_COLOURS = (33, 166, 34, 133, 244, 160)
_MARK = 244


def columns_of_time(columns: int) -> int:
    """How many columns of so wide a terminal are the axis of time; each has two points."""
    return max(min(columns, _WIDEST), _NARROWEST) - _LABEL - 1


def chart(
    panel: Panel,
    times_s: Sequence[float],
    span_s: tuple[float, float],
    step_s: float,
    marks_s: Sequence[float] = (),
    *,
    columns: int = 80,
) -> Text:
    """A panel over time, the axis in UTC; its head names the lines, with the last and the greatest of each.

    What is not known stays a gap.

    Args:
        times_s: wall seconds at the end of each step, ascending; of as many steps as the panel's lines have values.
        span_s: the axis, from and to.
        step_s: the length of a step.
        marks_s: moments that get an upright line.
        columns: of the terminal.
    """
    known = [value for line in panel.lines for value in line.values if value is not None]
    low, high, ticks = _scale(known, panel.from_zero)
    # plotext has one figure, which keeps what was drawn last, and cuts it to what it takes for the terminal.
    figure = plotext.figure
    plotext.terminal.limit(False, False)
    figure.clear()
    figure.plot_size(columns_of_time(columns) + _LABEL + 1, _ROWS)
    figure.theme("colorless")
    figure.canvas("default")
    figure.axes(False, axis="both", side=[1])
    # plotext computes in single precision, which has two minutes of today's seconds since 1970 for one.
    begin_s = span_s[0]
    moments, labels = _moments(span_s, columns_of_time(columns))
    figure.ruler("x").lim(0, span_s[1] - begin_s)
    figure.ruler("x").ticks([each - begin_s for each in moments], labels)
    figure.ruler("y").lim(low, high)
    figure.ruler("y").ticks(ticks, [f"{_figure(tick):>{_LABEL}}" for tick in ticks])
    for at_s in marks_s:
        dots = [low + (high - low) * row / _ROWS for row in range(_ROWS + 1)]
        figure.draw(figure.signal([at_s - begin_s] * len(dots), dots, marker=plotext.marker("┊", pixel=_MARK)))
    # The first line is drawn last, and so over the others.
    for line, colour in reversed(list(zip(panel.lines, _COLOURS, strict=False))):
        for times, values in _runs(panel, line, times_s, step_s):
            signal = figure.signal(
                [each - begin_s for each in times], values, marker=plotext.marker("braille", pixel=colour)
            )
            signal.lines(True)
            figure.draw(signal)
    drawn = Text.from_ansi(figure.build().string().rstrip("\n"))
    whole = Text("\n").join([*_head(panel, columns), drawn])
    whole.no_wrap = True
    return whole


def _head(panel: Panel, columns: int) -> list[Text]:
    """What is shown, and by which lines: as many to a row as there is room for."""
    items = [Text.assemble((printable(panel.title), "bold"), (f" ({panel.unit})", "bright_black"))]
    for line, colour in zip(panel.lines, _COLOURS, strict=False):
        values = [value for value in line.values if value is not None]
        most = max([value for value in line.high or () if value is not None] or values, default=None)
        figures = f" {_figure(values[-1])} (most {_figure(most)})" if values and most is not None else ""
        items.append(Text.assemble((f"━ {elide(line.name, 24)}", f"color({colour})"), figures))
    if panel.left_out:
        items.append(Text(f"and {panel.left_out} more", "bright_black"))
    rows: list[Text] = []
    for item in items:
        if rows and rows[-1].cell_len + 2 + item.cell_len <= columns:
            rows[-1] = Text("  ").join([rows[-1], item])
        else:
            rows.append(item)
    return rows


def _runs(
    panel: Panel, line: Line, times_s: Sequence[float], step_s: float
) -> Iterator[tuple[list[float], list[float]]]:
    """What is to be joined."""
    times: list[float] = []
    values: list[float] = []
    where, known = points(line, times_s, step_s, panel.holds_s)
    for at_s, (value, _, _) in zip(where, known, strict=True):
        if value is not None:
            times.append(at_s)
            values.append(value)
        elif times:
            yield times, values
            times, values = [], []
    if times:
        yield times, values


def _scale(known: Sequence[float], from_zero: bool) -> tuple[float, float, list[float]]:
    """Ends of the axis, and some round figures on it."""
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if from_zero:
        low = min(low, 0.0)
    if not high - low > 1e-9 * max(abs(high), abs(low), 1e-9):
        high = low + max(abs(low) * 0.1, 1.0 if low else 1e-3)
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(each * power for each in (1, 2, 2.5, 5, 10) if each * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return first * step, last * step, [number * step for number in range(first, last + 1)]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _moments(span_s: tuple[float, float], columns: int) -> tuple[list[float], list[str]]:
    first, last = span_s
    most = max(columns // _TICK, 2)
    span = last - first
    step = next((each for each in _TICKS_S if span / each <= most), _DAY_S * math.ceil(span / _DAY_S / most))
    ticks: list[float] = [step * number for number in range(math.ceil(first / step), math.floor(last / step) + 1)]
    form = "%m-%d" if step >= _DAY_S else "%m-%d %H:%M" if span > _DAY_S else "%H:%M" if step >= 60 else "%H:%M:%S"
    return ticks, [_moment(tick, form) for tick in ticks]


def _moment(at_s: Any, form: str) -> str:
    return datetime.fromtimestamp(at_s, timezone.utc).strftime(form)

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from kedge.report.series import Mark, Series, series_svg
from kedge.report.svg import GREEN

#: 2026-11-26 05:00:00 UTC.
START = 1_795_669_200


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def lines(svg: str, colour: str = "blue") -> list[list[tuple[float, float]]]:
    """Points of each unbroken stroke of a colour that is no tick, grid or legend."""
    found = []
    for path in re.findall(r"<path[^>]*>", svg):
        if f"stroke: var(--{colour}" not in path or "clip-path" not in path:
            continue
        drawn = re.search(r' d="([^"]*)"', path)
        assert drawn
        for stroke in drawn.group(1).split("M ")[1:]:
            figures = [float(x) for x in re.findall(r"-?[\d.]+", stroke)]
            found.append(list(zip(figures[::2], figures[1::2], strict=True)))
    return found


def test_a_single_peak_among_many_seconds_is_not_lost() -> None:
    times = [START + second for second in range(86_400)]
    values = [5.0] * len(times)
    values[43_210] = 500.0
    (stroke,) = lines(series_svg("s", "t", [Series("p99", times, values)], unit="ms"))
    # On the page y goes down: one point is far above all others.
    highest, second = sorted(y for _, y in stroke)[:2]
    assert highest < second - 50
    assert len(stroke) < 2_000


def test_a_week_of_seconds_makes_no_larger_page_than_an_hour_does() -> None:
    random = np.random.default_rng(0)

    def drawn(seconds: int) -> int:
        values = 5 + random.random(seconds)
        times = START + np.arange(seconds)
        return len(series_svg("s", "t", [Series("p50", times, values, low=values, high=2 * values)], unit="ms"))

    assert drawn(604_800) < 1.2 * drawn(3600) < 200_000


def test_a_gap_stays_a_gap_whether_it_is_told_or_only_left_out() -> None:
    told = [1.0, 2.0, None, math.nan, 1.0, 2.0]
    assert [len(s) for s in lines(series_svg("s", "t", [Series("a", [START + i for i in range(6)], told)]))] == [2, 2]
    left_out = Series("a", [START, START + 1, START + 2, START + 60, START + 61], [1.0, 2.0, 1.0, 2.0, 1.0])
    assert [len(stroke) for stroke in lines(series_svg("s", "t", [left_out]))] == [3, 2]
    assert len(lines(series_svg("s", "t", [left_out], gap_s=100))) == 1


def test_a_gap_in_many_seconds_is_kept_when_they_are_reduced() -> None:
    times = [START + second for second in range(20_000) if not 9_000 < second < 10_000]
    assert len(lines(series_svg("s", "t", [Series("a", times, [1.0] * len(times))]))) == 2


def test_the_axis_is_in_utc_wherever_the_reader_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    series = [Series("a", [START, START + 3600], [1.0, 2.0])]
    here = series_svg("s", "t", series)
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.tzset()
    try:
        there = series_svg("s", "t", series)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert here == there
    assert {"05:00", "06:00", "UTC, 2026-11-26"} <= set(texts(here))


@pytest.mark.parametrize(
    ("seconds", "tick"), [(20, "05:00:10"), (600, "05:05"), (86_400, "12:00"), (30 * 86_400, "12-06")]
)
def test_ticks_are_round_for_any_span(seconds: int, tick: str) -> None:
    shown = texts(series_svg("s", "t", [Series("a", [START, START + seconds], [1.0, 2.0])]))
    assert tick in shown
    assert sum(bool(re.fullmatch(r"[\d:-]+", text)) and (":" in text or "-" in text) for text in shown) <= 12


def test_what_happened_is_marked_where_it_is_within_the_axis() -> None:
    series = [Series("a", [START, START + 100], [1.0, 2.0])]
    marks = [
        Mark(START + 50, "deploy 2"),
        Mark(START - 50, "deploy 1"),
        Mark(START + 10, "throttled", START + 20),
        Mark(START + 30, "throttled", START + 40),
        Mark(START - 30, "too hot", START - 20),
    ]
    shown = texts(series_svg("s", "t", series, marks))
    assert "deploy 2" in shown
    assert "deploy 1" not in shown
    assert shown.count("throttled") == 1
    assert "too hot" not in shown


def test_nothing_recorded_is_said_and_is_no_zero() -> None:
    svg = series_svg("s", "t", [Series("a", [], [])], span_s=(START, START + 600), unit="°C")
    assert "nothing recorded" in texts(svg)
    assert "0" not in texts(svg)
    assert lines(svg) == []


def test_bytes_have_their_units_and_names_of_lines_are_text() -> None:
    hostile = "</svg><script>$x_{$"
    both = [Series(hostile, [START, START + 9], [4e9, 5e9]), Series("_hidden", [START, START + 9], [1e9, 2e9], GREEN)]
    svg = series_svg("s", "t", both, unit="bytes")
    assert "<script" not in svg
    assert {"hidden", "2 GB"} <= set(texts(svg))
    assert len(lines(svg, "green")) == 1

"""A device's history for people: drawings that say what was recorded and no more, tables in a pipe, and one page."""

from __future__ import annotations

import io
import json
import re
from functools import cache
from typing import Any

import pytest
from rich.console import Console

from kedge.diagnose.recording import recording_of
from kedge.report.history_charts import chart, columns_of_time
from kedge.report.history_events import events_of, notes_of
from kedge.report.history_html import history_html, recording_figures
from kedge.report.history_panels import Line, Panel, device_panels, model_panels, points
from kedge.report.history_text import show_history
from tests.support.pages import self_contained
from tests.support.recordings import BEGIN_S, DEPLOYED, LOST, SECONDS, entries, two_hours

LABEL = 9
HOSTILE = "\x1b[2J\x07<script>alert(1)</script>&$\\frac{1}{2}$"


@cache
def _document(steps: int) -> str:
    told = recording_of(two_hours(), SECONDS, steps=steps)
    assert told is not None
    document = {
        "device": "nano",
        "model": None,
        "entries": entries(),
        "entries_why": None,
        "problems": [],
        "recording": told.to_json(),
        "recording_why": None,
    }
    return json.dumps(document)


def document(steps: int = 120) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(_document(steps))
    return parsed


def hostile() -> dict[str, Any]:
    """Names that a device could not have sent past the reader, were it ever to let them pass."""
    return json.loads(_document(120).replace("digits", json.dumps(HOSTILE)[1:-1]).replace("VDD_IN", "_" * 100))


def drawn(values: list[float | None], columns: int = 80) -> list[str]:
    """Rows of a chart of one line, a value each minute of an hour, without its head."""
    panel = Panel("latency", "ms", [Line("p99", values)])
    times = [BEGIN_S + 60 * (index + 1) for index in range(len(values))]
    return chart(panel, times, (BEGIN_S, BEGIN_S + 3600), 60, columns=columns).plain.split("\n")[1:]


def inked(rows: list[str]) -> set[int]:
    """Columns of the axis of time in which something is drawn."""
    return {at - LABEL for row in rows for at, each in enumerate(row) if "\u2800" < each <= "\u28ff"}


def on_a_terminal(told: dict[str, Any], columns: int) -> str:
    out = io.StringIO()
    show_history(told, Console(file=out, width=columns, force_terminal=True, color_system="256", highlight=False))
    return out.getvalue()


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_a_drawing_is_as_wide_as_the_terminal_and_no_wider(columns: int) -> None:
    rows = drawn([float(index) for index in range(60)], columns)
    assert max(map(len, rows)) == min(columns, 160)
    assert max(inked(rows)) == columns_of_time(columns) - 1
    assert min(inked(rows)) <= columns_of_time(columns) // 60 + 1


@pytest.mark.parametrize("hole", [None, "left out"])
def test_what_was_not_recorded_stays_empty_and_is_no_zero(hole: str | None) -> None:
    values: list[float | None] = [10.0] * 20 + [None] * 20 + [10.0] * 20
    if hole is None:
        rows = drawn(values)
    else:
        panel = Panel("latency", "ms", [Line("p99", [10.0] * 40)])
        times = [BEGIN_S + 60 * (index + 1) for index in range(60) if not 20 <= index < 40]
        rows = chart(panel, times, (BEGIN_S, BEGIN_S + 3600), 60).plain.split("\n")[1:]
    ink = inked(rows)
    width = columns_of_time(80)
    assert not ink & set(range(width * 22 // 60, width * 38 // 60))
    assert ink & set(range(width * 18 // 60))
    assert ink & set(range(width * 42 // 60, width))
    assert "10" in rows[0]


def test_what_is_read_now_and_then_is_one_line_but_not_across_what_was_not_recorded() -> None:
    values: list[float | None] = [7.0 if index % 10 == 0 else None for index in range(60)]
    times = [BEGIN_S + index + (0 if index < 30 else 5) for index in range(60)]
    where, known = points(Line("tj", values), times, 1, holds_s=35)
    assert [value for value, _, _ in known] == [7.0, 7.0, 7.0, None, 7.0, 7.0, 7.0]
    assert where == [BEGIN_S + at for at in (0, 10, 20, 27.5, 35, 45, 55)]
    apart = [BEGIN_S + 40 * index for index in range(3)]
    assert len(points(Line("tj", [7.0] * 3), apart, 30, holds_s=35)[0]) == 3
    assert len(points(Line("tj", [7.0, None, 7.0]), apart, 30, holds_s=35)[0]) == 3


def test_a_single_second_between_two_gaps_can_be_seen() -> None:
    assert len(inked(drawn([None] * 30 + [5.0] + [None] * 29))) == 1


def test_figures_that_never_change_or_are_zero_or_huge_are_drawn() -> None:
    for value in (0.0, 1e-9, 7.0, 3e38, -40.0):
        assert inked(drawn([value] * 60)), value


def test_a_second_of_an_hour_today_is_where_it_belongs() -> None:
    """In single precision a second since 1970 would be off by a minute."""
    assert inked(drawn([None] * 29 + [5.0] + [None] * 30)) == {columns_of_time(80) // 2}


def test_the_axis_tells_utc_in_round_times() -> None:
    assert "05:15" in drawn([1.0] * 60)[-1]


def test_a_terminal_too_narrow_for_a_drawing_gets_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert "┤" not in on_a_terminal(document(60), 39)
    assert "not recorded" in capsys.readouterr().out


def test_a_recording_that_began_later_says_so() -> None:
    told = document()["recording"]
    assert "the first of" not in notes_of(told)[0]
    told["summary"]["from_s"] = BEGIN_S + 600
    assert notes_of(told)[0].startswith("recorded: 1.83 h of 2 h, the first of 2026-11-26 05:10:00; 1 gap")


@pytest.mark.parametrize("columns", [80, 120])
def test_everything_of_two_hours_is_on_a_terminal(columns: int) -> None:
    shown = on_a_terminal(document(), columns)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    for words in (
        "latency of digits (ms)",
        "requests of detector a second (/s)",
        "throttled: share of the time",
        "temperature (°C)",
        "clocks (GHz)",
        "power (W)",
        "memory (GB)",
        "digits: version 4 live",
        "detector: version 1 taken back: latency gate",
        "agent 0.1.0 started after a crash",
        "nothing was recorded for 10 min",
        "throttled: 13.6 % of the time (over-current oc1: 900 times)",
        "the recorder itself: 0.4 % of one core, 8.2 MB on the disk",
        "by the device's clock",
    ):
        assert words in plain, words
    assert all(len(row) <= columns for row in plain.split("\n"))
    # Colours alone, and those that can be read on black and on white.
    assert set(re.findall(r"\x1b\[[0-9;]*[A-Za-z]", shown)) <= {
        *("\x1b[0m", "\x1b[1m", "\x1b[90m"),
        *(f"\x1b[38;5;{each}m" for each in (33, 166, 34, 133, 244, 160)),
    }


def test_a_pipe_gets_a_row_a_step_and_one_for_each_gap(capsys: pytest.CaptureFixture[str]) -> None:
    show_history(document(60))
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    table = shown.partition("latency of digits (ms)")[2].partition("requests of digits")[0]
    rows = [row.split() for row in table.splitlines() if row.strip().startswith("2026-")]
    assert len(rows) == 60 - len(LOST) // 120 + 2
    missing = [row for row in rows if "not" in row]
    assert [row[:2] for row in missing] == [["2026-11-26", "06:42:00"]]
    first = document(60)["recording"]["steps"][0]["models"]["digits"]
    assert rows[0] == ["2026-11-26", "05:02:00", f"{first['total_p50_ms']:.4g}", f"{first['total_p99_ms']:.4g}"]


def test_deploys_of_one_model_are_not_marked_in_the_drawing_of_another() -> None:
    told = document()
    figures = dict(recording_figures(told))
    assert "v4 live" in figures["Latency of digits"]
    assert "v1 taken back" not in figures["Latency of digits"]
    assert "v1 taken back" in figures["Latency of detector"]
    assert "detector v1 live" in figures["Temperature"]


def test_what_happened_is_told_in_order_and_only_of_that_time() -> None:
    events = events_of(document())
    assert [round(each.at_s - BEGIN_S) for each in events] == [DEPLOYED, 5000, 5599, 6200, 6900]
    assert [each.fault for each in events] == [False, False, False, True, True]


def test_a_model_that_was_not_served_has_no_rate_and_one_that_was_not_asked_has_zero() -> None:
    told = document()["recording"]
    (requests,) = (panel for panel in model_panels(told, "detector") if panel.unit == "/s")
    assert requests.lines[0].values[0] is None
    for step in told["steps"]:
        if "detector" in step["models"]:
            step["models"]["detector"] |= {"requests": 0, "total_p50_ms": None, "total_p99_ms": None}
    (idle,) = model_panels(told, "detector")
    assert {each for each in idle.lines[0].values if each is not None} == {0.0}


def test_readings_that_a_device_does_not_have_are_not_drawn() -> None:
    told = document()["recording"]
    for each in (told["summary"], *told["steps"]):
        each["channels"] = {name: value for name, value in each["channels"].items() if name.startswith("load.")}
        each["throttled_share"] = None
    assert [panel.title for panel in device_panels(told)] == ["load"]
    assert "throttling: unavailable, the device has no counters of it" in notes_of(told)


def test_many_channels_are_cut_to_those_with_the_most_and_counted() -> None:
    told = document()["recording"]
    for number in range(20):
        told["summary"]["channels"][f"temperature.zone{number}"] = {
            "min": 1.0,
            "mean": 1.0,
            "max": 90.0 - number,
            "last": 1.0,
            "unit": "°C",
        }
    (panel,) = (panel for panel in device_panels(told) if panel.title == "temperature")
    assert [line.name for line in panel.lines] == [f"zone{number}" for number in range(6)]
    assert panel.left_out == 17


def test_nothing_that_a_device_calls_itself_steers_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    shown = on_a_terminal(hostile(), 100) + capsys.readouterr().out
    assert "\x07" not in shown
    assert "\x1b[2J" not in shown
    show_history(hostile())
    assert "\x1b" not in capsys.readouterr().out


def test_a_device_without_a_recording_has_its_deploys_and_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    told = {**document(), "recording": None, "recording_why": "the agent is too old"}
    show_history(told)
    shown = capsys.readouterr().out
    assert shown.count("live") == 2
    assert "nothing to draw: the agent is too old" in shown
    page = self_contained(history_html(told))
    assert "Nothing to draw: the agent is too old." in page.text
    assert recording_figures(told) == []


def test_the_page_is_complete_in_itself_and_shows_what_was_recorded() -> None:
    told = document()
    text = history_html(told)
    page = self_contained(text)
    for words in ("Latency of digits", "v4 live", "Temperature", "tj", "recorder.cpu_share"):
        assert words in page.text, words
    panels = [*(panel for name in ("digits", "detector") for panel in model_panels(told["recording"], name))]
    assert text.count("<svg") == len(panels) + len(device_panels(told["recording"]))
    assert text == history_html(told)
    assert len(text) < 1_000_000


def test_names_that_a_device_made_up_are_text_on_the_page() -> None:
    page = self_contained(history_html(hostile()))
    assert "<script>alert(1)</script>" in page.text

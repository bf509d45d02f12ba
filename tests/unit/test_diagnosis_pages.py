"""Pages of a diagnosis, a history and a snapshot: names as they are, figures with units, and drawings that are full."""

from __future__ import annotations

import re
from typing import Any

import pytest

from kedge.diagnose.doctor import diagnose
from kedge.diagnose.recording import recording_of
from kedge.report.doctor_html import doctor_html
from kedge.report.history_html import history_html
from kedge.report.snapshot_html import snapshot_html
from tests.support.evidence import data, healthy, judged, slow
from tests.support.pages import self_contained
from tests.support.recordings import SECONDS, two_hours
from tests.unit.test_history_text import document


def test_a_models_name_keeps_its_letters_at_the_beginning_of_a_sentence() -> None:
    text = self_contained(doctor_html(diagnose(judged(slow(healthy()))).to_json())).text
    assert "camera: p99 2.3 × what it was" in text
    assert "Camera" not in text


@pytest.mark.parametrize(
    ("cure", "told"),
    [
        ("kill 303  # or keep that one", "To do: kill 303 (or keep that one)"),
        ("sudo mount '/a  # b'", "To do: sudo mount '/a  # b'"),
    ],
)
def test_what_to_do_stands_in_running_text_without_a_comment_of_the_shell(cure: str, told: str) -> None:
    found = diagnose(judged(slow(healthy()))).to_json()
    found["first_cause"]["cure"] = cure
    assert told in self_contained(doctor_html(found)).text


def _rows(page: str) -> dict[str, list[str]]:
    """Cells of each row of the tables, by the first."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return {found[0]: found[1:] for found in cells if found}


def test_readings_are_told_in_units_that_people_read() -> None:
    told = document()
    figures = {"min": 0.25, "mean": 0.5, "max": 1.0, "last": 0.73125}
    told["recording"]["summary"]["channels"] = {
        "memory.available": {key: 73_265_200.0 * each for key, each in figures.items()} | {"unit": "bytes"},
        "swap.in_per_s": {key: 1000.0 * each for key, each in figures.items()} | {"unit": "bytes/s"},
        "load.cpu": figures | {"unit": "ratio"},
        "temperature.cpu": figures | {"unit": "°C"},
    }
    rows = _rows(history_html(told))
    assert rows["memory.available"] == ["18.3 MB", "36.6 MB", "73.3 MB", "53.6 MB", ""]
    assert rows["swap.in_per_s"] == ["250 B/s", "500 B/s", "1 kB/s", "731 B/s", ""]
    assert rows["load.cpu"] == ["25 %", "50 %", "100 %", "73.1 %", ""]
    assert rows["temperature.cpu"] == ["0.25", "0.5", "1", "0.73125", "°C"]


def test_heads_of_every_table_begin_with_a_capital() -> None:
    heads = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', history_html(document()))
    assert "Outcome" in heads
    # A percentile is called as it is everywhere.
    assert [head for head in heads if head[0].islower() and not head.startswith("p")] == []


def _drawn(told: dict[str, Any]) -> str:
    """The times on the axis of the first drawing."""
    first = history_html(told).partition("<svg")[2].partition("</svg>")[0]
    return " ".join(re.findall(r"\d\d:\d\d(?::\d\d)?", first))


def test_a_recording_that_is_young_fills_its_drawings() -> None:
    whole = recording_of(two_hours(), SECONDS)
    asked = recording_of(two_hours(), 10 * SECONDS)
    assert whole is not None
    assert asked is not None
    of_all, of_ten = (_drawn(document() | {"recording": each.to_json()}) for each in (whole, asked))
    # Two hours of twenty: on an axis of all of them no tick would be within an hour of another.
    assert len(set(of_all.split()) & set(of_ten.split())) >= 3
    assert of_all.split()[-1][:2] == of_ten.split()[-1][:2]


def _snapshot_page(facts: dict[str, Any]) -> str:
    shown = {"name": "nano", "file": "f", "problems": (), "manifest": None, "facts": facts, "members": {}, "logs": {}}
    return snapshot_html(shown, None, [])


def test_processes_of_a_snapshot_have_three_digits_and_no_memory_where_none_was_measured() -> None:
    facts = healthy()
    data(facts, "processes")["top"] = [
        {"pid": 7, "name": "ended", "cores": 0.258647, "rss_bytes": 0, "ours": False},
        {"pid": 8, "name": "there", "cores": 1.0, "rss_bytes": 4096, "ours": True},
    ]
    rows = _rows(_snapshot_page(facts))
    assert rows["ended"] == ["7", "0.259", "not measured", "no"]
    assert rows["there"][2] == "4.1 kB"


def test_every_tile_of_a_snapshot_is_a_figure_with_a_word_on_it() -> None:
    page = _snapshot_page(healthy())
    assert 'class="value words"' not in page
    assert "kernel 5.15.148-tegra" in self_contained(page).text

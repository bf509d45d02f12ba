"""What people see of a rollout: tables, lines, the live display, the page; at 16 devices and at 1,000."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
from rich.console import Console

from kedge.cli.rolling import exit_code
from kedge.cli.rollout_live import frame
from kedge.cli.rollout_options import Asked, parse_share
from kedge.errors import BadInputError
from kedge.fleet.rollout.answers import FAILURES
from kedge.report.rollout_chart import part_s
from kedge.report.rollout_html import rollout_html
from kedge.report.rollout_text import rollout_list, rollout_tables, wave_plan
from kedge.report.rollout_words import FAILED, STATES, count_words, headline, wave_words
from tests.support.pages import self_contained
from tests.support.rollouts import END_S, rollout_document
from tests.unit.test_page import HOSTILE

BAD = {1: "unreachable", 9: "refused"}


def halted() -> dict[str, Any]:
    return rollout_document(16, bad=BAD, halted_in=3)


def shown(document: Mapping[str, Any], capsys: pytest.CaptureFixture[str], **given: Any) -> str:
    rollout_tables(document, **given)
    return capsys.readouterr().out


def test_what_counts_as_failed_is_what_halts_a_rollout() -> None:
    assert set(FAILURES) == FAILED


def test_failed_devices_come_first_with_their_reason_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(halted(), capsys)
    refused, unreachable = text.index("edge-0009"), text.index("edge-0001")
    assert refused < unreachable < text.index("edge-0000")
    assert "latency gate: p99 of 1000 runs is 14.2 ms, above 12 ms" in text
    assert "kedge history --on edge-0009" in text
    # The first column names the device.
    assert "edge-0009: latency" not in text


def test_beyond_twenty_devices_those_that_are_well_are_a_count(capsys: pytest.CaptureFixture[str]) -> None:
    document = rollout_document(1000, bad={7: "late"})
    text = shown(document, capsys)
    assert "999 updated (each of them: --all)" in text
    assert "edge-0007" in text
    assert "edge-0500" not in text
    assert "edge-0500" in shown(document, capsys, every=True)


def test_devices_whose_turn_never_came_are_a_count_too(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(rollout_document(100, bad={0: "failed"}, halted_in=1), capsys)
    assert "99 devices waiting" in text
    assert "edge-0050" not in text


def test_a_gate_that_nobody_asked_for_has_no_line_and_one_that_failed_says_why(
    capsys: pytest.CaptureFixture[str],
) -> None:
    document = halted()
    text = shown(document, capsys)
    assert "wave 3: failures failed: 2 of 16 devices failed" in text
    assert "p99 not judged" not in text
    for wave in document["waves"]:
        wave["gates"][3]["limits"] = {"max_p99_drift": 0.2}
    assert "waves 1, 2, 3: p99 not judged: no wave before to compare with" in shown(document, capsys)


def test_the_headline_says_how_many_serve_the_release() -> None:
    assert headline(rollout_document(16)).startswith("16 devices serve the release: done in ")
    assert headline(halted()).endswith("14 of 16 devices serve the release; 1 refused, 1 unreachable")
    running = rollout_document(1) | {"state": "paused", "seconds": None}
    assert headline(running) == "paused: 1 of 1 device serves the release"


def test_a_wave_is_one_line() -> None:
    document = halted()
    lines = [wave_words(document, wave) for wave in document["waves"]]
    assert lines[1].startswith("wave 2 of 3: 2 updated, 1 unreachable; passed in ")
    assert lines[2].endswith(": 2 of 16 devices failed")
    assert not any("\n" in line for line in lines)


def test_counts_are_told_in_one_order_whatever_the_document_s() -> None:
    assert count_words({"waiting": 3, "failed": 1, "updated": 2}) == "2 updated, 1 failed, 3 waiting"
    assert count_words({}) == "none"


def test_a_plan_names_who_is_in_which_wave_and_the_list_every_rollout(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"cam-{number}" for number in range(30)]
    wave_plan([{"wave": 1, "count": 1, "devices": names[:1]}, {"wave": 2, "count": 30, "devices": names[1:]}])
    text = capsys.readouterr().out
    assert "cam-0" in text
    assert "and 9 more" in text
    rollout_list([halted()])
    assert "14 updated, 1 refused, 1 unreachable" in capsys.readouterr().out
    rollout_list([])
    assert "no rollout yet" in capsys.readouterr().out


@pytest.mark.parametrize("count", [16, 1000])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 50)])
def test_the_live_display_fits_the_terminal(count: int, width: int, height: int) -> None:
    document = rollout_document(count, bad={1: "unreachable", 3: "refused"})
    for number, device in enumerate(document["devices"][4:]):
        device |= {"state": "running" if number < 40 else "waiting", "step": "push", "ended_s": None}
    document["counts"] = {"updated": 2, "unreachable": 1, "refused": 1}
    document["counts"] |= {"running": min(40, count - 4), "waiting": max(count - 44, 0)}
    lines = frame(document, END_S, None, height=height)
    assert len(lines) <= height
    text = "\n".join(line.plain for line in lines)
    assert "edge-0001" in text
    assert "latency gate" in text
    assert "push" in text
    console = Console(width=width, height=height, record=True, file=None)
    with console.capture() as drawn:
        for line in lines:
            line.truncate(width, overflow="ellipsis")
            console.print(line)
    assert all(len(line) <= width for line in drawn.get().splitlines())
    bar = next(line.plain for line in lines if "█" in line.plain)
    assert len(bar.strip()) == 60


def test_a_pause_counts_down() -> None:
    document = rollout_document(16)
    document["waves"][1]["state"] = "watching"
    text = "\n".join(line.plain for line in frame(document, END_S, 581.0, height=24))
    assert "paused, 9:41 left" in text


def test_a_display_of_many_failures_keeps_room_for_who_is_busy() -> None:
    document = rollout_document(1000, bad=dict.fromkeys(range(500), "unreachable"))
    for device in document["devices"][500:]:
        device["state"] = "running"
    document["counts"] = {"unreachable": 500, "running": 500}
    lines = [line.plain for line in frame(document, END_S, None, height=24)]
    assert len(lines) <= 24
    assert any("more busy" in line for line in lines)
    assert any("more failed" in line for line in lines)
    assert any("edge-0500" in line for line in lines)


@pytest.mark.parametrize("count", [16, 1000])
def test_the_page_is_complete_in_itself_and_tells_every_device(count: int) -> None:
    document = rollout_document(count, bad=BAD)
    text = rollout_html(document)
    page = self_contained(text)
    for device in document["devices"]:
        assert device["device"] in page.text
    assert "Latency gate: p99 of 1000 runs is 14.2 ms, above 12 ms." in page.text
    assert text == rollout_html(copy.deepcopy(document))
    assert len(text) < 2_000_000


def test_hostile_names_on_the_page_do_nothing() -> None:
    document = rollout_document(16, bad=BAD)
    for device in document["devices"]:
        device |= {"device": HOSTILE, "reason": HOSTILE, "hint": HOSTILE, "worker": HOSTILE}
    for wave in document["waves"]:
        for gate in wave["gates"]:
            gate["why"] = HOSTILE
    self_contained(rollout_html(document | {"reason": HOSTILE, "hint": HOSTILE, "model": HOSTILE}))


def test_a_rollout_that_has_not_begun_has_a_page() -> None:
    document = rollout_document(4)
    for device in document["devices"]:
        device |= {"state": "waiting", "begun_s": None, "ended_s": None, "seconds": None, "steps": {}}
        device |= {"push_s": None, "wire_bytes": None, "p99_ms": None}
    for wave in document["waves"]:
        wave |= {"state": "waiting", "begun_s": None, "ended_s": None, "gates": []}
    document |= {"state": "interrupted", "ended_s": None, "seconds": None, "counts": {"waiting": 4}}
    page = self_contained(rollout_html(document))
    assert "svg" not in page.tags
    assert "0 of 4 devices serve the release" in page.text


def test_a_part_that_a_device_never_came_to_is_not_zero() -> None:
    device = rollout_document(16, bad=BAD)["devices"][1]
    assert part_s(device, "push") is not None
    assert part_s(device, "probation") is None


def test_each_state_is_told_by_a_word_and_a_sign() -> None:
    assert len({state.word for state in STATES.values()}) == len(STATES)
    assert all(state.sign for state in STATES.values())


def test_the_exit_code_says_whether_every_device_serves_the_release() -> None:
    assert exit_code(rollout_document(16)) == 0
    assert exit_code(rollout_document(16, bad=BAD)) == 11
    assert exit_code(halted()) == 11


def test_one_plain_name_without_options_is_no_rollout() -> None:
    assert not Asked().is_rollout("cam-1")
    for to in ("cam-1,cam-2", "@berlin", "label:site=berlin"):
        assert Asked().is_rollout(to)
    assert Asked(max_failures=0).is_rollout("cam-1")
    assert Asked(dry_run=True).is_rollout("cam-1")


def test_a_key_that_is_not_there_is_told_before_anything_begins(tmp_path: Any) -> None:
    with pytest.raises(BadInputError, match="does not exist"):
        Asked(attest=tmp_path / "nokey").options(None)


def test_a_share_is_written_with_its_sign() -> None:
    assert parse_share("1%") == 0.01
    assert parse_share("20 %") == 0.2
    with pytest.raises(Exception, match="a share is written as 1%"):
        parse_share("0.01")

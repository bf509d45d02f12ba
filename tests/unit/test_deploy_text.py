"""What deploys, histories and status say on a terminal; figures that are not known are never shown as 0."""

from __future__ import annotations

from typing import Any

import pytest

from kedge.cli.common import Progress
from kedge.cli.units import parse_rate, parse_size
from kedge.deploy.follow import require_done
from kedge.deploy.pending import Pending
from kedge.errors import GateRefusedError, IntegrityError, NoSpaceError
from kedge.report.deploy_text import deploy_tables, event_words
from kedge.report.history_text import deploys_of, history_rows
from kedge.report.status_text import outcome_lines, signature_rows, status_rows

A, B = "a" * 64, "b" * 64


def entry(step: str, release: str = A, model: str = "m", at_s: Any = 0, **body: Any) -> dict[str, Any]:
    return {"sequence": 1, "model": model, "release": release, "step": step, "at_s": at_s, **body}


def deployed(**other: Any) -> dict[str, Any]:
    return {
        "device": "nano",
        "model": "m",
        "version": 2,
        "release": A,
        "previous": B,
        "size_bytes": 1000,
        "sent_bytes": 1000,
        "wire_bytes": 100,
        "skipped_bytes": 0,
        "copied_bytes": 0,
        "push_s": 2.0,
        "activate_s": 1.0,
        "parity": [{"output": "y", "cosine": 0.99, "max_abs_error": None, "relative_error": None}],
        "before": {"release": B, "version": 1, "runtime": "onnxruntime", "precision": "fp32", "p99_ms": None},
        "after": {"release": A, "version": 2, "runtime": "onnxruntime", "precision": "int8"},
        "gates": [],
        "probation": None,
        "limits": {"parity": {"cosine_min": "0.9", "relative_error_max": "1", "outputs": [{"name": "y"}]}},
        "signed": None,
    } | other


def test_what_is_not_known_is_said_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    deploy_tables(deployed())
    shown = capsys.readouterr().out
    assert "100 B for 1 kB at 50 B/s" in shown
    assert shown.count("not measured") == 4
    assert "not known" not in shown
    assert "relative error infinite (≤ 1)" in shown
    for word in ("probation", "signatures"):
        assert word not in shown


def test_a_probation_that_another_deploy_ended_is_not_said_to_be_passed(capsys: pytest.CaptureFixture[str]) -> None:
    found = {"seconds": 60, "elapsed_s": 3.2, "requests": 1204, "errors": 0, "p99_ms": 3.21, "cut_by": "superseded"}
    deploy_tables(deployed(probation=found, signed=True, before=None, previous=None))
    shown = capsys.readouterr().out
    assert "ended by another deploy after 3 of 60 s, 1,204 requests, 0 failed, p99 3.21 ms" in shown
    assert "verified by the device" in shown
    assert "nothing: this is the model's first release" in shown


def row_of(shown: str, name: str) -> list[str]:
    line = next(line for line in shown.splitlines() if line.strip().startswith(name))
    return [cell.strip() for cell in line.strip().removeprefix(name).split("  ") if cell.strip()]


def test_what_served_before_stands_beside_what_serves_now(capsys: pytest.CaptureFixture[str]) -> None:
    before = {"release": B, "version": 1, "size_bytes": 2000, "p99_ms": 3.0, "peak_bytes": 40_000_000}
    gates = [{"gate": "memory", "passed": True, "figures": {"peak_bytes": 30_000_000}, "limits": {}}]
    deploy_tables(deployed(before=before, gates=gates))
    shown = capsys.readouterr().out
    assert row_of(shown, "release") == [B[:12], A[:12]]
    assert row_of(shown, "size") == ["2 kB", "1 kB"]
    assert row_of(shown, "own memory at its peak") == ["40 MB", "30 MB"]
    assert row_of(shown, "compute p99, golden inputs") == ["3 ms", "not measured"]


@pytest.mark.parametrize(("previous", "word"), [(None, "nothing"), (B, "not known")])
def test_nothing_was_before_only_where_there_is_nothing_to_go_back_to(
    capsys: pytest.CaptureFixture[str], previous: str | None, word: str
) -> None:
    deploy_tables(deployed(before=None, previous=previous))
    assert row_of(capsys.readouterr().out, "release") == [word, A[:12]]


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (
            {
                "event": "gate",
                "gate": "latency",
                "passed": False,
                "figures": {"p99_ms": 14.2},
                "limits": {"p99_ms": 12},
            },
            "latency refused: p99 14.2 ms (≤ 12 ms)",
        ),
        (
            {
                "event": "gate",
                "gate": "latency",
                "passed": True,
                "figures": {"p99_ms": 2.0, "p99_ratio": 1.25},
                "limits": {"p99_ratio_max": 1.5},
            },
            "latency passed: p99 2 ms; 1.25 × that of the live release (≤ 1.5)",
        ),
        (
            {"event": "gate", "gate": "memory", "passed": True, "figures": {"peak_bytes": None}, "limits": {}},
            "memory passed: not measured",
        ),
        (
            {
                "event": "gate",
                "gate": "parity",
                "passed": False,
                "figures": {"outputs": [{"output": "y", "cosine": None, "relative_error": None}]},
                "limits": {},
            },
            "parity refused: y cosine not measured, relative error infinite",
        ),
        ({"event": "probation", "requests": 1, "errors": 0, "p99_ms": None}, "1 request, 0 failed"),
        ({"event": "restored", "release": A}, "the live release serves again"),
        ({"event": "of a later agent"}, ""),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.get("gate") or value["event"]),
)
def test_events_in_words(event: dict[str, Any], words: str) -> None:
    assert event_words(event) == words


def test_the_history_is_one_line_a_deploy() -> None:
    entries = [
        entry("begun", version=1, at_s=1_700_000_000),
        entry("gated"),
        entry("switched"),
        entry("begun", B, version=2),
        entry("refused", B, reason=f"release {B[:12]} was refused: latency gate: too slow"),
        entry("committed"),
        entry("rolled-back", to=B),
        entry("begun", B, model="other"),
    ]
    assert [row[1:] for row in history_rows(entries)] == [
        ["m", "1", A[:12], "live"],
        ["m", "2", B[:12], "refused: latency gate: too slow"],
        ["m", "–", A[:12], f"rolled back to {B[:12]}"],
        ["other", "–", B[:12], "being staged"],
    ]
    assert history_rows(entries)[0][0] == "2023-11-14 22:13:20"


def test_a_deploy_whose_end_another_one_took_is_not_said_to_run() -> None:
    told = deploys_of([entry("begun"), entry("switched"), entry("begun", B), entry("switched", B)])
    assert [each["step"] for each in told] == ["replaced", "switched"]


@pytest.mark.parametrize("at_s", [None, 1e30, "yesterday", -(10**20)])
def test_a_time_that_is_none_is_shown_as_none(at_s: Any) -> None:
    assert history_rows([entry("committed", at_s=at_s)])[0][0] == "–"


def test_a_journal_of_a_later_agent_is_told_as_far_as_it_is_understood() -> None:
    assert history_rows([entry("pondered")])[0][-1] == "pondered"


def row(**other: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "state": "serving",
        "version": 1,
        "precision": "int8",
        "release": A,
        "current": A,
        "previous": None,
        "problem": None,
    } | other


def test_status_tells_the_probation_and_what_went_wrong_last() -> None:
    rows = [
        row(signed=True, probation={"elapsed_s": 3.4, "seconds": 10}),
        row(last={"step": "reverted", "release": B, "reason": "3 of 9 requests failed"}, problem="damaged"),
        row(last={"step": "committed", "release": A, "reason": None}),
    ]
    assert [cells[1] for cells in status_rows(rows)] == ["on probation, 3 of 10 s", "serving", "serving"]
    assert [cells[5] for cells in status_rows(rows)] == ["yes", "–", "–"]
    assert outcome_lines(rows) == ["m: damaged", f"m: release {B[:12]} was taken back: 3 of 9 requests failed"]


def test_status_says_whether_signatures_bind() -> None:
    rules = {"required": True, "file": "/etc/kedge/allowed_signers", "threshold": 2, "problem": None, "binding": "root"}
    assert signature_rows(rules) == [
        ("signatures", "required: 2 distinct keys of /etc/kedge/allowed_signers"),
        ("", "they do not bind: root"),
    ]
    assert "whoever may connect" in signature_rows({"required": False})[0][1]
    assert signature_rows(None) == []


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ({"state": "reverted", "error": {"error": "3 of 9 failed", "kind": "gate"}}, GateRefusedError, "taken back: 3"),
        ({"state": "refused", "error": {"error": "too large", "kind": "space"}}, NoSpaceError, "too large"),
        ({"state": "refused", "error": {"error": "too old", "kind": "integrity"}}, IntegrityError, "too old"),
        ({"state": "refused", "error": None}, GateRefusedError, "no reason"),
    ],
)
def test_how_a_device_ends_a_deploy_is_its_error_here(
    answer: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        require_done("nano", answer)


def test_a_deploy_that_is_done_without_a_result_is_done() -> None:
    assert require_done("nano", {"state": "done", "result": None}) == {}


def test_an_end_is_owed_until_it_was_told() -> None:
    pending = Pending("nano", A)
    assert pending.read() == (False, None)
    pending.write({"state": "refused", "error": None, "next": 3})
    assert Pending("nano", A).read() == (True, {"state": "refused", "error": None, "next": 3})
    assert Pending("nano", B).read() == (False, None)
    assert Pending("nano", A, kept=False).read() == (False, None)
    pending.forget()
    pending.forget()
    assert pending.read() == (False, None)


def test_a_note_of_an_end_that_is_damaged_counts_as_none() -> None:
    pending = Pending("nano", A)
    pending.write(None)
    pending._path.write_text("[1")
    assert pending.read() == (False, None)


def test_sizes_and_rates_have_units() -> None:
    assert [parse_size(text) for text in ("512MiB", "1.5 GB", "2kB")] == [512 << 20, 1_500_000_000, 2000]
    assert [parse_rate(text) for text in ("50Mbit", "8kbit/s")] == [6_250_000, 1000]


def test_a_device_cannot_speak_for_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    from kedge.cli.common import Output

    with Output(as_json=False, quiet=False, events=True).progress() as progress:
        assert isinstance(progress, Progress)
        for name in ("result", "error", "step", "progress"):
            progress.event({"event": name, "result": "forged"})
        progress.event({"event": "gate", "gate": "parity"})
    assert capsys.readouterr().out == '{"event": "gate", "gate": "parity"}\n'

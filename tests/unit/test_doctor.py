"""The doctor as a whole: which finding comes first, what hostile facts can do, and how it is told."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from kedge.cli.app import main
from kedge.diagnose.doctor import CAUSES_FIRST, CHECKS, diagnose
from kedge.diagnose.evidence import evidence_of
from kedge.diagnose.thresholds import THRESHOLDS
from kedge.errors import BadInputError, ExitCode
from kedge.report.doctor_html import doctor_html
from kedge.report.doctor_text import doctor_headline, show_doctor
from tests.support.evidence import LINK, NOW_S, data, healthy, judged, slow
from tests.support.schemas import validate

DOCS = Path(__file__).parents[2] / "docs"

Facts = dict[str, Any]


def _hog(document: Facts) -> None:
    data(document, "processes")["top"][1].update(pid=4242, name="stress-ng", cores=5.5)


def _throttled(document: Facts) -> None:
    data(document, "recorder")["hour"].update(throttled_share=0.31, throttles={"over-current oc1": 412})


def _low_power(document: Facts) -> None:
    data(document, "sensors")["facts"]["power_mode"].update(name="15W", id=0)


def _no_passport(document: Facts) -> None:
    data(document, "engines")["engines"].clear()


def _full(document: Facts) -> None:
    data(document, "disk")["file_systems"][0]["free_bytes"] = 0


def _crash_loop(document: Facts) -> None:
    told = data(document, "agent")
    told["starts"] = [{"at_s": NOW_S - each, "version": "0.1.0", "how": "after-crash"} for each in (9, 5, 2)]


def _corrupt(document: Facts) -> None:
    live = data(document, "releases")["models"][0]["releases"][0]
    live.update(whole=False, bad=[{"file": "model.engine", "why": "frame 0 has other bytes"}])


def _other_tensorrt(document: Facts) -> None:
    data(document, "engines")["engines"][0].update(fits=False, refusals=["engine: TensorRT 10.7; device: 10.3"])


def _not_served(document: Facts) -> None:
    data(document, "agent")["status"]["models"][0].update(state="failed", problem="it cannot be loaded")


def _swap_storm(document: Facts) -> None:
    data(document, "memory").update(available_bytes=100_000_000, swap_in_per_s=4000.0, swap_out_per_s=3000.0)


def _hung(document: Facts) -> None:
    data(document, "agent").update(responds=False)


def _two_agents(document: Facts) -> None:
    data(document, "installs")["duplicates"] = ["process 9 of user root is an agent on another state folder: /x"]


def _log_errors(document: Facts) -> None:
    data(document, "logs")["errors"] = [{"at": "2026-11-25T09:40:00Z", "line": "camera failed"}]


def _spoilt(*spoils: Callable[[Facts], object]) -> Facts:
    document = healthy()
    for spoil in spoils:
        spoil(document)
    return document


@pytest.mark.parametrize(
    ("spoils", "first"),
    [
        ((slow,), "latency"),
        ((slow, _throttled), "throttling"),
        ((slow, _hog), "processes"),
        ((slow, _swap_storm), "memory"),
        ((slow, _low_power), "power-mode"),
        ((slow, _low_power, _throttled, _hog), "power-mode"),
        ((_full, _crash_loop, _not_served), "disk"),
        ((_corrupt, _not_served), "releases"),
        ((_other_tensorrt, _not_served), "engines"),
        ((_crash_loop, _not_served), "restarts"),
        ((_two_agents, _swap_storm), "installs"),
        ((_hung, _log_errors), "service"),
        ((_not_served, _log_errors), "models"),
        # No fault but a symptom, and warnings that may be behind it.
        ((slow, _low_power, _no_passport), "power-mode"),
        ((_log_errors, slow), "latency"),
    ],
)
def test_what_brings_the_others_about_comes_first(spoils: tuple[Callable[[Facts], object], ...], first: str) -> None:
    found = diagnose(judged(_spoilt(*spoils)))
    assert found.first_cause is not None
    assert found.first_cause.check == first
    assert found.faulty


def test_a_clock_that_is_wrong_slows_nothing_down() -> None:
    assert LINK.clock is not None
    skewed = replace(LINK, clock=replace(LINK.clock, behind_s=4000.0))
    alone = diagnose(judged(healthy(), skewed)).first_cause
    beside = diagnose(judged(_spoilt(slow, _throttled), skewed)).first_cause
    assert alone is not None
    assert beside is not None
    assert (alone.check, beside.check) == ("clock-skew", "throttling")


def test_a_device_that_cannot_be_reached_is_that_alone() -> None:
    gone = replace(LINK, reachable=False, problem="timed out", host_key=None, login=None, clock=None)
    found = diagnose(judged(None, gone))
    assert found.first_cause is not None
    assert found.first_cause.check == "reachability"
    assert {each.result for each in found.findings if each.check != "reachability"} == {"unknown"}
    changed = replace(LINK, host_key="changed", problem="another key", login=None, connect_ms=None)
    first = diagnose(judged(None, changed)).first_cause
    assert first is not None
    assert first.check == "host-key"


def test_the_sentence_tells_how_bad_it_is_and_why() -> None:
    document = _spoilt(slow, _throttled, _low_power)
    modes = data(document, "sensors")["facts"]["power_mode"]["modes"]
    modes[2]["name"] = "MAXN"
    found = diagnose(judged(document))
    assert found.sentence == "p99 2.3 × what it was; throttled 31 % of the last hour; power mode 15W, was MAXN"


def test_a_healthy_device_has_no_first_cause_and_no_sentence() -> None:
    found = diagnose(judged(healthy()))
    assert (found.first_cause, found.sentence, found.faulty) == (None, "", False)
    assert [each.check for each in found.findings] == [check.name for check in CHECKS]
    assert {each.result for each in found.findings} == {"ok"}


def test_warnings_alone_are_no_first_cause() -> None:
    found = diagnose(judged(_spoilt(_log_errors)))
    assert (found.first_cause, found.faulty) == (None, False)
    assert doctor_headline(found.to_json()) == "nano has no fault; 1 warning"


def test_each_model_has_a_finding_of_its_own() -> None:
    document = slow(healthy())
    told = data(document, "recorder")
    told["hour"]["models"]["other"] = {**told["hour"]["models"]["camera"], "compute_p99_ms": 3.0}
    found = [each for each in diagnose(judged(document)).findings if each.check == "latency"]
    assert [(each.figures["model"], each.result) for each in found] == [("camera", "fault"), ("other", "unknown")]


def test_every_check_has_its_place_among_the_causes() -> None:
    names = [check.name for check in CHECKS]
    assert sorted(names) == sorted(CAUSES_FIRST)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("spoils", [(), (slow, _throttled, _low_power), (_full, _crash_loop), (_log_errors,)])
def test_the_document_is_as_its_schema_says(spoils: tuple[Callable[[Facts], object], ...]) -> None:
    for link in (LINK, None):
        document = diagnose(judged(_spoilt(*spoils), link)).to_json()
        validate(json.loads(json.dumps(document, allow_nan=False)), "doctor")
    validate(diagnose(judged(None, replace(LINK, problem="gone", reachable=False))).to_json(), "doctor")


def test_every_check_stands_in_the_document_in_the_order_of_the_table() -> None:
    text = (DOCS / "doctor.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \|[^|]+\|[^|]+\|[^|]+\|$", text, re.MULTILINE)
    assert rows == [check.name for check in CHECKS]


@pytest.mark.parametrize(
    ("threshold", "row", "words"),
    [
        ("clock_skew_fault", "clock-skew", "more than a minute"),
        ("clock_skew_warning", "clock-skew", "more than 5 s"),
        ("disk_free_fault", "disk", "less than 64 MB"),
        ("inodes_free_fault_share", "disk", "1 % of the inodes"),
        ("disk_free_warning_share", "disk", "less than 5 %"),
        ("disk_free_warning", "disk", "2 GB"),
        ("memory_available_fault_share", "memory", "less than 5 % is available"),
        ("memory_available_warning_share", "memory", "less than 10 %"),
        ("memory_stalled_fault", "memory", "stands still 10 % of the time"),
        ("memory_stalled_warning", "memory", "waits 10 % of the time"),
        ("swapping_fault", "swap", "1,000 a second"),
        ("swapping_warning", "swap", "100 a second"),
        ("swap_used_warning_share", "swap", "90 % full"),
        ("crashes_fault", "restarts", "2 crashes"),
        ("restarts_fault", "restarts", "3 restarts"),
        ("clock_limit_warning_share", "clocks", "less than 95 %"),
        ("throttled_fault_share", "throttling", "5 % of the hour"),
        ("headroom_fault", "thermal", "less than 2"),
        ("headroom_warning", "thermal", "less than 8"),
        ("others_cores_share", "processes", "50 %"),
        ("cores_busy_warning_share", "processes", "90 %"),
        ("latency_ratio_fault", "latency", "2 times"),
        ("latency_ratio_warning", "latency", "1.5 times"),
        ("latency_difference", "latency", "0.5 ms"),
        ("latency_requests", "latency", "100 requests"),
        ("gate_runs", "latency", "100 runs"),
        ("failed_fault_share", "requests", "1 %"),
        ("failed_least", "requests", "three"),
        ("log_errors_age", "logs", "last day"),
        ("recorder_silent", "recorder", "2 minutes"),
        ("recorder_cost_share", "recorder", "1 % of a core"),
        ("cgroup_used_warning_share", "memory", "at its limit"),
    ],
)
def test_the_lines_that_the_document_names_are_those_of_the_table(threshold: str, row: str, words: str) -> None:
    text = (DOCS / "doctor.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith(f"| `{row}` |"))
    assert words in line
    value = THRESHOLDS[threshold].value
    said = re.search(r"\d[\d,.]*", words)
    if said is not None:
        figure = float(said[0].replace(",", "").rstrip("."))
        assert any(value == pytest.approx(figure * unit) for unit in (1, 0.01, 60, 1e6, 1e9)), (value, figure)


def test_every_line_that_is_drawn_is_in_the_document() -> None:
    marks = test_the_lines_that_the_document_names_are_those_of_the_table.pytestmark  # type: ignore[attr-defined]
    assert {case[0] for case in marks[0].args[1]} == set(THRESHOLDS)
    assert all(each.reason and each.unit for each in THRESHOLDS.values())


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**19), 10**19) | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
_PATHS = [(name, key) for name in healthy()["collectors"] for key in data(healthy(), name)]


def _replace_somewhere(draw: Any, value: Any) -> Any:
    """The value with something else in one place, anywhere below it."""
    if draw(st.integers(0, 3)) == 0 or not isinstance(value, (dict, list)) or not value:
        return draw(_JSON)
    if isinstance(value, dict):
        key = draw(st.sampled_from(sorted(value)))
        return {**value, key: _replace_somewhere(draw, value[key])}
    place = draw(st.integers(0, len(value) - 1))
    return [*value[:place], _replace_somewhere(draw, value[place]), *value[place + 1 :]]


@st.composite
def _lies(draw: Any) -> Facts:
    document = _spoilt(*draw(st.lists(st.sampled_from([slow, _throttled, _corrupt, _full, _crash_loop]), max_size=2)))
    for _ in range(draw(st.integers(1, 4))):
        name, key = draw(st.sampled_from(_PATHS))
        found = document["collectors"][name]["data"]
        if isinstance(found, dict):
            found[key] = _replace_somewhere(draw, found.get(key))
    return document


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_lies())
def test_whatever_a_device_tells_every_check_says_something_in_one_line(document: Facts) -> None:
    for link in (LINK, None):
        found = diagnose(judged(document, link)).to_json()
        assert {each["check"] for each in found["findings"]} == {check.name for check in CHECKS}
        for each in found["findings"]:
            assert each["evidence"]
            for text in (each["evidence"], each["cause"], each["cure"], each["brief"]):
                assert text.isprintable() or not text, text


@settings(max_examples=10, deadline=None)
@given(_lies())
def test_whatever_a_device_tells_can_be_shown(document: Facts) -> None:
    found = diagnose(judged(document)).to_json()
    assert _told(found)
    assert doctor_html(found)


@pytest.mark.parametrize("body", [None, [], "facts", {}, {"kedge_facts": 1}, {"kedge_facts": 1, "collectors": []}])
def test_what_is_no_document_of_facts_is_refused(body: Any) -> None:
    with pytest.raises(BadInputError, match="no document of facts"):
        evidence_of("nano", body)


@pytest.mark.parametrize("version", [2, None, True, "1"])
def test_facts_of_another_form_are_refused(version: Any) -> None:
    with pytest.raises(BadInputError, match="this kedge reads 1"):
        evidence_of("nano", {**healthy(), "kedge_facts": version})


def test_figures_that_no_json_holds_are_not_passed_on() -> None:
    document = healthy()
    data(document, "memory")["available_bytes"] = float("nan")
    data(document, "recorder")["hour"]["throttled_share"] = float("inf")
    json.dumps(diagnose(judged(document)).to_json(), allow_nan=False)


def test_the_first_cause_and_its_cure_stand_at_the_top_of_the_text() -> None:
    lines = _told(diagnose(judged(_spoilt(slow, _throttled, _low_power))).to_json()).strip().splitlines()
    assert lines[0] == "✗ fault: nano: power mode 15W, was MAXN_SUPER when what is live was built"
    assert lines[2].split() == ["cure", "ssh", "-t", "kedge@192.0.2.7", "'sudo", "nvpmodel", "-m", "2'"]
    assert lines[-1] == "23 ok, 0 warnings, 3 faults, 0 unknown; the device took 1.4 s"


def test_a_cure_is_not_broken_by_a_narrow_terminal() -> None:
    document = _spoilt(_full)
    cure = diagnose(judged(document)).findings[3].cure
    assert len(cure) > 60
    assert cure in _told(diagnose(judged(document)).to_json(), width=60)


def test_checks_that_could_not_be_made_for_one_reason_are_one_line() -> None:
    text = _told(diagnose(judged(None, replace(LINK, reachable=False, problem="timed out"))).to_json())
    assert re.search(r"– unknown +\d\d checks +not looked at: there is no connection", text)


def test_nothing_is_told_by_colour_alone() -> None:
    text = _told(diagnose(judged(_spoilt(_full, _log_errors), None)).to_json())
    assert {"✓ ok", "✗ fault", "! warning", "– unknown"} <= set(re.findall(r"[✓✗!–] \w+", text))


def test_the_page_tells_what_the_document_tells() -> None:
    document = diagnose(judged(_spoilt(slow, _throttled))).to_json()
    page = doctor_html(document)
    for each in document["findings"]:
        assert each["title"] in page.replace("&#39;", "'")
    assert "Something is at fault" in page
    assert "throttled 31 % of the last hour" in page
    assert page == doctor_html(document)
    assert "All is well" in doctor_html(diagnose(judged(healthy())).to_json())


def test_the_page_escapes_what_a_device_tells() -> None:
    document = healthy()
    data(document, "logs")["errors"] = [{"at": None, "line": "<script>alert(1)</script>"}]
    page = doctor_html(diagnose(judged(document)).to_json())
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_a_device_or_a_snapshot_is_asked_for_and_not_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == ExitCode.USAGE
    assert main(["doctor", "file", "--on", "local"]) == ExitCode.USAGE
    assert "name a device" in capsys.readouterr().err


def _snapshot(path: Path, document: Facts) -> Path:
    """A snapshot's file with these facts (kedge_agent.formats.snapshots)."""
    head = {key: document[key] for key in ("at_s", "agent_version", "state", "seconds")} | {"kedge_snapshot": 1}
    members = {"begun.json": head}
    members |= {f"facts/{name}.json": outcome for name, outcome in document["collectors"].items()}
    members["manifest.json"] = head
    with tarfile.open(path, "w:gz") as archive:
        for name, body in members.items():
            content = json.dumps(body).encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, BytesIO(content))
    return path


def test_a_snapshot_is_judged_as_the_device_would_be_but_for_the_way_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoilt = _spoilt(slow, _throttled, _low_power)
    path = _snapshot(tmp_path / "nano-20261126T041200Z.kedge-snapshot.tar.gz", spoilt)
    assert main(["doctor", str(path), "--json"]) == ExitCode.DOCTOR
    document = json.loads(capsys.readouterr().out)
    validate(document, "doctor")
    live = {each.check: each.result for each in diagnose(judged(spoilt)).findings}
    told = {each["check"]: each["result"] for each in document["findings"]}
    offline = {"reachability", "host-key", "clock-skew"}
    assert {check for check in told if told[check] != live[check]} == offline
    assert {told[check] for check in offline} == {"unknown"}
    assert document["device"] == "nano"
    # There is no address in it: the command is to be run on the device.
    assert document["first_cause"]["cure"] == "sudo nvpmodel -m 2"
    well = _snapshot(tmp_path / "renamed.tar.gz", healthy())
    assert main(["doctor", str(well), "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["device"] == "DEVICE"


def test_what_is_no_snapshot_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.tar.zst"
    assert main(["doctor", str(path)]) == ExitCode.BAD_INPUT
    path.write_bytes(b"no snapshot")
    assert main(["doctor", str(path), "--json"]) == ExitCode.BAD_INPUT
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == ExitCode.BAD_INPUT


def test_an_unknown_device_is_bad_input_and_no_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inventory = tmp_path / "devices.toml"
    inventory.write_text("")
    assert main(["doctor", "--on", "nanoo", "--inventory", str(inventory)]) == ExitCode.BAD_INPUT
    assert "no device named" in capsys.readouterr().err


def test_a_device_that_does_not_answer_is_the_result_with_its_own_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inventory = tmp_path / "devices.toml"
    inventory.write_text('[nano]\nhost = "127.0.0.1"\nport = 1\nuser = "kedge"\ntarget = "orin-nano-8gb"\n')
    page = tmp_path / "page.html"
    given = ["doctor", "--on", "nano", "--inventory", str(inventory), "--html", str(page), "--json"]
    assert main(given) == ExitCode.DOCTOR
    document = json.loads(capsys.readouterr().out)
    validate(document, "doctor")
    assert document["first_cause"]["check"] == "reachability"
    assert document["first_cause"]["evidence"].endswith("cannot be reached: Connection refused")
    assert document["first_cause"]["cure"] == "ssh -v -p 1 kedge@127.0.0.1 true"
    assert "cannot be reached" in page.read_text(encoding="utf-8")


def _told(document: Facts, width: int = 120) -> str:
    out = StringIO()
    show_doctor(document, Console(file=out, width=width, highlight=False))
    return out.getvalue()

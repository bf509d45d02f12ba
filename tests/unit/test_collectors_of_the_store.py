"""What is told of releases, engines, deploys, recordings and logs, by what lies in the state folder alone."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kedge.release.bundle import Release
from kedge_agent.diagnose.agent_log import read_entries
from kedge_agent.diagnose.collectors import agent, engines, files, journal, logs, recorder, releases
from kedge_agent.diagnose.device import Device, UnavailableError
from kedge_agent.diagnose.logs import write_logs
from kedge_agent.engine.library import library_of
from kedge_agent.formats.parts import Part, read_parts
from kedge_agent.formats.recording import Histogram, ModelRecord, Record, Start
from kedge_agent.formats.snapshots import is_member_name
from kedge_agent.measure.recorder.places import MINUTES, SECONDS, boot_id, recorder_folder
from kedge_agent.measure.recorder.ring import Ring
from kedge_agent.store.crashes import Marks, read_marks
from kedge_agent.store.journal import Journal
from kedge_agent.store.models import ModelState, write_state
from tests.loopback.faults.test_wrong_target import RTX, engine, with_engine
from tests.support.bad_models import obedient_release
from tests.support.environment import tensorrt_rtx
from tests.unit.test_crashes import OTHER, RELEASE, dies
from tests.unit.test_store import deliver

LOGGED = "2026-11-26T05:06:57.123Z {level} kedge.http {said}\n"


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path / "state")


@pytest.fixture
def served(device: Device, release: Release) -> Release:
    """A release that the store has, and that its model serves."""
    deliver(device.layout, release)
    write_state(device.layout, "digits", ModelState(release.digest, None, 1))
    return release


def only(device: Device) -> dict[str, Any]:
    """What is told of the one release of the one model."""
    [model] = releases.collect(device).data["models"]
    [found] = model["releases"]
    return dict(found)


def test_a_release_that_serves_is_read_whole(device: Device, served: Release) -> None:
    found = only(device)
    assert (found["release"], found["role"], found["whole"], found["bad"]) == (served.digest, "current", True, [])
    assert found["checked_bytes"] == sum(entry.size_bytes for entry, _ in served.files())
    assert (found["version"], found["signed"], found["keys"], found["device_built"]) == (1, False, [], False)
    assert releases.collect(device).data["left_out"] == []


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_release_is_told_by_file_and_by_what_is_wrong(device: Device, served: Release, damage: str) -> None:
    entry, _ = max(served.files(), key=lambda each: each[0].size_bytes)
    path = device.layout.release(served.digest) / entry.name
    data = bytearray(path.read_bytes())
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    if damage == "gone":
        path.unlink()
        why = f"{entry.name} is not here"
    elif damage == "cut":
        path.write_bytes(data[:-1])
        why = f"it has {len(data) - 1} bytes, and the manifest names {len(data)}"
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        why = "it has other bytes than the manifest names"
    found = only(device)
    assert (found["whole"], found["bad"]) == (False, [{"file": entry.name, "why": why}])


def test_without_time_a_release_is_neither_whole_nor_damaged_and_is_named(device: Device, served: Release) -> None:
    found = releases.collect(Device(device.state, seconds=0.0)).data
    assert found["left_out"] == [served.digest]
    assert (found["models"][0]["releases"][0]["whole"], found["read_bytes_per_s"]) == (None, None)


def test_a_release_that_a_model_names_and_that_is_not_here_is_told(device: Device, served: Release) -> None:
    write_state(device.layout, "digits", ModelState(served.digest, "c" * 64, 1))
    [model] = releases.collect(device).data["models"]
    assert [(each["role"], each["whole"]) for each in model["releases"]] == [("current", True), ("previous", False)]
    assert model["releases"][1]["bad"] == [{"file": "manifest.json", "why": "the release is not on this device"}]


def test_a_state_or_a_manifest_that_is_damaged_is_told_and_the_rest_too(device: Device, served: Release) -> None:
    manifest = device.layout.release(served.digest) / "manifest.json"
    manifest.chmod(0o600)
    manifest.write_bytes(b"{}")
    found = only(device)
    assert (found["whole"], found["bad"][0]["file"]) == (False, "manifest.json")
    (device.layout.model("digits") / "state.json").write_text("{")
    [model] = releases.collect(device).data["models"]
    assert model["state"] is None
    assert "state.json is damaged" in model["problem"]


def test_an_engine_is_held_against_its_passport_and_against_this_device(device: Device, tmp_path: Path) -> None:
    tensorrt_rtx()
    own = library_of("tensorrt-rtx").version()
    other = {**RTX, "runtime_version": "1.2.3.4"}
    cases = [
        ({**RTX, "runtime_version": own}, tuple(map(int, str(own).split("."))), True, ""),
        (other, (1, 2, 3, 4), False, "TensorRT for RTX 1.2.3.4, CC 8.9; device: TensorRT for RTX"),
        (other, (1, 7, 1, 116), False, "an engine of TensorRT for RTX 1.7.1.116, CC 8.9, its passport says"),
        ({**RTX, "runtime": "tensorrt"}, (10, 3, 0, 30), False, "its passport says TensorRT 1.7.1.116"),
    ]
    first = obedient_release(tmp_path, version=1)
    for place, (passport, version, fits, why) in enumerate(cases):
        content = engine(b"vtrt", version, gpus=8)
        made = with_engine(first, tmp_path / str(place), passport, content)
        deliver(device.layout, made)
        write_state(device.layout, made.manifest.model, ModelState(made.digest, None, 0))
        [found] = engines.collect(device).data["engines"]
        assert (found["release"], found["artefact"], found["fits"]) == (made.digest, "model.engine", fits)
        assert why in "; ".join(found["refusals"])
        assert found["header"]["version"] == ".".join(map(str, version))


def test_the_journal_is_read_and_not_a_byte_of_it_is_changed(device: Device) -> None:
    written = Journal(device.layout)
    written.append("cat", RELEASE, "begun", version=3)
    written.append("cat", RELEASE, "refused", reason="p99")
    path = device.state / "journal"
    with path.open("r+b") as file:
        # As a power cut leaves it: the daemon clears this up when it begins.
        file.seek(len(path.read_bytes().rstrip(b"\0")))
        file.write(b"0000abcd {torn")
    before = path.read_bytes()
    found = journal.collect(device).data["entries"]
    assert [(each["step"], each.get("version"), each.get("reason")) for each in found] == [
        ("begun", 3, None),
        ("refused", None, "p99"),
    ]
    assert path.read_bytes() == before
    path.unlink()
    assert journal.collect(device).data["entries"] == []
    path.mkdir()
    with pytest.raises(UnavailableError, match="journal"):
        journal.collect(device)
    assert path.is_dir()


def test_what_was_being_computed_when_the_daemon_was_killed_is_told_and_counted_by_nobody(device: Device) -> None:
    assert read_marks(device.layout, None) is None
    dies(device.state, inside=True)
    before = (device.state / "running").read_bytes()
    found = read_marks(device.layout, boot_id())
    assert found == {
        "unclean": True,
        "anonymous": 0,
        "suspects": [],
        "computing": [{"model": "cat", "release": RELEASE}],
    }
    assert (device.state / "running").read_bytes() == before
    assert read_marks(device.layout, "another boot") is None
    Marks(device.layout)
    found = read_marks(device.layout, boot_id())
    assert found is not None
    assert found["suspects"] == [{"model": "cat", "release": RELEASE, "crashes": 1, "doubts": 0}]
    assert OTHER not in json.dumps(found)


def test_where_no_agent_runs_the_state_folder_tells_what_it_can(device: Device) -> None:
    device.state.mkdir()
    (device.state / "agent.json").write_text('{"drain": 3}')
    (device.state / "agent.lock").write_text("1")
    dies(device.state, inside=False)
    found = agent.collect(device).data
    assert (found["running"], found["pid"], found["responds"], found["info"]) == (False, None, None, None)
    assert "there is no setting drain" in found["settings"]["problem"]
    assert found["crashes"]["unclean"] is True
    assert (found["service"], found["starts"]) == (None, None)
    assert found["service_why"]
    assert found["starts_why"] == "no recorder has written any"


def test_a_recording_is_summed_up_since_the_deploy_and_beside_what_it_was_then(device: Device, served: Release) -> None:
    deploys = Journal(device.layout)
    figures = {"runs": 250, "median_ms": 2.0, "p99_ms": 3.0}
    deploys.append("digits", served.digest, "gated", gates=[{"gate": "latency", "passed": True, "figures": figures}])
    deploys.append("digits", served.digest, "switched")
    now, up = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
    for ring in (SECONDS, MINUTES):
        to = Ring(recorder_folder(device.state) / ring, 4_000_000, boot_id())
        to.append(Record(now, boot_id(), up, 0.0, start=Start("0.1.0", 1, "after-crash")))
        for second in range(2, 6):
            models = {
                "digits": ModelRecord(served.digest, 1, _times(5_000_000), _times(4_000_000), {"busy": 1}),
                "other": ModelRecord(OTHER, 1, _times(900_000_000), _times(900_000_000)),
            }
            to.append(Record(now + second, boot_id(), up + second, 1.0, models, {"temperature.cpu": 40.0 + second}))
        to.close()
    found = recorder.collect(device).data
    assert found["hour"]["models"]["other"]["requests"] == 400
    assert found["recent"] == found["hour"]
    assert found["status"]["files"] == 2
    [(name, since)] = found["since_deploy"].items()
    assert (name, list(since["models"])) == ("digits", ["digits"])
    assert since["models"]["digits"]["requests"] == 400
    assert since["models"]["digits"]["total_p99_ms"] == pytest.approx(5.0, rel=0.02)
    assert since["at_deploy"]["gate"] == figures
    assert since["at_deploy"]["first"]["models"]["digits"]["failures"] == {"busy": 4}
    assert [each["how"] for each in agent.collect(device).data["starts"]] == ["after-crash"]


def _times(ns: int) -> Histogram:
    times = Histogram()
    for _ in range(100):
        times.record(ns)
    return times


def test_where_nothing_was_recorded_that_is_said_and_no_figure_is_zero(device: Device) -> None:
    found = recorder.collect(device).data
    assert (found["hour"], found["since_deploy"], found["status"]["last_s"]) == (None, {}, None)
    assert found["hour_why"].startswith("nothing was ever recorded")
    assert (found["recent"], found["recent_why"]) == (None, found["hour_why"])


def write_log(device: Device) -> None:
    device.state.mkdir(exist_ok=True)
    (device.state / "agent.log.1").write_text(
        "2026-11-26 04:00:00,500 WARNING kedge.old written before times were in UTC\n"
        + LOGGED.format(level="ERROR", said="oldest")
    )
    (device.state / "agent.log").write_text(
        LOGGED.format(level="INFO", said="nothing")
        + LOGGED.format(level="ERROR", said="a request failed")
        + "Traceback (most recent call last):\n  File x\nValueError: shapes \x1b[31mdiffer\n"
        + LOGGED.format(level="CRITICAL", said="evil \x1b]0;title\x07 \u202e txt")
    )
    (device.state / "start.log").write_text("kedge-agent: error: \x1b[2Jport is taken\n")


def test_errors_of_all_files_of_the_log_are_told_with_what_was_raised(device: Device) -> None:
    write_log(device)
    found = logs.collect(device).data
    at = "2026-11-26T05:06:57.123Z"
    assert found["errors"] == [
        {"at": at, "line": "ERROR kedge.http oldest"},
        {"at": at, "line": "ERROR kedge.http a request failed | ValueError: shapes �[31mdiffer"},
        {"at": at, "line": "CRITICAL kedge.http evil �]0;title� � txt"},
    ]
    assert found["start_log"] == ["kedge-agent: error: �[2Jport is taken"]
    assert found["bytes"] == sum(path.stat().st_size for path in device.state.glob("agent.log*"))


def test_lines_from_before_times_were_in_utc_are_told_in_utc(device: Device) -> None:
    write_log(device)
    program = (
        "import sys; from pathlib import Path; from kedge_agent.diagnose.agent_log import read_entries; "
        "print(read_entries(Path(sys.argv[1]))[0].shown[0])"
    )
    command = [sys.executable, "-c", program, str(device.state)]
    said = subprocess.run(command, env={**os.environ, "TZ": "Asia/Tokyo"}, capture_output=True, text=True, check=True)
    assert said.stdout == "2026-11-25T19:00:00.500Z WARNING kedge.old written before times were in UTC\n"


def told(device: Device, *, since_s: int, lines: int) -> tuple[list[str], dict[str, Any]]:
    """Lines of `diagnose logs`, and its END."""
    sink = io.BytesIO()
    write_logs(device.state, sink, since_s=since_s, lines=lines)
    sink.seek(0)
    parts = list(read_parts(sink.read))
    data = b"".join(body for kind, body in parts if kind is Part.DATA).decode()
    return data.splitlines(), dict(parts[-1][1])


def test_of_the_log_the_newest_lines_of_the_time_that_is_asked_for_come(device: Device) -> None:
    write_log(device)
    age_s = int(time.time() - (read_entries(device.state)[-1].at_s or 0))
    lines, end = told(device, since_s=age_s + 60, lines=4)
    assert lines == [
        "Traceback (most recent call last):",
        "  File x",
        "ValueError: shapes �[31mdiffer",
        "2026-11-26T05:06:57.123Z CRITICAL kedge.http evil �]0;title� � txt",
    ]
    assert end == {"lines": 4, "left_out": 3}
    assert told(device, since_s=1, lines=100)[0] == [] or age_s < 1


def test_a_log_that_is_not_there_is_no_error_and_one_that_cannot_be_read_is(device: Device) -> None:
    assert told(device, since_s=10, lines=10) == ([], {"lines": 0, "left_out": 0})
    found = logs.collect(device).data
    assert (found["errors"], found["bytes"]) == ([], None)
    (device.state / "agent.log").mkdir(parents=True)
    with pytest.raises(UnavailableError):
        logs.collect(device)


def test_a_snapshot_s_files_have_names_that_it_takes_and_are_what_lies_there(device: Device, served: Release) -> None:
    write_log(device)
    (device.state / "agent.json").write_text('{"drain_s": 3}')
    Journal(device.layout).append("digits", served.digest, "begun")
    collected = files.collect_store(device)
    members = dict(collected.members)
    assert all(map(is_member_name, members))
    assert {each["name"]: each["bytes"] for each in collected.data["files"]} == {k: len(v) for k, v in members.items()}
    assert members[f"store/releases/{served.digest}/manifest.json"] == served.manifest_bytes
    assert members["config/settings.json"] == b'{"drain_s": 3}'
    assert members["store/journal"].endswith(b"}\n")
    assert members["logs/agent.log.1"] == (device.state / "agent.log.1").read_bytes()
    assert collected.data["left_out"] == []

"""A snapshot of a device that is well, and of one that is stopped, hung, dead or full: a useful file each time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kedge.cli.app import root
from kedge.diagnose.evidence import evidence_of
from kedge.diagnose.opened import Opened, open_snapshot
from kedge.diagnose.opened_page import snapshot_page
from kedge.diagnose.snapshot import Taken, take_snapshot
from kedge.release.bundle import Release
from kedge.transport.local import LocalAgent
from kedge_agent.diagnose.collectors.table import COLLECTORS, FACTS
from kedge_agent.formats.parts import Part, read_parts
from kedge_agent.formats.snapshots import BEGUN, MANIFEST
from tests.support.deploys import Device
from tests.support.pages import SCRIPT, Page
from tests.support.powercut import mounted
from tests.support.stores import fill, small_disk

# Far from what any of these takes, so that a busy machine is no failure; a snapshot ends within it by itself.
SECONDS = 30


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    state = tmp_path / "device"
    state.mkdir(mode=0o700)
    (state / "agent.json").write_text('{"releases": {"probation_s": 0}}')
    made = Device(state)
    yield made
    made.kill()


def snapshot_of(state: Path, folder: Path, seconds: float = SECONDS) -> tuple[Taken, Opened]:
    taken = take_snapshot(LocalAgent(state), folder=folder, seconds=seconds)
    return taken, open_snapshot(taken.path)


def data_of(opened: Opened, collector: str) -> dict[str, Any]:
    outcome = opened.facts()["collectors"][collector]
    assert outcome["status"] == "ok", outcome
    data: dict[str, Any] = outcome["data"]
    return data


def page_of(text: str) -> Page:
    """The page, which fetches nothing; logs in it may tell of addresses, as text."""
    page = Page(text)
    assert not {"img", "iframe", "link", "object", "embed", "base", "form"} & set(page.tags)
    assert not page.outside
    assert page.scripts == [SCRIPT]
    assert "default-src 'none'" in page.policy
    return page


def assert_useful(taken: Taken, opened: Opened, release: Release | None) -> None:
    """It is whole, the doctor can judge it, a person can read it, and the store's evidence is in it."""
    assert taken.cut is None
    assert opened.problems == ()
    assert opened.manifest is not None
    rows = opened.manifest["collectors"]
    assert list(rows) == [each.name for each in COLLECTORS]
    assert {name for name, row in rows.items() if row["status"] in ("failed", "timeout")} == set()
    assert {f"facts/{each.name}.json" for each in FACTS} <= set(opened.members)
    assert [*opened.members][:: len(opened.members) - 1] == [BEGUN, MANIFEST]
    assert evidence_of("device", opened.facts()).told
    page_of(snapshot_page(opened))
    if release is not None:
        assert opened.member(f"store/releases/{release.digest}/manifest.json") == release.manifest_bytes
        (model,) = data_of(opened, "releases")["models"]
        assert model["state"]["current"] == release.digest


def test_a_device_that_is_well_is_told_whole(device: Device, release: Release, tmp_path: Path) -> None:
    device.start()
    device.serve(release)
    taken, opened = snapshot_of(device.state, tmp_path)
    agent = data_of(opened, "agent")

    assert_useful(taken, opened, release)
    assert taken.path.name.startswith("local-")
    assert taken.path.name.endswith(".kedge-snapshot.tar.zst")
    assert opened.device == "local"
    assert (agent["running"], agent["responds"], agent["ready"]) == (True, True, True)
    assert opened.recording("minutes")
    assert taken.end == opened.manifest


def test_the_map_stays_beside_the_file_and_only_its_owner_may_read_either(
    device: Device, release: Release, tmp_path: Path
) -> None:
    device.start()
    with (device.state / "agent.log").open("a") as log:
        log.write("2026-11-26T04:52:20.000Z ERROR kedge.test: no route to 203.0.113.77\n")
    out = tmp_path / "mine.kedge-snapshot.tar.zst"
    taken = take_snapshot(LocalAgent(device.state), out, seconds=SECONDS)
    assert taken.map_path == tmp_path / "mine.kedge-snapshot.tar.zst.map.json"
    body = json.loads(taken.map_path.read_text())

    assert taken.path == out
    assert "do not send" in body["note"]
    assert {"value": "203.0.113.77", "first_in": "facts/logs.json"} in body["map"].values()
    assert {path.stat().st_mode & 0o777 for path in (out, taken.map_path)} == {0o600}
    assert sorted(path.name for path in tmp_path.glob("*napshot*")) == [out.name, taken.map_path.name]
    assert b"203.0.113.77" not in b"".join(open_snapshot(out).members.values())


def test_an_agent_that_is_stopped_is_told_as_stopped(device: Device, release: Release, tmp_path: Path) -> None:
    device.start()
    device.serve(release)
    device.stop()
    taken, opened = snapshot_of(device.state, tmp_path)

    assert_useful(taken, opened, release)
    assert data_of(opened, "agent")["running"] is False


def test_an_agent_that_hangs_is_told_as_one_that_does_not_answer(
    device: Device, release: Release, tmp_path: Path
) -> None:
    agent = device.start()
    device.serve(release)
    agent.process.send_signal(signal.SIGSTOP)
    taken, opened = snapshot_of(device.state, tmp_path)
    found = data_of(opened, "agent")

    assert_useful(taken, opened, release)
    assert (found["running"], found["process_state"], found["responds"]) == (True, "T", False)
    assert b"agent.log" in b" ".join(name.encode() for name in opened.members)


def test_an_agent_that_was_killed_leaves_its_recording_behind(device: Device, release: Release, tmp_path: Path) -> None:
    device.start()
    device.serve(release)
    device.kill()
    taken, opened = snapshot_of(device.state, tmp_path)

    assert_useful(taken, opened, release)
    assert data_of(opened, "agent")["running"] is False
    assert opened.recording("minutes")


def test_a_full_disk_is_told_and_nothing_is_written_to_it(release: Release, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64 << 20) as disk:
        device = Device(disk / "state")
        try:
            device.start()
            device.serve(release)
            fill(disk)
            taken, opened = snapshot_of(device.state, tmp_path)
            state = next(each for each in data_of(opened, "disk")["file_systems"] if each["what"] == "state")

            assert_useful(taken, opened, release)
            assert state["free_bytes"] == 0
        finally:
            device.kill()


@pytest.mark.slow
def test_of_a_device_whose_disk_gives_no_answer_the_rest_comes_home_in_time(tmp_path: Path) -> None:
    with mounted(tmp_path) as disk:
        state = disk.folder / "state"
        state.mkdir()
        assert disk._process is not None
        os.kill(disk._process.pid, signal.SIGSTOP)
        try:
            taken, opened = snapshot_of(state, tmp_path, seconds=20)
            waiting = diagnoses_of(state)
        finally:
            os.kill(disk._process.pid, signal.SIGCONT)
    statuses = {name: each["status"] for name, each in opened.facts()["collectors"].items()}

    assert taken.cut is None
    assert opened.problems == ()
    assert {name for name, status in statuses.items() if status == "ok"} >= {"system", "memory", "kernel", "raw_files"}
    assert {name for name, status in statuses.items() if status != "ok"} >= {
        each.name for each in COLLECTORS if each.state
    }
    assert len(waiting) <= 1, "the one that asked whether it answers may be past killing"
    assert opened.manifest is not None
    assert opened.manifest["known"]["status"] == "ok"
    assert opened.facts()["collectors"]["agent"]["reason"].endswith(" gives no answer")


def diagnoses_of(state: Path) -> list[int]:
    """Processes that look at this device, whatever they wait for."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if b"diagnose" in words and os.fsencode(state) in words:
                found.append(int(path.parent.name))
    return found


_PROGRAM = """
import ctypes, os, sys, time
from pathlib import Path
from kedge_agent.diagnose.collectors.table import COLLECTORS
from kedge_agent.diagnose.device import Collected
from kedge_agent.diagnose.running import Collector
from kedge_agent.diagnose.snapshot import write_snapshot

def hangs(device):
    time.sleep(1000)

def crashes(device):
    os.kill(os.getpid(), 11)

def huge(device):
    return Collected({}, [("big.txt", b"x " * (9 << 20)), ("../../etc/passwd", b"x"), ("twice", b"1"), ("twice", b"2")])

def strange(device):
    nested = []
    for _ in range(300):
        nested = [nested]
    return Collected({"nested": nested, "text": chr(0xd800) + chr(0), "number": 10**30}, [("odd.json", b"[" * 100000)])

planted = tuple(Collector(each.__name__, each, 2.0) for each in (hangs, crashes, huge, strange))
write_snapshot(Path(sys.argv[1]), sys.stdout.buffer, int(sys.argv[2]), planted + COLLECTORS)
"""


def planted(state: Path, seconds: int) -> tuple[bytes, dict[str, Any]]:
    state.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONFAULTHANDLER": ""}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(state), str(seconds)],
        stdout=subprocess.PIPE,
        check=True,
        timeout=120,
        env=environment,
    )
    view = memoryview(done.stdout)

    def exactly(size: int) -> bytes:
        nonlocal view
        out, view = bytes(view[:size]), view[size:]
        return out

    parts = list(read_parts(exactly))
    assert [kind for kind, _ in parts[-2:]] == [Part.PRIVATE, Part.END]
    end: dict[str, Any] = parts[-1][1]
    return b"".join(body for kind, body in parts if kind is Part.DATA), end


def test_a_collector_that_hangs_crashes_or_brings_nonsense_is_listed_and_the_others_are_told(tmp_path: Path) -> None:
    data, end = planted(tmp_path / "state", 40)
    path = tmp_path / "planted.kedge-snapshot.tar.zst"
    path.write_bytes(data)
    opened = open_snapshot(path)
    rows = end["collectors"]

    assert opened.problems == ()
    assert (rows["hangs"]["status"], rows["hangs"]["reason"]) == ("timeout", "no end within 2 s")
    assert rows["crashes"]["status"] == "failed"
    assert "SIGSEGV" in rows["crashes"]["reason"]
    assert [each["name"] for each in rows["huge"]["members"]] == ["facts/huge.json", "big.txt", "twice"]
    assert [each["why"] for each in rows["huge"]["left_out"]] == [
        "its name is none of a member",
        "another has its name",
    ]
    assert len(opened.member("big.txt") or b"") < 5 << 20
    assert {rows[each.name]["status"] for each in FACTS} <= {"ok", "unavailable"}
    assert opened.document("facts/hangs.json") == {
        "status": "timeout",
        "reason": "no end within 2 s",
        "ms": rows["hangs"]["ms"],
        "data": None,
    }


def test_with_hardly_any_time_the_file_is_whole_and_says_what_was_cut(tmp_path: Path) -> None:
    data, end = planted(tmp_path / "state", 1)
    path = tmp_path / "short.kedge-snapshot.tar.zst"
    path.write_bytes(data)

    assert open_snapshot(path).problems == ()
    assert end["collectors"]["hangs"]["status"] == "timeout"
    assert list(end["collectors"])[-1] == COLLECTORS[-1].name


def test_a_device_that_goes_away_midway_leaves_what_came_until_then(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process on the device is killed while the recording is collected, after the facts were sent."""
    device.start()
    transport = LocalAgent(device.state)

    def kill_it(progress: Any) -> None:
        if progress["collector"] == "recording_files":
            for pid in _children(os.getpid()):
                if b"diagnose" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)

    out = tmp_path / "cut.kedge-snapshot.tar.zst"
    taken = take_snapshot(transport, out, seconds=SECONDS, note=kill_it)
    opened = open_snapshot(out)

    assert taken.cut is not None
    assert taken.map_path is None
    assert opened.problems
    assert data_of(opened, "agent")["running"] is True
    assert "not whole" in page_of(snapshot_page(opened)).text


def _children(pid: int) -> list[int]:
    return [
        int(word) for task in Path(f"/proc/{pid}/task").iterdir() for word in (task / "children").read_text().split()
    ]


def test_one_command_takes_it_and_another_opens_it(device: Device, release: Release, tmp_path: Path) -> None:
    runner = CliRunner()
    out = tmp_path / "cli.kedge-snapshot.tar.zst"
    done = runner.invoke(root, ["snapshot", "--on", "local", "-o", str(out), "--json"])
    taken = json.loads(done.stdout)
    opened = runner.invoke(root, ["snapshot", "open", str(out)])
    told = runner.invoke(root, ["snapshot", "open", str(out), "--json"])

    assert done.exit_code == 0, done.output
    assert (taken["file"], taken["cut"]) == (str(out), None)
    assert taken["manifest"]["collectors"]["system"]["status"] == "ok"
    assert opened.exit_code == 0, opened.output
    page_of((tmp_path / "cli.kedge-snapshot.tar.zst.html").read_text())
    assert json.loads(told.stdout)["facts"]["collectors"]["system"]["data"]["os"]
    assert runner.invoke(root, ["snapshot"]).exit_code == 2

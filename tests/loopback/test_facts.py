"""`kedge-agent diagnose facts` and `logs` beside the real agent: when it serves, hangs, is dead, and is locked."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kedge.deploy.push import deploy
from kedge.diagnose.asking import ask
from kedge.errors import KedgeError
from kedge.release.bundle import Release
from kedge.transport.base import Deadline
from kedge.transport.local import LocalAgent
from kedge_agent.diagnose.collectors.table import FACTS
from kedge_agent.formats.parts import Part, read_parts
from tests.support.daemon import Agent, spinning
from tests.support.powercut import mounted
from tests.support.schemas import validate

NAMES = [collector.name for collector in FACTS]


@pytest.fixture(scope="module")
def spin(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return spinning(tmp_path_factory.mktemp("spin"))


@pytest.fixture
def agent(tmp_path: Path, spin: Release) -> Iterator[Agent]:
    """The real agent, which serves a model."""
    agent = Agent(tmp_path / "state")
    try:
        agent.serve(spin)
        yield agent
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(agent.pid, signal.SIGCONT)
        agent.close()


def diagnosed(state: Path, *words: str) -> tuple[list[tuple[Part, Any]], bytes]:
    """Parts of a diagnosis, as the device writes them, and its data."""
    command = [sys.executable, "-m", "kedge_agent", "--state", str(state), "diagnose", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd="/")
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"KEDGE ")
    parts = list(read_parts(process.stdout.read))
    assert process.stdout.read() == b""
    process.stdout.close()
    assert process.wait(60) == 0
    return parts, b"".join(body for kind, body in parts if kind is Part.DATA)


def facts_of(state: Path) -> dict[str, Any]:
    """The facts of a device, which are always a whole document; data by collector."""
    parts, data = diagnosed(state, "facts")
    document = json.loads(data)
    validate(document, "facts")
    assert sorted(body["collector"] for kind, body in parts if kind is Part.PROGRESS) == sorted(NAMES)
    assert parts[-1] == (Part.END, {"seconds": document["seconds"]})
    assert list(document["collectors"]) == NAMES
    return {name: outcome["data"] for name, outcome in document["collectors"].items() if outcome["status"] == "ok"}


def test_of_a_device_that_serves_every_collector_tells_and_all_is_well(agent: Agent, spin: Release) -> None:
    agent.spin(10)
    found = facts_of(agent.state)
    assert list(found) == NAMES
    daemon = found["agent"]
    assert (daemon["pid"], daemon["running"], daemon["responds"], daemon["ready"]) == (agent.pid, True, True, True)
    assert daemon["info"]["pid"] == agent.pid
    assert daemon["status"]["models"][0]["model"] == "spin"
    assert (daemon["safe_mode"], daemon["settings"]["problem"], daemon["upgrade_last"]) == (None, None, None)
    [model] = found["releases"]["models"]
    assert (model["state"]["current"], model["releases"][0]["whole"]) == (spin.digest, True)
    assert [entry["step"] for entry in found["journal"]["entries"]][:2] == ["begun", "gated"]
    assert found["engines"]["engines"] == []
    assert found["disk"]["store"]["releases"] == 1
    assert {"pid": agent.pid, "state": str(agent.state)}.items() <= next(
        each.items() for each in found["installs"]["agents"] if each["pid"] == agent.pid
    )


def test_an_agent_that_computes_is_told_from_another_that_does(agent: Agent) -> None:
    hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        top = {each["pid"]: each for each in facts_of(agent.state)["processes"]["top"]}
    finally:
        hog.kill()
        hog.wait()
    assert top[hog.pid]["ours"] is False
    assert top[hog.pid]["cores"] > 0.05
    assert all(each["ours"] for pid, each in top.items() if pid == agent.pid)


def test_of_an_agent_that_hangs_everything_else_is_told(agent: Agent, spin: Release) -> None:
    os.kill(agent.pid, signal.SIGSTOP)
    found = facts_of(agent.state)
    daemon = found["agent"]
    assert (daemon["running"], daemon["responds"], daemon["process_state"]) == (True, False, "T")
    assert (daemon["info"], daemon["status"], daemon["ready"]) == (None, None, None)
    assert daemon["responds_why"] == "no answer within 2 s"
    assert found["releases"]["models"][0]["releases"][0]["whole"] is True
    assert list(found) == NAMES


def test_an_agent_that_was_killed_is_told_from_one_that_was_stopped(agent: Agent) -> None:
    agent.process.send_signal(signal.SIGTERM)
    assert agent.ends()[0] == 0
    daemon = facts_of(agent.state)["agent"]
    assert (daemon["running"], daemon["pid"], daemon["responds"]) == (False, None, None)
    assert daemon["crashes"]["unclean"] is False
    again = Agent(agent.state)
    again.process.kill()
    again.ends()
    daemon = facts_of(agent.state)["agent"]
    assert (daemon["running"], daemon["crashes"]["unclean"]) == (False, True)
    assert daemon["process_state"] is None


def test_a_device_without_an_agent_is_told_as_such(tmp_path: Path) -> None:
    found = facts_of(tmp_path / "nothing")
    assert (found["agent"]["running"], found["releases"]["models"], found["journal"]["entries"]) == (False, [], [])
    assert found["disk"]["store"]["objects_bytes"] is None


@pytest.mark.slow
def test_of_a_device_whose_disk_gives_no_answer_everything_else_is_told_in_time(tmp_path: Path) -> None:
    with mounted(tmp_path) as disk:
        state = disk.folder / "state"
        state.mkdir()
        assert disk._process is not None
        os.kill(disk._process.pid, signal.SIGSTOP)
        try:
            document = json.loads(diagnosed(state, "facts", "--seconds", "5")[1])
        finally:
            os.kill(disk._process.pid, signal.SIGCONT)
    validate(document, "facts")
    outcomes = document["collectors"]
    told = {name for name, outcome in outcomes.items() if outcome["status"] == "ok"}
    assert told >= {"system", "memory", "disk", "processes", "kernel", "sensors", "runtimes"}
    assert {outcomes[name]["status"] for name in ("agent", "releases", "journal", "logs")} == {"unavailable"}
    assert outcomes["agent"]["reason"] == f"{state} gives no answer"
    first = outcomes["disk"]["data"]["file_systems"][0]
    assert (first["what"], first["free_bytes"]) == ("state", None)
    assert "gives no answer" in first["total_bytes_why"]
    assert outcomes["disk"]["data"]["file_systems"][1]["free_bytes"] is not None


def test_no_lock_of_anybody_s_is_waited_for(agent: Agent) -> None:
    with contextlib.ExitStack() as stack:
        for name in ("store.lock", "locks/spin"):
            lock = stack.enter_context((agent.state / name).open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        assert list(facts_of(agent.state)) == NAMES


def test_a_diagnosis_leaves_no_trace_in_the_state_folder(agent: Agent) -> None:
    agent.process.send_signal(signal.SIGTERM)
    agent.ends()

    def content() -> dict[str, tuple[int, float]]:
        found = [path for path in agent.state.rglob("*") if path.is_file()]
        return {str(path): (path.stat().st_size, path.stat().st_mtime) for path in found}

    before = content()
    facts_of(agent.state)
    assert content() == before


def test_the_host_asks_through_its_transport_and_hears_of_each_collector(
    local_agent: LocalAgent, release: Release
) -> None:
    deploy(local_agent, release)
    heard: list[str] = []
    data = bytearray()
    told = ask(
        local_agent,
        ["facts"],
        Deadline.after(60, "asking"),
        data.extend,
        limit_bytes=16 << 20,
        note=lambda progress: heard.append(str(progress["collector"])),
    )
    assert sorted(heard) == sorted(NAMES)
    validate(json.loads(data), "facts")
    assert told.private is None
    assert set(told.end) == {"seconds"}


def test_the_log_of_an_agent_that_hangs_is_told(agent: Agent) -> None:
    os.kill(agent.pid, signal.SIGSTOP)
    parts, data = diagnosed(agent.state, "logs", "--since", "600", "--lines", "3")
    lines = data.decode().splitlines()
    assert len(lines) == parts[-1][1]["lines"] <= 3
    assert any(" INFO kedge." in line and line[10] == "T" and line[23] == "Z" for line in lines)


def test_a_host_that_hangs_up_leaves_no_process_behind(agent: Agent) -> None:
    command = [sys.executable, "-m", "kedge_agent", "--state", str(agent.state), "diagnose", "facts"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd="/")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(60) != 0


def test_words_that_mean_nothing_are_refused_in_the_greeting(local_agent: LocalAgent) -> None:
    with pytest.raises(KedgeError, match="diagnose"):
        ask(local_agent, ["everything"], Deadline.after(60, "asking"), lambda data: None, limit_bytes=1)


def test_a_diagnosis_brings_along_neither_a_server_nor_numpy_nor_a_runtime() -> None:
    program = """
import sys
import kedge_agent.cli, kedge_agent.diagnose.facts, kedge_agent.diagnose.logs
found = [name for name in sys.modules if name.split(".")[0] in ("numpy", "onnxruntime", "pynvml", "http", "email")]
found += [name for name in sys.modules if name.startswith("kedge_agent.serving.")]
print(*sorted(found))
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    # The limits of requests are part of the settings.
    assert said.stdout.split() == ["kedge_agent.serving.limits"]

"""A real agent's history and log, by the commands: while it serves, hangs, or is dead, and out of a snapshot."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kedge.cli import main
from kedge.config import state_dir
from kedge.errors import ExitCode
from kedge.release.bundle import Release
from tests.loopback.test_recorder import infer, requests, waits
from tests.support.agents import Device
from tests.support.pages import self_contained
from tests.support.schemas import validate

pytestmark = pytest.mark.slow


@pytest.fixture
def device(release: Release) -> Iterator[Device]:
    """The device `local`, which serves, and was asked 40 times, and once for nonsense."""
    made = Device(state_dir() / "local")
    try:
        made.start()
        made.serve(release)
        infer(made, 40)
        assert made.request("POST", "/v2/models/digits/infer", {}, door="infer")[0] == 400
        waits(lambda: requests(made.state) >= 40)
        yield made
    finally:
        if made.agent is not None:
            made.agent.process.send_signal(signal.SIGCONT)
        made.kill()


def told(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """The document of `kedge history --json`."""
    capsys.readouterr()
    assert main(["history", *words, "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    validate(document, "history")
    return document


def assert_whole(document: dict[str, Any], release: Release) -> None:
    """It has the deploy, and every request."""
    assert [entry["step"] for entry in document["entries"]][-1] == "committed"
    assert document["entries_why"] is None
    figures = document["recording"]["summary"]["models"]["digits"]
    assert (figures["release"], figures["requests"], figures["failures"]) == (release.digest, 40, {"bad_input": 1})
    assert figures["total_p50_ms"] > 0
    assert (
        sum(step["models"].get("digits", {"requests": 0})["requests"] for step in document["recording"]["steps"]) == 40
    )


def test_what_was_asked_and_answered_is_in_the_history(
    device: Device, release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_whole(told(capsys, "--on", "local"), release)
    assert_whole(told(capsys, "digits", "--on", "local", "--since", "10m"), release)
    page = tmp_path / "history.html"
    assert main(["history", "--on", "local", "--html", str(page)]) == 0
    shown = capsys.readouterr().out
    for words in (
        "live",
        "latency of digits (ms)",
        "requests of digits a second",
        "memory (",
        "digits: version 1 live",
    ):
        assert words in shown, words
    assert "Latency of digits" in self_contained(page.read_text()).text
    # It was looked at, and goes on serving.
    infer(device, 1)


def test_a_dead_agent_s_history_and_log_are_told_and_the_time_since_is_a_gap_once_it_runs_again(
    device: Device, release: Release, capsys: pytest.CaptureFixture[str]
) -> None:
    device.kill()
    assert_whole(told(capsys, "--on", "local"), release)
    assert main(["logs", "--on", "local"]) == 0
    assert "serving on" in capsys.readouterr().out
    # Nobody started one to be able to look at it.
    assert main(["logs", "--on", "local", "--json"]) == 0
    log = json.loads(capsys.readouterr().out)
    assert sum("serving on" in line for entry in log["entries"] for line in entry["lines"]) == 1
    time.sleep(2.5)
    device.start()
    waits(lambda: len(told(capsys, "--on", "local")["recording"]["gaps"]) == 1)
    document = told(capsys, "--on", "local", "--since", "5m")
    assert [start["how"] for start in document["recording"]["starts"]] == ["start", "after-crash"]
    (gap,) = document["recording"]["gaps"]
    assert gap["to_s"] - gap["from_s"] > 2
    assert main(["history", "--on", "local"]) == 0
    shown = capsys.readouterr().out
    assert "started after a crash" in shown
    assert "nothing was recorded for" in shown


def test_an_agent_that_hangs_is_told_of_too(
    device: Device, release: Release, capsys: pytest.CaptureFixture[str]
) -> None:
    assert device.agent is not None
    os.kill(device.agent.pid, signal.SIGSTOP)
    assert_whole(told(capsys, "--on", "local"), release)
    assert main(["logs", "--on", "local", "--lines", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_snapshot_s_history_needs_no_device(
    device: Device, release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "nano-20261126T050000Z.kedge-snapshot.tar.zst"
    assert main(["snapshot", "--on", "local", "-o", str(file)]) == 0
    device.kill()
    document = told(capsys, "--snapshot", str(file))
    assert_whole(document, release)
    assert document["device"] == "nano"


def test_a_device_on_which_nothing_ever_ran_has_no_history(capsys: pytest.CaptureFixture[str]) -> None:
    document = told(capsys, "--on", "local")
    assert (document["entries"], document["recording"]) == ([], None)
    assert document["recording_why"]
    assert main(["history", "--on", "local"]) == 0
    assert "nothing to draw" in capsys.readouterr().out
    assert main(["logs", "--on", "local"]) == 0
    assert not (state_dir() / "local").exists()


def test_one_of_a_device_and_a_snapshot_is_named(tmp_path: Path) -> None:
    assert main(["history"]) == ExitCode.USAGE
    assert main(["history", "--on", "local", "--snapshot", str(tmp_path / "x")]) == ExitCode.USAGE
    assert main(["history", "--snapshot", str(tmp_path / "x")]) == ExitCode.BAD_INPUT
    assert main(["history", "--on", "local", "--html", str(tmp_path)]) == ExitCode.BAD_INPUT
    assert main(["history", "no model's", "--on", "local"]) == ExitCode.BAD_INPUT

"""Of the agent's log, what can be read is told, and what cannot be is said; no link leads out of the state folder."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from kedge_agent.diagnose.agent_log import log_bytes, read_entries, tail
from kedge_agent.diagnose.collectors import installs, logs
from kedge_agent.diagnose.device import Device, UnavailableError
from kedge_agent.diagnose.logs import write_logs
from kedge_agent.formats.parts import Part, read_parts
from kedge_agent.store.slots import agents_folder

LINE = "2026-11-26T05:06:57.123Z INFO kedge.http {}\n"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    made = tmp_path / "state"
    made.mkdir()
    (made / "agent.log.2").write_text(LINE.format("oldest"))
    (made / "agent.log").write_text(LINE.format("newest"))
    return made


def lines(state: Path) -> list[str]:
    sink = io.BytesIO()
    write_logs(state, sink, since_s=10**9, lines=100)
    sink.seek(0)
    return b"".join(body for kind, body in read_parts(sink.read) if kind is Part.DATA).decode().splitlines()


def test_a_rotated_log_that_is_no_file_costs_itself_and_is_said(state: Path) -> None:
    os.mkfifo(state / "agent.log.1")
    (state / "agent.log.3").mkdir()
    told = lines(state)
    assert [line.split()[-1] for line in told[:2]] == ["oldest", "newest"]
    assert [line.split(" ", 1)[1] for line in told[2:]] == [
        "ERROR kedge.diagnose agent.log.3 is left out, for it cannot be read: not a file",
        "ERROR kedge.diagnose agent.log.1 is left out, for it cannot be read: not a file",
    ]
    errors = logs.collect(Device(state)).data["errors"]
    assert "agent.log.1 is left out" in errors[-1]["line"]


def test_a_log_that_is_a_link_is_not_followed_and_that_is_said(state: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text(LINE.format("a secret of somebody else") * 1000)
    (state / "agent.log.1").symlink_to(outside)
    (state / "start.log").symlink_to(outside)
    told = lines(state)
    assert not any("secret" in line for line in told)
    assert told[-1].endswith("agent.log.1 is left out, for it cannot be read: a link, which is not followed")
    found = logs.collect(Device(state)).data
    assert found["start_log"] == []
    assert "a link" in found["start_log_why"]
    assert log_bytes(state) is not None
    assert (log_bytes(state) or 0) < 1000
    with pytest.raises(OSError, match="a link"):
        tail(state / "agent.log.1", 100)


def test_a_log_of_which_nothing_can_be_read_is_unavailable(state: Path) -> None:
    for name in ("agent.log", "agent.log.2"):
        (state / name).unlink()
        (state / name).symlink_to("/etc/hostname")
    with pytest.raises(OSError, match="a link"):
        read_entries(state)
    with pytest.raises(UnavailableError):
        logs.collect(Device(state))


def test_a_slot_whose_version_is_a_pipe_is_told_without_it(state: Path) -> None:
    package = agents_folder(Device(state).layout) / ("ab" * 32) / "site" / "kedge_agent"
    package.mkdir(parents=True)
    os.mkfifo(package / "__init__.py")
    told = [each for each in installs.collect(Device(state)).data["agents"] if each["what"] == "slot"]
    assert [each["version"] for each in told] == [None]


def test_a_command_on_the_path_that_is_a_pipe_is_passed_over(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(state / "kedge-agent")
    monkeypatch.setenv("PATH", f"{state}{os.pathsep}{os.environ['PATH']}")
    assert "agents" in installs.collect(Device(state)).data

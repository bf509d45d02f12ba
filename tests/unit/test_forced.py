"""What a key may do that is limited by `kedge-agent ssh-command`, and whose settings pushes obey."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kedge_agent.errors import AgentError
from kedge_agent.forced import allowed_command
from kedge_agent.settings import remember_config, settings_of


@pytest.mark.parametrize(
    ("asked", "arguments"),
    [
        ("exec /var/lib/kedge/bin/kedge-agent receive", ["receive"]),
        ("exec '/home/a b/kedge/bin/kedge-agent' dial-stdio infer", ["dial-stdio", "infer"]),
        ("kedge-agent dial-stdio control", ["dial-stdio", "control"]),
        ("exec /var/lib/kedge/bin/kedge-agent diagnose facts", ["diagnose", "facts"]),
        ("kedge-agent diagnose snapshot --seconds 50", ["diagnose", "snapshot", "--seconds", "50"]),
    ],
)
def test_what_the_host_asks_for_is_allowed(asked: str, arguments: list[str]) -> None:
    assert allowed_command(asked) == arguments


@pytest.mark.parametrize(
    "asked",
    [
        "",
        "exec",
        "sh",
        "/usr/lib/openssh/sftp-server",
        "kedge-agent",
        "kedge-agent --state /tmp/mine receive",
        "kedge-agent receive --state /tmp/mine",
        "kedge-agent --state /tmp/mine diagnose facts",
        "kedge-agent facts",
        "kedge-agent receive; id",
        "kedge-agent receive && id",
        "kedge-agent receive\nid",
        "kedge-agent dial-stdio",
        "kedge-agent dial-stdio other",
        "kedge-agent dial-stdio infer control",
        "kedge-agent import /etc/shadow",
        "kedge-agent ssh-command",
        "kedge-agent serve",
        "exec exec kedge-agent receive",
        "sudo kedge-agent receive",
        "$(id) receive",
        "kedge-agent 'receive",
        "/tmp/not-kedge-agent receive",
        "kedge-agent receive" + " " * 5000,
    ],
)
def test_nothing_else_is(asked: str) -> None:
    with pytest.raises(AgentError) as refused:
        allowed_command(asked)
    assert refused.value.kind == "forbidden"
    assert len(refused.value.message) < 300


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("logs --lines 5", 0),
        ("--state {other} logs", 2),
        ("logs --state {other}", 3),
        ("logs;id", 3),
        ("logs $(id)", 3),
        ("logs --lines 1e9", 3),
        ("logs --since -1", 3),
        ("", 3),
    ],
)
def test_a_diagnosis_is_of_this_agent_s_own_state_folder_whatever_words_come_with_it(
    tmp_path: Path, words: str, code: int
) -> None:
    for name in ("own", "other"):
        (tmp_path / name).mkdir()
        now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
        (tmp_path / name / "agent.log").write_text(f"{now}.000Z INFO {name}\n")
    asked = f"kedge-agent diagnose {words.format(other=tmp_path / 'other')}"
    said = subprocess.run(
        [sys.executable, "-m", "kedge_agent", "--state", str(tmp_path / "own"), "ssh-command"],
        env={**os.environ, "SSH_ORIGINAL_COMMAND": asked},
        capture_output=True,
        check=False,
    )
    assert said.returncode == code
    assert b"INFO other" not in said.stdout
    assert (b"INFO own" in said.stdout) == (code == 0)


def test_pushes_obey_the_file_that_the_daemon_was_told_to_read(tmp_path: Path) -> None:
    (tmp_path / "agent.json").write_text('{"releases": {"keep": 7}}')
    assert settings_of(tmp_path).releases.keep == 7
    config = tmp_path / "else where.json"
    config.write_text('{"releases": {"signatures": "required"}}')
    remember_config(tmp_path, config)
    assert settings_of(tmp_path).releases.required
    config.unlink()
    # It was to bind; that it is gone does not set anybody free.
    with pytest.raises(AgentError, match="there is no file of settings"):
        settings_of(tmp_path)
    remember_config(tmp_path, None)
    assert settings_of(tmp_path).releases.keep == 7


def test_settings_that_cannot_be_read_refuse_a_push(tmp_path: Path) -> None:
    (tmp_path / "agent.json").write_text('{"releases": {"signatures": "of"}}')
    with pytest.raises(AgentError, match="signatures"):
        settings_of(tmp_path)

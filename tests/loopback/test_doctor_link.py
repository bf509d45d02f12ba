"""What the doctor sees of the way to a device over a real OpenSSH server, and of the device behind it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.loopback.test_ssh import Cli, introduce, make_cli, with_agent
from tests.support.schemas import validate
from tests.support.sshd import Sshd

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cli, Sshd]]:
    """A device with an agent."""
    with with_agent(tmp_path_factory.mktemp("doctor")) as made:
        yield made


def examined(cli: Cli) -> dict[str, Any]:
    """The doctor's document, and its exit code held against it. Agents of other tests may run on this machine."""
    done = subprocess.run(
        [sys.executable, "-m", "kedge", "doctor", "--on", "bench1", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=cli.environment,
    )
    document: dict[str, Any] = json.loads(done.stdout)
    validate(document, "doctor")
    assert done.returncode == (10 if document["first_cause"] else 0), done.stderr
    return document


def result(document: dict[str, Any], check: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in document["findings"] if each["check"] == check)
    return found


def test_a_device_that_is_well_is_reached_and_told_so(device: tuple[Cli, Sshd]) -> None:
    cli, _ = device
    document = examined(cli)
    for check in (
        "reachability",
        "host-key",
        "clock-skew",
        "disk",
        "agent",
        "service",
        "restarts",
        "releases",
        "models",
    ):
        assert result(document, check)["result"] == "ok", result(document, check)
    link = result(document, "reachability")["figures"]
    assert link["connect_ms"] > link["round_trip_ms"] > 0
    # One clock, looked at twice.
    clock = result(document, "clock-skew")["figures"]
    assert abs(clock["behind_s"]) <= clock["uncertainty_s"]


def test_a_stopped_and_a_hanging_agent_are_told_apart_and_their_cures_help(device: tuple[Cli, Sshd]) -> None:
    cli, server = device
    program = f"{server.home}/.local/state/kedge/bin/kedge-agent"
    pid = int(server.run(f"cat {server.home}/.local/state/kedge/agent.lock").stdout.split()[0])
    assert server.run(f"kill -STOP {pid}").returncode == 0
    try:
        first = result(examined(cli), "service")
        # Whoever asks the agent itself is told in seconds who knows more.
        assert "kedge doctor --on bench1" in cli.error(4, "status", "--on", "bench1")
    finally:
        assert server.run(f"kill -CONT {pid}").returncode == 0
    assert (first["result"], first["brief"]) == ("fault", "the agent is stopped by a signal")
    assert first["cure"] == f"ssh -p {server.port} -i {server.key} {server.user}@127.0.0.1 'kill -CONT {pid}'"
    assert server.run(f"{program} stop").returncode == 0
    first = result(examined(cli), "service")
    assert (first["result"], first["brief"]) == ("fault", "no agent runs")
    assert first["cure"] == f"ssh -p {server.port} -i {server.key} {server.user}@127.0.0.1 '{program} start'"
    assert server.run(f"{program} start").returncode == 0
    assert result(examined(cli), "service")["result"] == "ok"


def test_a_key_that_may_only_push_and_diagnose_is_enough(device: tuple[Cli, Sshd]) -> None:
    cli, server = device
    keys = server.folder / "authorized_keys"
    whole = keys.read_text()
    forced = f"{server.home}/.local/state/kedge/bin/kedge-agent ssh-command"
    try:
        keys.write_text(f'command="{forced}",restrict {whole}')
        document = examined(cli)
    finally:
        keys.write_text(whole)
    assert result(document, "service")["result"] == "ok"
    assert result(document, "reachability")["result"] == "ok"


def test_a_key_that_is_not_accepted_and_a_host_key_that_changed_are_findings(
    device: tuple[Cli, Sshd], tmp_path: Path
) -> None:
    cli, server = device
    keys = server.folder / "authorized_keys"
    whole = keys.read_text()
    try:
        keys.write_text("")
        first = examined(cli)["first_cause"]
    finally:
        keys.write_text(whole)
    copy = f"ssh-copy-id -p {server.port} -i {server.key} {server.user}@127.0.0.1"
    assert (first["check"], first["cure"]) == ("reachability", copy)
    saved = tmp_path / "keys"
    saved.mkdir()
    for name in ("host_key", "host_key.pub"):
        shutil.copy2(server.folder / name, saved / name)
    try:
        server.new_host_key()
        document = examined(cli)
    finally:
        server.stop()
        for name in ("host_key", "host_key.pub"):
            shutil.copy2(saved / name, server.folder / name)
        server.start()
    first = document["first_cause"]
    assert first["check"] == "host-key"
    assert server.fingerprint() in first["evidence"]
    assert first["cure"].startswith("kedge device trust bench1 --replace --fingerprint ")
    assert result(document, "disk")["result"] == "unknown"


def test_a_device_without_an_agent_and_one_that_nobody_trusted_are_findings(
    device: tuple[Cli, Sshd], tmp_path: Path
) -> None:
    _, server = device
    cli = make_cli(tmp_path)
    introduce(cli, server, trust=False)
    first = examined(cli)["first_cause"]
    assert (first["check"], first["cure"]) == ("host-key", "kedge device trust bench1")
    cli("device", "trust", "bench1", "--fingerprint", server.fingerprint())
    first = examined(cli)["first_cause"]
    assert (first["check"], first["cure"]) == ("agent", "kedge device provision bench1")

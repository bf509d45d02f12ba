"""A device's history and log over a real OpenSSH server, also with a key that may only push and diagnose."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import make_release
from tests.loopback.test_ssh import Cli, with_agent
from tests.support.schemas import validate
from tests.support.sshd import Sshd

pytestmark = pytest.mark.slow

BENCH = ("--duration-ms", "500", "--warmup-ms", "1")


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cli, Sshd]]:
    """A device that serves, and has answered requests."""
    folder: Path = tmp_path_factory.mktemp("history")
    with with_agent(folder) as (cli, server):
        cli("deploy", str(make_release(folder, version=1).folder), "--to", "bench1")
        cli("bench", "digits", "--on", "bench1", *BENCH)
        yield cli, server


def assert_told(cli: Cli) -> None:
    document = cli.json("history", "--on", "bench1", "--since", "30m")
    validate(document, "history")
    assert document["entries_why"] is None
    assert document["entries"][-1]["step"] == "committed"
    assert document["recording"]["summary"]["models"]["digits"]["requests"] > 10
    log = cli.json("logs", "--on", "bench1")
    assert any("serving on" in line for entry in log["entries"] for line in entry["lines"])


def test_a_device_tells_its_history_and_its_log(device: tuple[Cli, Sshd]) -> None:
    cli, _ = device
    assert_told(cli)
    assert "latency of digits (ms)" in cli("history", "digits", "--on", "bench1").stdout


def test_a_key_that_may_only_push_and_diagnose_is_enough(device: tuple[Cli, Sshd]) -> None:
    cli, server = device
    keys = server.folder / "authorized_keys"
    whole = keys.read_text()
    forced = f"{server.home}/.local/state/kedge/bin/kedge-agent ssh-command"
    try:
        keys.write_text(f'command="{forced}",restrict {whole}')
        assert_told(cli)
    finally:
        keys.write_text(whole)


def test_of_a_device_whose_agent_was_stopped_the_time_since_is_a_gap(device: tuple[Cli, Sshd]) -> None:
    cli, server = device
    program = f"{server.home}/.local/state/kedge/bin/kedge-agent"
    assert server.run(f"{program} stop && sleep 6").returncode == 0
    try:
        assert_told(cli)
        recording = cli.json("history", "--on", "bench1", "--since", "30m")["recording"]
        assert recording["gaps"][-1]["to_s"] == recording["to_s"]
    finally:
        assert server.run(f"{program} start").returncode == 0


def test_a_device_that_cannot_be_reached_has_one_error(device: tuple[Cli, Sshd]) -> None:
    cli, server = device
    server.stop()
    try:
        for command in ("history", "logs"):
            assert "bench1" in cli.error(4, command, "--on", "bench1")
    finally:
        server.start()

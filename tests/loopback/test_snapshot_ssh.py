"""A snapshot over a real OpenSSH server: of an agent that hangs, with a key that may do little; of one that died."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kedge.diagnose.opened import Opened, open_snapshot
from tests.loopback.test_ssh import Cli, with_agent
from tests.support.canaries import leaks
from tests.support.sshd import Sshd

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cli, Sshd]]:
    """A device with an agent."""
    with with_agent(tmp_path_factory.mktemp("snapshot")) as made:
        yield made


def taken(cli: Cli, folder: Path) -> tuple[dict[str, Any], Opened]:
    folder.mkdir()
    done = cli("snapshot", "--on", "bench1", "-o", str(folder / "bench1.kedge-snapshot.tar.zst"), "--json")
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["cut"] is None
    return document, open_snapshot(Path(document["file"]))


def test_of_a_hung_and_of_a_dead_agent_a_limited_key_brings_a_whole_file(
    device: tuple[Cli, Sshd], tmp_path: Path
) -> None:
    cli, server = device
    state = f"{server.home}/.local/state/kedge"
    keys = server.folder / "authorized_keys"
    whole = keys.read_text()
    pid = int(server.run(f"cat {state}/agent.lock").stdout.split()[0])
    try:
        assert server.run(f"kill -STOP {pid}").returncode == 0
        keys.write_text(f'command="{state}/bin/kedge-agent ssh-command",restrict {whole}')
        hung, opened = taken(cli, tmp_path / "hung")
        agent = opened.facts()["collectors"]["agent"]["data"]
        keys.write_text(whole)
        assert server.run(f"kill -KILL {pid}").returncode == 0
        _, after = taken(cli, tmp_path / "dead")
    finally:
        keys.write_text(whole)

    assert (agent["running"], agent["process_state"], agent["responds"]) == (True, "T", False)
    assert after.facts()["collectors"]["agent"]["data"]["running"] is False
    assert opened.problems == after.problems == ()
    assert opened.recording("minutes")
    # Root, who runs the tests as themselves, is nobody in particular.
    if server.user != "root":
        assert leaks(Path(hung["file"]), [server.user]) == []
        # Of a dead agent's snapshot nothing names its user: it has no process.
        assert any(
            each.get("value") == server.user for each in json.loads(Path(hung["map"]).read_text())["map"].values()
        )

"""An agent is upgraded, and a limited key is used, over a real OpenSSH server."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kedge.deploy import wheelhouse
from kedge.deploy.upgrade import Upgraded, upgrade
from kedge.errors import GateRefusedError, IntegrityError
from kedge.fleet.inventory import Inventory
from kedge.targets import load_target
from kedge.transport.base import Deadline
from kedge.transport.ssh import SshTransport
from kedge.transport.upload import upload
from tests.conftest import make_release
from tests.loopback.test_ssh import TARGET, Cli, introduce, make_cli
from tests.support.sshd import Sshd, make_sshd, remove_sshd
from tests.support.upgrades import altered_wheel

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cli, Sshd]]:
    """A provisioned device that serves a model."""
    server = make_sshd()
    folder = tmp_path_factory.mktemp("upgrade")
    cli = make_cli(folder)
    try:
        introduce(cli, server)
        cli("device", "provision", "bench1", "--no-service")
        cli("deploy", str(make_release(folder, version=1).folder), "--to", "bench1")
        yield cli, server
    finally:
        remove_sshd(server)


def keygen(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def transport_of(cli: Cli, name: str = "bench1") -> SshTransport:
    inventory = Inventory(Path(cli.environment["XDG_CONFIG_HOME"]) / "kedge" / "devices.toml")
    return SshTransport(name, inventory.get(name).address)


def other_agent(monkeypatch: pytest.MonkeyPatch, folder: Path, version: str, files: dict[str, str | None]) -> None:
    """Have this host carry another agent than its own."""
    wheel = altered_wheel(folder / version, version, files)
    monkeypatch.setattr(wheelhouse, "agent_wheel", lambda: (wheel.name, wheel.path.read_bytes()))


def upgraded(cli: Cli, steps: list[str] | None = None, key: Path | None = None) -> Upgraded:
    transport = transport_of(cli)
    try:
        return upgrade(
            transport, load_target(TARGET), key=key, step=steps.append if steps is not None else lambda name: None
        )
    finally:
        transport.close()


def test_an_agent_is_upgraded_while_it_serves_and_only_what_changed_is_sent(
    device: tuple[Cli, Sshd], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cli, _ = device
    same = cli.json("device", "upgrade", "bench1")
    assert (same["state"], same["wire_bytes"]) == ("current", 0)
    assert "this very one already" in cli("device", "upgrade", "bench1").stdout
    with monkeypatch.context() as patch:
        other_agent(patch, tmp_path, "9.9.9", {})
        steps: list[str] = []
        done = upgraded(cli, steps)
    assert (done.state, done.from_version, done.to_version) == ("committed", same["to_version"], "9.9.9")
    assert steps[:3] == ["probe", "resolve", "push"]
    assert done.sent_bytes < 2_000_000 < done.skipped_bytes
    assert done.doors_ms is not None
    assert done.models_ms is not None
    assert done.doors_ms <= done.models_ms
    row = cli.json("status", "--on", "bench1")["models"][0]
    assert (row["model"], row["state"], row["version"]) == ("digits", "serving", 1)
    # And back, as a person would see it.
    lines = [json.loads(line) for line in cli("device", "upgrade", "bench1", "--events").stdout.splitlines()]
    assert [line["step"] for line in lines if line["event"] == "step"][:3] == ["probe", "resolve", "push"]
    result = lines[-1]["result"]
    assert (result["from_version"], result["to_version"]) == ("9.9.9", same["to_version"])
    assert result["previous"] == done.bundle


def test_an_agent_that_cannot_serve_is_told_of_and_the_old_one_serves(
    device: tuple[Cli, Sshd], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cli, _ = device
    for number, text in enumerate(("raise SystemExit(9)\n", "Standby._check = None\n")):
        with monkeypatch.context() as patch:
            other_agent(patch, tmp_path, f"9.0.{number}", {"kedge_agent/standby.py": text})
            with pytest.raises(GateRefusedError, match=r"the agent of before serves on"):
                upgraded(cli)
        row = cli.json("status", "--on", "bench1")["models"][0]
        assert (row["model"], row["state"]) == ("digits", "serving")


def test_a_connection_that_is_lost_meanwhile_is_made_again(
    device: tuple[Cli, Sshd], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cli, _ = device
    other_agent(monkeypatch, tmp_path, "9.9.6", {})
    transport = transport_of(cli)
    lost: list[str] = []

    def lose(step: str) -> None:
        if step in ("standby", "rehearse", "drain", "takeover"):
            assert transport._client is not None
            transport._client.close()
            lost.append(step)

    try:
        assert upgrade(transport, load_target(TARGET), step=lose).state == "committed"
    finally:
        transport.close()
    assert lost
    assert cli.json("status", "--on", "bench1")["models"][0]["state"] == "serving"


def test_both_protocols_are_spoken_with_the_agent_of_before_and_with_the_one_of_after(
    device: tuple[Cli, Sshd], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cli, server = device
    state = cli.json("status", "--on", "bench1")["agent"]["state"]
    wire = f"{state}/agent/current/site/kedge_agent/wire.py"
    spoken = server.run(f"grep '^PROTOCOLS_SPOKEN' {wire}").stdout.strip()
    assert server.run(f"sed -i 's/^PROTOCOLS_SPOKEN = .*/PROTOCOLS_SPOKEN = (1,)/' {wire}").returncode == 0
    try:
        # This host, and an agent of before.
        assert (
            cli.json("deploy", str(make_release(tmp_path, version=2, seed=2).folder), "--to", "bench1")["version"] == 2
        )
    finally:
        server.run(f"sed -i 's/^PROTOCOLS_SPOKEN = .*/{spoken}/' {wire}")
    with monkeypatch.context() as patch:
        other_agent(patch, tmp_path, "9.9.8", {})
        assert upgraded(cli).state == "committed"
    # A host of before, and an agent of after.
    release = make_release(tmp_path, version=3, seed=3)
    transport = transport_of(cli)
    try:
        channel, agreed = transport.open_receive(Deadline.after(30, "x"))
        assert agreed == 2
        assert upload(channel, "bench1", release.manifest_bytes, release.files(), protocol=1).sent_bytes
    finally:
        transport.close()
    assert cli.json("deploy", str(release.folder), "--to", "bench1")["sent_bytes"] == 0


def test_a_device_that_asks_for_signatures_takes_signed_agents_alone(
    device: tuple[Cli, Sshd], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cli, server = device
    key, stranger = keygen(tmp_path / "key"), keygen(tmp_path / "stranger")
    state = cli.json("status", "--on", "bench1")["agent"]["state"]
    signers = server.folder / "allowed_signers"
    signers.write_text(f'kedge-agent namespaces="kedge-agent" {(tmp_path / "key.pub").read_text()}')
    settings = json.dumps({"releases": {"signatures": "required", "allowed_signers": str(signers)}})
    assert (
        server.run(f"printf %s '{settings}' > {state}/agent.json; kill -HUP $(cat {state}/agent.lock)").returncode == 0
    )
    try:
        other_agent(monkeypatch, tmp_path, "9.9.7", {})
        with pytest.raises(IntegrityError, match="takes signed agents only"):
            upgraded(cli)
        with pytest.raises(IntegrityError, match=r"is not one of"):
            upgraded(cli, key=stranger)
        done = upgraded(cli, key=key)
        assert (done.state, done.signed, done.to_version) == ("committed", True, "9.9.7")
    finally:
        server.run(f"rm {state}/agent.json; kill -HUP $(cat {state}/agent.lock)")


def test_a_limited_key_pushes_and_calls_and_does_nothing_else(device: tuple[Cli, Sshd], tmp_path: Path) -> None:
    cli, server = device
    state = cli.json("status", "--on", "bench1")["agent"]["state"]
    key = keygen(tmp_path / "deploy")
    authorized = server.folder / "authorized_keys"
    before = authorized.read_text()
    limited = f'command="{state}/bin/kedge-agent ssh-command",restrict {(tmp_path / "deploy.pub").read_text()}'
    authorized.write_text(before + limited)
    cli("device", "add", "limited", server.address, "--target", TARGET, "--key", str(key), "--state", state)
    cli("device", "trust", "limited", "--fingerprint", server.fingerprint())
    try:
        release = make_release(tmp_path, version=7, seed=7)
        assert cli.json("deploy", str(release.folder), "--to", "limited")["version"] == 7
        assert cli.json("status", "--on", "limited")["models"][0]["version"] == 7
        secret = tmp_path / "secret"
        secret.write_text("x")
        for command in (
            ["ssh", "-p", str(server.port), *options(key), f"{server.user}@127.0.0.1", f"touch {state}/mine"],
            ["ssh", "-p", str(server.port), *options(key), f"{server.user}@127.0.0.1", "kedge-agent receive; id"],
            ["ssh", "-p", str(server.port), *options(key), f"{server.user}@127.0.0.1"],
            ["scp", "-P", str(server.port), *options(key), str(secret), f"{server.user}@127.0.0.1:{state}/mine"],
            ["scp", "-O", "-P", str(server.port), *options(key), str(secret), f"{server.user}@127.0.0.1:{state}/mine"],
        ):
            said = subprocess.run(
                command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL
            )
            assert said.returncode != 0, command
        assert server.run(f"test -e {state}/mine").returncode == 1
        cli("device", "probe", "limited", code=14)
    finally:
        authorized.write_text(before)
        cli("device", "remove", "limited")


def options(key: Path) -> list[str]:
    return [
        *("-i", str(key), "-F", "none", "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no"),
        *("-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "BatchMode=yes"),
    ]

"""The same way over a real OpenSSH server, through the command line, as a person would."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kedge.fleet.inventory import Inventory
from kedge.transport.hostkeys import HostKey
from tests.conftest import make_release
from tests.support import models
from tests.support.environment import lacks
from tests.support.schemas import validate
from tests.support.sshd import Sshd, make_sshd, remove_sshd

TARGET = f"cpu-generic-{os.uname().machine}"


@dataclass
class Cli:
    environment: dict[str, str]

    def __call__(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "kedge", *arguments],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            env=self.environment,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == code, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json").stdout)

    def error(self, code: int, *arguments: str) -> str:
        """The error and its hint, which must be all there is."""
        lines = self(*arguments, code=code).stderr.strip().splitlines()
        assert lines[0].startswith("kedge: error: "), lines
        assert len(lines) == 2, lines
        assert lines[1].startswith("  hint: "), lines
        return "\n".join(lines)


def make_cli(folder: Path) -> Cli:
    return Cli({**os.environ, "XDG_CONFIG_HOME": str(folder / "config"), "COLUMNS": "200"})


@pytest.fixture
def server() -> Iterator[Sshd]:
    made = make_sshd()
    yield made
    remove_sshd(made)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return make_cli(tmp_path)


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Sshd]:
    made = make_sshd()
    yield made
    remove_sshd(made)


@pytest.fixture(scope="module")
def provisioned(shared_server: Sshd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cli, Sshd]]:
    """A device with an agent, for the tests that leave it as it is."""
    folder = tmp_path_factory.mktemp("ssh")
    cli = make_cli(folder)
    introduce(cli, shared_server)
    cli("device", "provision", "bench1", "--no-service")
    yield cli, shared_server
    cli("device", "remove", "bench1")


def introduce(cli: Cli, server: Sshd, *, trust: bool = True, name: str = "bench1", extra: tuple[str, ...] = ()) -> None:
    cli("device", "add", name, server.address, "--target", TARGET, "--key", str(server.key), *extra)
    if trust:
        cli("device", "trust", name, "--fingerprint", server.fingerprint())


@contextmanager
def with_agent(folder: Path) -> Iterator[tuple[Cli, Sshd]]:
    """A device, bench1, with an agent that runs."""
    server = make_sshd()
    try:
        cli = make_cli(folder)
        introduce(cli, server)
        cli("device", "provision", "bench1", "--no-service")
        yield cli, server
    finally:
        remove_sshd(server)


@pytest.mark.slow
def test_from_an_unknown_device_to_a_rollback(cli: Cli, server: Sshd, tmp_path: Path) -> None:
    introduce(cli, server, trust=False)
    refused = cli.error(9, "device", "provision", "bench1", "--no-service")
    assert server.fingerprint() in refused
    assert f"kedge device trust bench1 --fingerprint {server.fingerprint()}" in refused
    assert cli("device", "trust", "bench1", code=9).stdout == ""
    cli("device", "trust", "bench1", "--fingerprint", server.fingerprint())
    assert "no agent is known there" in cli.error(14, "status", "--on", "bench1")

    made = cli.json("device", "provision", "bench1", "--no-service")
    assert made["info"]["runtimes"]["onnxruntime"]
    assert made["sent_bytes"] > 1e6
    assert made["state"] == str(server.home / ".local/state/kedge")
    again = cli.json("device", "provision", "bench1", "--no-service")
    assert (again["sent_bytes"], again["started"]) == (0, "already running")
    probed = cli.json("device", "probe", "bench1")
    assert probed["agents"] == [made["agent"]]

    np.save(tmp_path / "images.npy", models.images(20))
    for version, seed in ((1, 0), (2, 5)):
        models.classifier(tmp_path / f"v{version}.onnx", seed=seed)
        release = tmp_path / f"v{version}.release"
        cli(
            *("build", str(tmp_path / f"v{version}.onnx"), "--target", TARGET, "--name", "digits"),
            *("--model-version", str(version), "--golden", str(tmp_path / "images.npy"), "-o", str(release)),
        )
        deployed = cli.json("deploy", str(release), "--to", "bench1")
        assert deployed["version"] == version
    status = cli.json("status", "--on", "bench1")
    assert status["models"][0]["version"] == 2
    inferred = cli.json(
        "infer",
        "digits",
        "--on",
        "bench1",
        "--input",
        str(tmp_path / "images.npy"),
        "--output",
        str(tmp_path / "o.npz"),
    )
    assert inferred["outputs"]["logits"]["shape"] == [20, 4]
    from kedge.model.session import ReferenceModel

    expected = ReferenceModel(tmp_path / "v2.onnx").run({"image": models.images(20)})["logits"]
    np.testing.assert_allclose(np.load(tmp_path / "o.npz")["logits"], expected, rtol=1e-4, atol=1e-5)
    assert inferred["outputs"]["logits"]["argmax"] == expected.argmax(axis=1).tolist()
    report = cli.json("bench", "digits", "--on", "bench1", "--duration-ms", "200", "--waterfall")
    validate(report, "bench")
    assert "SSH" in [step["name"] for step in report["waterfall"]["steps"]]
    back = cli.json("rollback", "digits", "--on", "bench1")
    assert (back["version"], back["previous"]) == (1, deployed["release"])
    assert cli.json("status", "--on", "bench1")["models"][0]["version"] == 1
    for arguments in (["status"], ["bench", "digits", "--duration-ms", "50"]):
        text = cli(*arguments, "--on", "bench1")
        assert "digits" in text.stdout
        assert text.stderr == ""


def test_what_provisioning_left_is_one_folder_that_needs_no_pip_and_no_venv(provisioned: tuple[Cli, Sshd]) -> None:
    cli, server = provisioned
    state = Path(cli.json("status", "--on", "bench1")["agent"]["state"])
    site = next((state / "agent").glob("*/site"))
    top = {path.name.split("-")[0] for path in site.iterdir()}
    assert {"kedge_agent", "numpy", "onnxruntime"} <= top
    assert "pip" not in top
    assert not (state / "provision").exists()
    said = server.run(f"{state}/bin/kedge-agent --version")
    assert said.stdout.startswith("kedge-agent "), said.stderr


def test_the_system_s_own_packages_stay_visible_to_the_agent(provisioned: tuple[Cli, Sshd]) -> None:
    cli, server = provisioned
    state = cli.json("status", "--on", "bench1")["agent"]["state"]
    flags = server.run(f"cat {state}/bin/kedge-agent").stdout
    assert " -I " in flags
    assert " -S" not in flags
    paths = server.run("python3 -I -c 'import sys; print(sys.path)'").stdout
    assert "packages" in paths


def test_a_changed_host_key_is_refused_always(cli: Cli, server: Sshd) -> None:
    introduce(cli, server)
    before = server.fingerprint()
    server.new_host_key()
    after = server.fingerprint()
    for arguments in (
        ["device", "probe", "bench1"],
        ["device", "provision", "bench1", "--no-service"],
        ["device", "trust", "bench1"],
    ):
        said = cli.error(6, *arguments)
        assert before in said
        assert after in said
    cli("device", "trust", "bench1", "--replace", "--fingerprint", before, code=6)
    cli("device", "trust", "bench1", "--fingerprint", after, code=6)
    cli("device", "trust", "bench1", "--replace", "--fingerprint", after)
    cli("device", "probe", "bench1")


def test_a_wrong_fingerprint_is_not_pinned(cli: Cli, server: Sshd) -> None:
    introduce(cli, server, trust=False)
    said = cli.error(6, "device", "trust", "bench1", "--fingerprint", "SHA256:AAAA")
    assert server.fingerprint() in said
    assert cli.json("device", "list")[0]["host_key"] is None


def test_a_pinned_key_of_another_algorithm_than_the_preferred_one_is_no_change(cli: Cli, tmp_path: Path) -> None:
    for kind in ("ecdsa", "rsa"):
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(tmp_path / kind)], check=True)
    server = make_sshd(settings=tuple(f"HostKey {tmp_path / kind}" for kind in ("ecdsa", "rsa")))
    try:
        introduce(cli, server, trust=False)
        inventory = Inventory(Path(cli.environment["XDG_CONFIG_HOME"]) / "kedge" / "devices.toml")
        for kind in ("ecdsa", "rsa"):
            pinned = HostKey.parse((tmp_path / f"{kind}.pub").read_text())
            inventory.update("bench1", host_key=str(pinned))
            assert cli.json("device", "trust", "bench1")["fingerprint"] == pinned.fingerprint
            assert inventory.host("bench1").address.host_key == pinned
        # Another key is another key, of whatever algorithm; and one that the server has no more is a changed one.
        replaced = cli.json("device", "trust", "bench1", "--replace", "--fingerprint", server.fingerprint())
        assert replaced["algorithm"] == "ssh-ed25519"
        inventory.update("bench1", host_key=str(pinned))
        server.settings = ()
        server.stop()
        server.start()
        assert "the host key changed" in cli.error(6, "device", "trust", "bench1")
    finally:
        remove_sshd(server)


def test_a_refused_key_is_told_with_what_to_do(cli: Cli, server: Sshd, tmp_path: Path) -> None:
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    cli("device", "add", "bench1", server.address, "--target", TARGET, "--key", str(other))
    cli("device", "trust", "bench1", "--fingerprint", server.fingerprint())
    assert "accepts none of our keys" in cli.error(9, "device", "probe", "bench1")


def test_an_encrypted_key_is_told_with_what_to_do(cli: Cli, server: Sshd, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(locked)], check=True)
    cli("device", "add", "bench1", server.address, "--target", TARGET, "--key", str(locked))
    cli("device", "trust", "bench1", "--fingerprint", server.fingerprint())
    assert "ssh-agent" in cli.error(9, "device", "probe", "bench1")


def test_an_unreachable_device_is_told(cli: Cli, server: Sshd) -> None:
    introduce(cli, server)
    server.stop()
    said = cli.error(4, "device", "probe", "bench1")
    assert "cannot be reached" in said
    assert str(server.port) in said
    # Nothing was sent, so the outcome of a change is not unknown: there was none.
    cli("device", "provision", "bench1", "--no-service", code=4)
    with socket.create_server(("127.0.0.1", server.port)):
        pass  # the port was free: nothing of ours still served it


def test_a_device_with_python_too_old_or_none_is_told(cli: Cli, server: Sshd) -> None:
    introduce(cli, server)
    old = server.folder / "python3.9"
    old.write_text(
        '#!/bin/sh\nexec python3 -c "print(\'{\\"python\\": [3, 9, 2], \\"implementation\\": \\"CPython\\", '
        '\\"executable\\": \\"x\\", \\"os\\": \\"linux\\", \\"machine\\": \\"x86_64\\", \\"glibc\\": '
        '\\"2.31\\", \\"uid\\": 1, \\"state\\": \\"/s\\", \\"free_bytes\\": 1, \\"systemd\\": false, '
        '\\"board\\": null, \\"l4t\\": null, \\"installed\\": []}\')"\n'
    )
    old.chmod(0o755)
    assert "needs CPython 3.10" in cli.error(7, "device", "provision", "bench1", "--no-service", "--python", str(old))
    assert "there is no /usr/bin/python9" in cli.error(
        7, "device", "provision", "bench1", "--no-service", "--python", "/usr/bin/python9"
    )


def test_a_device_of_another_kind_than_its_target_is_told_with_both_sides(cli: Cli, server: Sshd) -> None:
    other = "cpu-generic-aarch64" if os.uname().machine == "x86_64" else "cpu-generic-x86_64"
    cli("device", "add", "bench1", server.address, "--target", other, "--key", str(server.key))
    cli("device", "trust", "bench1", "--fingerprint", server.fingerprint())
    said = cli.error(7, "device", "provision", "bench1", "--no-service")
    assert os.uname().machine in said
    assert other in said


def test_a_removed_agent_is_told_from_a_stopped_one(cli: Cli, provisioned: tuple[Cli, Sshd]) -> None:
    known, server = provisioned
    state = known.json("status", "--on", "bench1")["agent"]["state"]
    server.run(f"{state}/bin/kedge-agent stop")
    assert "the agent is not running" in known.error(14, "status", "--on", "bench1")
    assert known.json("device", "provision", "bench1", "--no-service")["started"] == "background"
    introduce(cli, server, extra=("--state", "/nowhere/kedge"))
    assert "no agent is installed there" in cli.error(14, "status", "--on", "bench1")


def test_a_large_request_that_is_refused_before_it_is_read_is_told_why_over_ssh(
    provisioned: tuple[Cli, Sshd],
) -> None:
    from kedge.errors import BadInputError
    from kedge.fleet.inventory import Inventory, open_device
    from kedge.transport.client import AgentClient

    cli, _ = provisioned
    inventory = Inventory(Path(cli.environment["XDG_CONFIG_HOME"]) / "kedge" / "devices.toml")
    with open_device("bench1", inventory) as (transport, _):
        client = AgentClient(transport)
        for _ in range(3):
            with pytest.raises(BadInputError, match="no model named 'ghost'"):
                client.infer("ghost", {"x": np.zeros(4_000_000, "f4")})
        client.close()


def test_a_damaged_agent_is_mended_by_force(provisioned: tuple[Cli, Sshd]) -> None:
    cli, server = provisioned
    state = cli.json("status", "--on", "bench1")["agent"]["state"]
    server.run(f"{state}/bin/kedge-agent stop; rm {state}/agent/current/site/kedge_agent/daemon.py")
    cli.error(14, "device", "provision", "bench1", "--no-service")
    assert cli.json("device", "provision", "bench1", "--no-service", "--force")["sent_bytes"] > 1e6
    cli("status", "--on", "bench1")


def test_a_change_on_a_device_that_cannot_be_reached_has_a_known_outcome(
    provisioned: tuple[Cli, Sshd], tmp_path: Path
) -> None:
    cli, server = provisioned
    release = make_release(tmp_path, version=1).folder
    server.stop()
    try:
        cli.error(4, "rollback", "digits", "--on", "bench1")
        cli.error(4, "deploy", str(release), "--to", "bench1")
    finally:
        server.start()


def test_an_agent_of_another_protocol_is_refused_with_both_versions(provisioned: tuple[Cli, Sshd]) -> None:
    cli, server = provisioned
    state = cli.json("status", "--on", "bench1")["agent"]["state"]
    wire = f"{state}/agent/current/site/kedge_agent/wire.py"
    assert server.run(f"sed -i 's/^PROTOCOLS_SPOKEN = .*/PROTOCOLS_SPOKEN = (99,)/' {wire}").returncode == 0
    try:
        said = cli.error(7, "status", "--on", "bench1")
        assert "speaks protocol 99, this kedge speaks 1" in said
        assert "kedge device provision bench1" in said
    finally:
        server.run(f"sed -i 's/^PROTOCOLS_SPOKEN = .*/PROTOCOLS_SPOKEN = (1, 2)/' {wire}")
    cli("status", "--on", "bench1")


def test_a_login_shell_that_talks_does_no_harm(provisioned: tuple[Cli, Sshd]) -> None:
    cli, server = provisioned
    # sh reads no start-up file for a command; ENV makes the agent's own launcher talk instead.
    state = cli.json("status", "--on", "bench1")["agent"]["state"]
    launcher = f"{state}/bin/kedge-agent"
    server.run(f"cp {launcher} {launcher}.kept && sed -i '1a echo Welcome to Ubuntu 22.04' {launcher}")
    try:
        assert cli.json("status", "--on", "bench1")["ready"] is True
    finally:
        server.run(f"mv {launcher}.kept {launcher}")


def test_requests_over_ssh_are_not_held_back_by_nagle_s_algorithm(shared_server: Sshd) -> None:
    from kedge.transport.base import Deadline
    from kedge.transport.hostkeys import fetch_host_key
    from kedge.transport.ssh import SshAddress, SshTransport

    key = fetch_host_key("127.0.0.1", shared_server.port, Deadline.after(10, "x"))
    address = SshAddress("127.0.0.1", shared_server.port, shared_server.user, key, shared_server.key)
    transport = SshTransport("bench1", address)
    transport.connect(Deadline.after(20, "connecting"))
    assert transport._client is not None
    inner = transport._client.get_transport()
    assert inner is not None
    assert inner.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    weak = [
        name for name in (inner.remote_cipher, inner.remote_mac) if "cbc" in name or "md5" in name or "sha1" in name
    ]
    assert not weak
    transport.close()


@pytest.mark.slow
def test_a_full_device_refuses_a_push_before_it_begins_and_keeps_serving(tmp_path: Path, cli: Cli) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    server = make_sshd(tmpfs_state="400m")
    try:
        introduce(cli, server, extra=("--state", str(server.home / "small" / "kedge")))
        cli("device", "provision", "bench1", "--no-service")
        cli("deploy", str(make_release(tmp_path, version=1).folder), "--to", "bench1")
        server.run(f"head -c 1000m /dev/zero > {server.home}/small/filler")
        said = cli.error(8, "deploy", str(make_release(tmp_path, version=2, seed=5).folder), "--to", "bench1")
        assert "free" in said
        assert cli.json("status", "--on", "bench1")["models"][0]["version"] == 1
        server.run(f"rm {server.home}/small/filler")
        assert cli.json("deploy", str(tmp_path / "digits-2.release"), "--to", "bench1")["version"] == 2
    finally:
        remove_sshd(server)


@pytest.mark.slow
def test_a_device_too_small_for_the_agent_refuses_provisioning(cli: Cli) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    server = make_sshd(tmpfs_state="20m")
    try:
        introduce(cli, server, extra=("--state", str(server.home / "small" / "kedge")))
        assert "the agent needs" in cli.error(8, "device", "provision", "bench1", "--no-service")
    finally:
        remove_sshd(server)


def test_environment_skips_are_failures_where_they_are_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDGE_REQUIRE", "sshd")
    with pytest.raises(pytest.fail.Exception, match="sshd is required here"):
        lacks("sshd", "it is not here")
    monkeypatch.setenv("KEDGE_REQUIRE", "")
    with pytest.raises(pytest.skip.Exception):
        lacks("sshd", "it is not here")

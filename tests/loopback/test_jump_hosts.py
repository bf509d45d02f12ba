"""Devices behind jump hosts, by certificate, by ssh-agent and by an ssh config: over real OpenSSH servers."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kedge.diagnose.checks.link import host_key
from kedge.diagnose.gather import gather
from kedge.errors import AuthenticationRefusedError, HostKeyChangedError, UnknownHostKeyError, UnreachableError
from kedge.fleet.inventory import Inventory
from kedge.transport import ssh_jump
from kedge.transport.address import SshAddress
from kedge.transport.base import Deadline
from kedge.transport.hostkeys import HostKey
from kedge.transport.ssh import SshTransport
from tests.conftest import make_release
from tests.loopback.test_ssh import TARGET, Cli, introduce, make_cli
from tests.support.environment import lacks
from tests.support.keys import make_key
from tests.support.sshd import Sshd, make_sshd, remove_sshd


@pytest.fixture(scope="module")
def gate() -> Iterator[Sshd]:
    made = make_sshd()
    yield made
    remove_sshd(made)


@pytest.fixture(scope="module")
def inner_gate() -> Iterator[Sshd]:
    made = make_sshd()
    yield made
    remove_sshd(made)


@pytest.fixture(scope="module")
def camera() -> Iterator[Sshd]:
    made = make_sshd()
    yield made
    remove_sshd(made)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return make_cli(tmp_path)


def address_of(server: Sshd) -> SshAddress:
    return SshAddress("127.0.0.1", server.port, server.user, HostKey.parse(server.host_key), server.key)


def say(address: SshAddress, name: str = "cam-1") -> str:
    transport = SshTransport(name, address)
    try:
        return transport.run("echo $SSH_CONNECTION", Deadline.after(30, "the test")).output.decode()
    finally:
        transport.close()


def test_a_device_behind_two_jump_hosts_is_reached_through_both(gate: Sshd, inner_gate: Sshd, camera: Sshd) -> None:
    before = gate.logins(), inner_gate.logins()
    assert say(replace(address_of(camera), jumps=(address_of(gate), address_of(inner_gate)))).split()[-1] == str(
        camera.port
    )
    assert (gate.logins(), inner_gate.logins()) == (before[0] + 1, before[1] + 1)


def test_devices_behind_one_jump_host_share_one_connection_to_it(gate: Sshd, camera: Sshd) -> None:
    before = gate.logins(), camera.logins()
    address = replace(address_of(camera), jumps=(address_of(gate),))
    transports = [SshTransport(f"cam-{number}", address) for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        done = list(pool.map(lambda one: one.run("true", Deadline.after(30, "the test")).status, transports))
    assert done == [0] * 12
    assert (gate.logins(), camera.logins()) == (before[0] + 1, before[1] + 12)
    # The last one that leaves closes it: the next has a new one.
    transports[0].close()
    assert transports[1].run("true", Deadline.after(30, "the test")).status == 0
    for one in transports:
        one.close()
    say(address)
    assert gate.logins() == before[0] + 2


def test_a_jump_host_that_went_away_and_came_back_is_connected_to_anew(camera: Sshd) -> None:
    gate = make_sshd()
    try:
        address = replace(address_of(camera), jumps=(address_of(gate),))
        transport = SshTransport("cam-1", address)
        transport.run("true", Deadline.after(30, "the test"))
        gate.stop()
        # The session that stands outlives its server; as on a real host, a restart ends it.
        hop = transport._hop
        assert hop is not None
        assert hop.client is not None
        hop.client.close()
        with pytest.raises(UnreachableError, match=r"jump host .* cannot be reached: Connection refused"):
            say(address, "cam-2")
        gate.start()
        assert say(address, "cam-3")
        transport.close()
    finally:
        remove_sshd(gate)


@dataclass
class Relay:
    """A port before a server's, which lets nothing through until it is opened; came: somebody is there."""

    port: int
    came: threading.Event
    opened: threading.Event


@pytest.fixture
def relay(gate: Sshd) -> Iterator[Relay]:
    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def pass_on(come: socket.socket) -> None:
        with come, socket.create_connection(("127.0.0.1", gate.port)) as there:
            back = threading.Thread(target=pump, args=(there, come))
            back.start()
            pump(come, there)
            back.join()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                come, _ = listening.accept()
                made.came.set()
                made.opened.wait(60)
                passing.append(threading.Thread(target=pass_on, args=(come,)))
                passing[-1].start()

    passing: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        made = Relay(listening.getsockname()[1], threading.Event(), threading.Event())
        serving = threading.Thread(target=serve)
        serving.start()
        yield made
        made.opened.set()
        # accept(2) of another thread is not ended by close(2).
        listening.shutdown(socket.SHUT_RDWR)
        serving.join()
    for thread in passing:
        thread.join(30)


def test_threads_that_connect_at_once_make_one_connection_which_close_closes(
    gate: Sshd, camera: Sshd, relay: Relay
) -> None:
    before = gate.logins(), camera.logins()
    transport = SshTransport("cam-1", replace(address_of(camera), jumps=(replace(address_of(gate), port=relay.port),)))
    begin = threading.Barrier(5)

    def connect(_: int) -> None:
        begin.wait(30)
        transport.connect(Deadline.after(30, "the test"))

    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(connect, number) for number in range(4)]
        begin.wait(30)
        assert relay.came.wait(30)
        # The others are on their way there too by now.
        time.sleep(0.3)
        relay.opened.set()
        for one in done:
            one.result()
    assert (gate.logins(), camera.logins()) == (before[0] + 1, before[1] + 1)
    transport.close()
    assert not ssh_jump._hops


def test_a_transport_that_is_closed_on_the_way_to_its_jump_host_stays_closed(
    gate: Sshd, camera: Sshd, relay: Relay
) -> None:
    transport = SshTransport("cam-1", replace(address_of(camera), jumps=(replace(address_of(gate), port=relay.port),)))
    before = camera.logins()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(transport.run, "true", Deadline.after(30, "the test"))
        assert relay.came.wait(30)
        transport.close()
        relay.opened.set()
        with pytest.raises(UnreachableError, match="cam-1: the connection was closed"):
            done.result()
    assert transport._client is None
    assert not ssh_jump._hops
    assert camera.logins() == before
    # Closed is not the end: whoever asks now gets a new one.
    assert transport.run("true", Deadline.after(30, "the test")).status == 0
    transport.close()


def test_who_finds_a_dead_connection_does_not_close_the_one_made_since(camera: Sshd) -> None:
    transport = SshTransport("cam-1", address_of(camera))
    transport.connect(Deadline.after(30, "the test"))
    dead = transport._client
    assert dead is not None
    dead.close()
    with pytest.raises(UnreachableError, match="the connection is gone"):
        transport.run("true", Deadline.after(30, "the test"))
    transport.connect(Deadline.after(30, "the test"))
    before = camera.logins()
    transport._drop(dead)
    assert transport.run("true", Deadline.after(30, "the test")).status == 0
    assert camera.logins() == before
    transport.close()


def test_errors_name_the_hop_that_failed(gate: Sshd, inner_gate: Sshd, camera: Sshd) -> None:
    outer, inner = replace(address_of(gate), name="gate"), address_of(inner_gate)
    device = replace(address_of(camera), jumps=(outer, inner))
    with pytest.raises(UnreachableError, match=r"cam-1: the jump host gate \(.*:1\) cannot be reached: Connection"):
        say(replace(device, jumps=(replace(outer, port=1), inner)))
    with pytest.raises(UnreachableError, match=r"cam-1: the jump host .*:1 cannot be reached from the jump host gate"):
        say(replace(device, jumps=(outer, replace(inner, port=1))))
    with pytest.raises(
        UnreachableError, match=rf"cam-1 .*:1, through gate, then .* from .*:{inner.port}: no connection"
    ):
        say(replace(device, port=1))
    with pytest.raises(AuthenticationRefusedError, match=r"cam-1: the jump host gate .* accepts none of our keys"):
        say(replace(device, jumps=(replace(outer, identity=camera.key), inner)))
    with pytest.raises(AuthenticationRefusedError, match=r"cam-1 \(.* the device accepts none of our keys"):
        say(replace(device, identity=gate.key))


def test_a_jump_host_that_forwards_nothing_is_named(camera: Sshd) -> None:
    gate = make_sshd(settings=("AllowTcpForwarding no",))
    try:
        with pytest.raises(UnreachableError, match=r"the jump host .* does not forward to it") as caught:
            say(replace(address_of(camera), jumps=(address_of(gate),)))
        assert "AllowTcpForwarding" in caught.value.hint
    finally:
        remove_sshd(gate)


def test_a_changed_host_key_of_a_jump_host_stops_everything_before_the_device(camera: Sshd) -> None:
    gate = make_sshd()
    try:
        old = replace(address_of(gate), name="gate")
        gate.new_host_key()
        before = camera.logins()
        with pytest.raises(HostKeyChangedError, match=r"cam-1: the jump host gate .* the host key changed") as caught:
            say(replace(address_of(camera), jumps=(old,)))
        assert "kedge device trust gate --replace" in caught.value.hint
        with pytest.raises(UnknownHostKeyError, match="no host key is pinned") as unknown:
            say(replace(address_of(camera), jumps=(replace(old, host_key=None, name=None),)))
        assert f"ssh -p {gate.port}" in unknown.value.hint
        evidence = gather(SshTransport("cam-1", replace(address_of(camera), jumps=(old,))), None)
        assert host_key(evidence).cure.startswith("kedge device trust gate --replace")
        assert evidence.link is not None
        assert f"ProxyJump={gate.user}@127.0.0.1:{gate.port}" in evidence.link.way("ssh")
        assert (camera.logins(), gate.logins()) == (before, 0)
    finally:
        remove_sshd(gate)


@pytest.mark.slow
def test_a_device_behind_a_jump_host_is_trusted_and_probed_from_the_command_line(
    cli: Cli, gate: Sshd, camera: Sshd
) -> None:
    cli("device", "add", "gate", gate.address, "--jump-host", "--key", str(gate.key))
    cli("device", "trust", "gate", "--fingerprint", gate.fingerprint())
    before = gate.logins()
    introduce(cli, camera, name="cam-1", extra=("--jump", "gate", "--group", "berlin", "--label", "floor=2"))
    assert gate.logins() == before + 1
    assert cli.json("device", "probe", "cam-1")["device"] == "cam-1"
    listed = {one["name"]: one for one in cli.json("device", "list")}
    assert listed["cam-1"]["jump"] == ["gate"]
    assert listed["cam-1"]["groups"] == ["berlin"]
    assert listed["cam-1"]["labels"] == {"floor": "2"}
    assert listed["gate"]["target"] is None
    assert [one["name"] for one in cli.json("device", "list", "--to", "@berlin")] == ["cam-1"]
    assert "is a jump host" in cli.error(3, "device", "provision", "gate")
    assert "floor=2" in cli("device", "list").stdout


@pytest.mark.slow
def test_a_device_behind_a_jump_host_is_provisioned_and_serves_what_is_pushed_to_it(
    cli: Cli, gate: Sshd, tmp_path: Path
) -> None:
    device = make_sshd()
    try:
        cli("device", "add", "gate", gate.address, "--jump-host", "--key", str(gate.key))
        cli("device", "trust", "gate", "--fingerprint", gate.fingerprint())
        introduce(cli, device, name="cam-1", extra=("--jump", "gate"))
        cli("device", "provision", "cam-1", "--no-service")
        release = make_release(tmp_path, version=1)
        before = gate.logins()
        cli("deploy", str(release.folder), "--to", "cam-1")
        assert gate.logins() == before + 1
        assert release.digest in cli("status", "--on", "cam-1", "--json").stdout
    finally:
        remove_sshd(device)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Sshd]]:
    """A folder with the key of an authority, `ca`, and a server that trusts it and knows no key."""
    folder = tmp_path_factory.mktemp("ca")
    public = make_key(folder, "ca").path.with_suffix(".pub")
    # The server reads it as root, whose folder this is; everybody else's servers run as the same user.
    server = make_sshd(settings=(f"TrustedUserCAKeys {public}", "AuthorizedKeysFile none"))
    yield folder, server
    remove_sshd(server)


def certify(folder: Path, key: Path, principal: str, to: Path | None = None) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-s", folder / "ca", "-I", "test", "-n", principal, f"{key}.pub"], check=True)
    made = Path(f"{key}-cert.pub")
    return made if to is None else made.rename(to)


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_a_certificate_beside_the_key_opens_the_device(authority: tuple[Path, Sshd], tmp_path: Path, kind: str) -> None:
    folder, server = authority
    key = make_key(tmp_path, "id", kind).path
    address = replace(address_of(server), identity=key)
    with pytest.raises(AuthenticationRefusedError):
        say(address)
    certify(folder, key, server.user)
    assert say(address)


def test_a_certificate_elsewhere_is_named_and_one_for_somebody_else_is_refused(
    authority: tuple[Path, Sshd], tmp_path: Path
) -> None:
    folder, server = authority
    key = make_key(tmp_path, "id").path
    address = replace(address_of(server), identity=key)
    good = certify(folder, key, server.user, tmp_path / "good.pub")
    assert say(replace(address, certificate=good))
    other = certify(folder, key, "somebody-else", tmp_path / "other.pub")
    with pytest.raises(AuthenticationRefusedError, match="accepts none"):
        say(replace(address, certificate=other))
    with pytest.raises(AuthenticationRefusedError, match=r"certificate .*absent\.pub does not exist"):
        say(replace(address, certificate=tmp_path / "absent.pub"))
    with pytest.raises(AuthenticationRefusedError, match="not a valid certificate"):
        say(replace(address, certificate=server.key))


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[str]:
    """The socket of an ssh-agent."""
    if shutil.which("ssh-agent") is None:
        lacks("sshd", "no ssh-agent on this machine (Debian: openssh-client)")
    path = str(tmp_path / "agent.sock")
    with subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL) as process:
        for _ in range(100):
            if os.path.exists(path) or process.poll() is not None:
                break
            process_wait(process)
        yield path
        process.terminate()


def process_wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(0.05)
    except subprocess.TimeoutExpired:
        return


def test_an_encrypted_key_is_used_through_ssh_agent_unless_that_is_switched_off(
    camera: Sshd, agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "id"
    shutil.copy(camera.key, key)
    shutil.copy(f"{camera.key}.pub", f"{key}.pub")
    subprocess.run(["ssh-add", "-q", key], env={**os.environ, "SSH_AUTH_SOCK": agent}, check=True)
    subprocess.run(["ssh-keygen", "-q", "-p", "-f", key, "-N", "a secret"], check=True)
    address = replace(address_of(camera), identity=key)
    with pytest.raises(AuthenticationRefusedError, match="encrypted") as caught:
        say(address)
    assert f"ssh-add {key}" in caught.value.hint
    assert say(replace(address, agent=agent))
    assert say(replace(address, identity=None, agent=agent))
    monkeypatch.setenv("SSH_AUTH_SOCK", agent)
    assert say(address)
    with pytest.raises(AuthenticationRefusedError, match="encrypted"):
        say(replace(address, agent=False))


def test_hosts_of_an_ssh_config_with_include_and_proxyjump_are_imported_and_reached(
    cli: Cli, gate: Sshd, camera: Sshd, tmp_path: Path
) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    config, known = tmp_path / "ssh_config", tmp_path / "known"
    config.write_text(f"""
        Include {parts}/*.conf
        Host *
            UserKnownHostsFile {known}
            GlobalKnownHostsFile none
            IdentitiesOnly yes
    """)
    (parts / "a.conf").write_text(f"""
        Host gate
            HostName 127.0.0.1
            Port {gate.port}
            User {gate.user}
            IdentityFile {gate.key}
        Host cam-1 cam-?
            HostName 127.0.0.1
            Port {camera.port}
            User {camera.user}
            IdentityFile {camera.key}
            ProxyJump gate
    """)
    (parts / "b.conf").write_text("Host Cam.Two\n HostName 192.0.2.1\n ProxyCommand nc %h %p\n")
    known.write_text(f"[127.0.0.1]:{gate.port} {gate.host_key}\n[127.0.0.1]:{camera.port} {camera.host_key}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", known], check=True, capture_output=True)
    words = ("device", "import", "--ssh-config", str(config), "--target", TARGET, "--group", "berlin")
    found = {one["ssh"]: one for one in cli.json(*words)["hosts"]}
    assert list(found) == ["gate", "cam-1", "Cam.Two"]
    assert found["cam-1"]["host_key"] == camera.fingerprint()
    assert found["cam-1"]["jump"] == [gate.address]
    assert "ProxyCommand" in found["Cam.Two"]["why"]
    before = gate.logins()
    assert cli.json("device", "probe", "cam-1")["device"] == "cam-1"
    assert gate.logins() == before + 1
    again = cli(*words).stdout
    assert "0 added, 3 left alone" in again
    inventory = Inventory(Path(cli.environment["XDG_CONFIG_HOME"]) / "kedge" / "devices.toml")
    assert [each.name for each in inventory.select("@berlin")] == ["gate", "cam-1"]
    # What the entry says itself wins.
    inventory.update("cam-1", jump="gate")
    (jump,) = inventory.get("cam-1").address.jumps
    assert jump.name == "gate"
    assert inventory.get("cam-1").address.port == camera.port

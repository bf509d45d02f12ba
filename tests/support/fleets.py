"""A fleet of real devices on this machine: each with namespaces, an sshd, a user and an agent of its own.

A device is a child process in network, mount, process and host-name namespaces of its own: it has an address that no
other has, a home at the same path as every other's, and no process but its own. The first one is provisioned through
the command line; what that left is copied to the others, the agent's own files as hard links, so that sixteen agents
share the pages of one runtime. Each agent is then started as its user would.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit

from kedge.config import cache_dir
from kedge.release.bundle import Release
from tests.support.daemon import Agent
from tests.support.environment import lacks, sshd_path
from tests.support.netns import Cable, Network, entering, held, netns
from tests.support.sshd import UID, USER

__all__ = ["Fleet", "FleetDevice", "fleet"]

TARGET = f"cpu-generic-{os.uname().machine}"
HOME = Path("/home") / USER
STATE = HOME / ".local/state/kedge"
"""Where every device has its agent, as the device sees it."""

_START_S = 30.0
_COMMAND_S = 240.0
_STARTED_AT_ONCE = 2


class FleetAgent(Agent):
    """The agent of a device, as `tests.support.agents.assert_invariant` asks it: through its sockets."""

    def __init__(self, state: Path, sockets: Path) -> None:
        self.state = state
        self.sockets = sockets


@dataclass
class FleetDevice:
    """One of them. folder: what is its own, as this machine sees it. holder: the process that holds its namespaces."""

    name: str
    folder: Path
    holder: subprocess.Popen[bytes]
    cable: Cable

    @property
    def state(self) -> Path:
        """Its agent's state folder, as this machine sees it."""
        return self.folder / "home" / STATE.relative_to(HOME)

    @property
    def agent(self) -> FleetAgent:
        """What answers for its agent."""
        folders = list((self.folder / "tmp" / f"kedge-{UID}").iterdir())
        assert len(folders) == 1, f"{self.name}: sockets in {folders}"
        return FleetAgent(self.state, folders[0])

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a shell command there as its user, without any network; it must work."""
        inside = [*entering(self._inner(), "--mount", "--pid", "--net", "--uts"), *_USER]
        done = subprocess.run(
            [*inside, "env", "-i", f"HOME={HOME}", "PATH=/usr/local/bin:/usr/bin:/bin", "sh", "-c", command],
            capture_output=True,
            text=True,
            timeout=_COMMAND_S,
            check=False,
            cwd="/",
        )
        assert done.returncode == 0, f"{self.name}: {command}: {done.stdout}{done.stderr}"
        return done

    def start_agent(self) -> None:
        """Start its agent, and wait until it serves what it has."""
        try:
            self.run(f"{STATE}/bin/kedge-agent start --threads 1")
        except subprocess.TimeoutExpired as error:
            logs = [self.state / name for name in ("start.log", "agent.log")]
            said = "".join(log.read_text(errors="replace")[-1000:] for log in logs if log.exists())
            raise AssertionError(f"{self.name}: the agent does not start: {said}") from error
        deadline = time.monotonic() + _START_S
        while not self.status()["ready"]:
            assert time.monotonic() < deadline, f"{self.name}: the agent is not ready"
            time.sleep(0.05)

    def stop_agent(self) -> None:
        """End its agent, in order."""
        self.run(f"{STATE}/bin/kedge-agent stop")

    def freeze(self) -> None:
        """Stop every process of its user, as a device does that hangs; its kernel goes on answering the network."""
        self._signal("STOP")

    def thaw(self) -> None:
        """Let them go on."""
        self._signal("CONT")

    @contextmanager
    def throttled(self, runs_s: float, rests_s: float) -> Iterator[None]:
        """Meanwhile its user's processes run for so long, and rest for so long, as on a processor that is too hot."""
        over = threading.Event()

        def run() -> None:
            while not over.wait(runs_s):
                self.freeze()
                over.wait(rests_s)
                self.thaw()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _signal(self, name: str) -> None:
        # Whoever sends it is root's, and sends it to none of its own.
        inside = entering(self._inner(), "--mount", "--pid")
        subprocess.run([*inside, "pkill", f"-{name}", "-u", str(UID)], check=False, timeout=30)

    def status(self) -> Any:
        """What its agent says of itself."""
        code, _, answer = self.agent.request("GET", "/kedge/v1/status", door="control")
        assert code == 200, answer
        return answer

    def processes(self) -> list[int]:
        """Its processes, by their numbers on this machine; the first is the one that all others come from."""
        out, waiting = [], [self._inner()]
        while waiting:
            pid = waiting.pop()
            out.append(pid)
            waiting += _children(pid)
        return out

    def host_key(self) -> str:
        """As an inventory pins it."""
        algorithm, key = (self.folder / "host_key.pub").read_text().split()[:2]
        return f"{algorithm} {key}"

    def close(self) -> None:
        """End everything there; idempotent."""
        self.holder.kill()
        self.holder.wait()

    def _inner(self) -> int:
        deadline = time.monotonic() + _START_S
        while not (found := _children(self.holder.pid)):
            assert self.holder.poll() is None, f"{self.name} ended: {(self.folder / 'log').read_text()[-500:]}"
            assert time.monotonic() < deadline, f"{self.name} does not begin"
            time.sleep(0.01)
        return found[0]


class Fleet:
    """Devices, the network between them and this host, and the configuration of a host that knows them."""

    def __init__(self, folder: Path, network: Network, devices: Sequence[FleetDevice]) -> None:
        self.folder = folder
        self.network = network
        self.devices = tuple(devices)
        self.inventory = folder / "config" / "kedge" / "devices.toml"
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "SSH_AUTH_SOCK"},
            **{f"XDG_{kind.upper()}_HOME": str(folder / kind) for kind in ("config", "state", "cache")},
            "COLUMNS": "200",
        }

    def __getitem__(self, name: str) -> FleetDevice:
        return next(device for device in self.devices if device.name == name)

    def command(self, *arguments: str) -> list[str]:
        """`kedge` on the host that reaches the fleet; it wants `environment`."""
        return self.network.command(sys.executable, "-m", "kedge", *arguments)

    def kedge(self, *arguments: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run `kedge` to its end, which must have this exit status (None: any)."""
        done = subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            timeout=_COMMAND_S,
            check=False,
            env=self.environment,
            stdin=subprocess.DEVNULL,
        )
        assert code in (None, done.returncode), f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def begin(self, *arguments: str, log: Path) -> subprocess.Popen[bytes]:
        """Start `kedge` in a session of its own; what it prints goes to a file."""
        with log.open("wb") as out:
            return subprocess.Popen(
                self.command(*arguments),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )

    def write_inventory(self, groups: Sequence[str] = ("fleet",)) -> None:
        """All devices, in their order, as a person would have written them down."""
        document = tomlkit.document()
        for device in self.devices:
            entry = tomlkit.table()
            entry.update(
                host=device.cable.address,
                port=22,
                user=USER,
                target=TARGET,
                host_key=device.host_key(),
                identity=str(self.folder / "user_key"),
                state=str(STATE),
                groups=list(groups),
            )
            document.add(device.name, entry)
        self.inventory.parent.mkdir(parents=True, exist_ok=True)
        self.inventory.write_text(tomlkit.dumps(document), encoding="utf-8")

    def start_agents(self, devices: Sequence[FleetDevice]) -> None:
        """Start the agents of these, a few at a time."""
        with ThreadPoolExecutor(_STARTED_AT_ONCE) as pool:
            list(pool.map(FleetDevice.start_agent, devices))

    def close(self) -> None:
        """End every device and the network, and remove what they had; idempotent."""
        for device in self.devices:
            device.close()
        self.network.close()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def fleet(number: int, base: Release | None = None) -> Iterator[Fleet]:
    """So many devices, d01 and so on, in the group `fleet`, their agents running; they end with the context.

    Args:
        base: what all of them serve already.
    """
    netns()
    made = _made(number)
    try:
        made.write_inventory()
        first, *others = made.devices
        made.kedge("device", "provision", first.name, "--no-service")
        first.stop_agent()
        # Nobody waits for a probation but who asks for one; nothing is recorded of two cores that sixteen share.
        (first.state / "agent.json").write_text('{"releases": {"probation_s": 0}, "recorder": {"enabled": false}}')
        first.start_agent()
        if base is not None:
            made.kedge("deploy", str(base.folder), "--to", first.name)
        first.stop_agent()
        for other in others:
            _copy(first.state, other.state)
        made.start_agents(made.devices)
        yield made
    finally:
        made.close()


def _made(number: int) -> Fleet:
    # Not under pytest's own folder, which only root may enter; and the path of a Unix socket in it must be short.
    folder = Path(tempfile.mkdtemp(prefix="kedge-fleet-", dir="/tmp"))
    folder.chmod(0o755)
    network = Network()
    devices: list[FleetDevice] = []
    try:
        _prepare(folder)
        # One that fails leaves those before it to be closed.
        devices.extend(_device(folder, f"d{index + 1:02}", network) for index in range(number))
        for device in devices:
            _await_sshd(network, device)
    except BaseException:
        Fleet(folder, network, devices).close()
        raise
    return Fleet(folder, network, devices)


def _prepare(folder: Path) -> None:
    """What the devices have in common: users, and the key that lets the host in; and the host's wheels."""
    _keygen(folder / "user_key")
    for name, line in (
        ("passwd", f"{USER}:x:{UID}:{UID}::{HOME}:/bin/sh\n"),
        # '*' is a password nobody has; '!' would lock the account for keys too.
        ("shadow", f"{USER}:*:19000:0:99999:7:::\n"),
    ):
        shutil.copy(f"/etc/{name}", folder / name)
        with (folder / name).open("a") as out:
            out.write(line)
    (folder / "cache" / "kedge").mkdir(parents=True)
    wheels = (cache_dir() / "wheelhouse").resolve()
    wheels.mkdir(parents=True, exist_ok=True)
    (folder / "cache" / "kedge" / "wheelhouse").symlink_to(wheels, target_is_directory=True)


def _device(fleet_folder: Path, name: str, network: Network) -> FleetDevice:
    folder = fleet_folder / name
    (folder / "home").mkdir(parents=True)
    os.chown(folder / "home", UID, UID)
    (folder / "tmp").mkdir()
    (folder / "tmp").chmod(0o1777)
    shutil.copy(fleet_folder / "user_key.pub", folder / "authorized_keys")
    _keygen(folder / "host_key")
    (folder / "sshd_config").write_text(
        """
        Port 22
        HostKey /run/device/host_key
        AuthorizedKeysFile /run/device/authorized_keys
        PidFile none
        StrictModes no
        UsePAM no
        PasswordAuthentication no
        KbdInteractiveAuthentication no
        UseDNS no
        MaxStartups 100
        MaxSessions 100
        Subsystem sftp internal-sftp
        """
    )
    script = f"""
        hostname {name}
        mount --bind {fleet_folder}/passwd /etc/passwd
        mount --bind {fleet_folder}/shadow /etc/shadow
        mount -t tmpfs tmpfs /run
        mkdir /run/sshd /run/device
        mount --bind {folder} /run/device
        mount -t tmpfs tmpfs /home
        mkdir {HOME}
        mount --bind {folder}/home {HOME}
        mount --bind {folder}/tmp /tmp
        exec {sshd_path()} -D -e -f /run/device/sshd_config
    """
    own = ("--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private")
    holder = held(*own, "sh", "-ec", script, log=folder / "log")
    try:
        return FleetDevice(name, folder, holder, network.connect(holder.pid))
    except BaseException:
        holder.kill()
        raise


def _await_sshd(network: Network, device: FleetDevice) -> None:
    probe = f"import socket; socket.create_connection(({device.cable.address!r}, 22), 1).close()"
    deadline = time.monotonic() + _START_S
    while subprocess.run(network.command(sys.executable, "-c", probe), capture_output=True, check=False).returncode:
        if device.holder.poll() is not None or time.monotonic() > deadline:
            lacks("netns", f"sshd does not start in namespaces here: {(device.folder / 'log').read_text()[-300:]}")
        time.sleep(0.1)


def _copy(source: Path, target: Path) -> None:
    """A state folder for another device: what runs there, which nobody writes to, as links; the rest is its own."""
    subprocess.run([*_USER, "mkdir", "-p", str(target.parent)], check=True)
    subprocess.run(["cp", "-al", str(source), str(target)], check=True)
    for name in sorted(path.name for path in source.iterdir() if path.name != "agent"):
        shutil.rmtree(target / name) if (target / name).is_dir() else (target / name).unlink()
        subprocess.run(["cp", "-a", str(source / name), str(target / name)], check=True)


def _children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _keygen(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


_USER = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups")

"""Devices that the doctor is called to: `local`, and one behind a real OpenSSH server that looks like a Jetson."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kedge.release.bundle import Release
from kedge_agent.store.layout import socket_directory
from tests.loopback.test_ssh import introduce, make_cli
from tests.support.agents import Device
from tests.support.clock import WallClock
from tests.support.deploys import eventually
from tests.support.doctors import Doctor
from tests.support.sshd import UID, Sshd, make_sshd, remove_sshd


@pytest.fixture(autouse=True)
def _beside_others(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that has `alone` waits until no other test of these runs, and keeps those away that come later.

    What it does to the machine (it swaps; a second agent runs on it), the doctor would find on each device of it.
    """
    name = str(Path(tempfile.gettempdir()) / f"kedge-doctor-tests-{os.geteuid()}")
    with open(f"{name}.gate", "w") as gate, open(f"{name}.lock", "w") as lock:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(lock, fcntl.LOCK_EX if "alone" in request.fixturenames else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield


@pytest.fixture
def alone() -> None:
    """No other of these tests runs meanwhile: `_beside_others`."""


@dataclass
class Local:
    """This machine as the device `local`: its agent is the test's to start and to kill."""

    device: Device
    doctor: Doctor


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Local]:
    made = make_local(tmp_path, tmp_path, monkeypatch)
    yield made
    made.device.kill()


def make_local(home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Local:
    """home: where its state lies. folder: for snapshots."""
    monkeypatch.setenv("XDG_STATE_HOME", str(home))
    state = home / "kedge" / "local"
    state.mkdir(parents=True, mode=0o700)
    (state / "agent.json").write_text('{"releases": {"probation_s": 0}}')
    return Local(Device(state), Doctor("local", folder, dict(os.environ)))


@dataclass
class Bench:
    """A device of its own: OpenSSH, a user, processes, a clock, and what an Orin Nano has in /sys and /etc.

    Two names stand for it: `bench1`, as the PC that it is, and `nano`, as the Jetson that it looks like.
    """

    server: Sshd
    clock: WallClock
    tree: Path
    doctor: Doctor
    nano: Doctor

    @property
    def state(self) -> Path:
        return self.server.home / ".local/state/kedge"

    @property
    def program(self) -> str:
        return f"{self.state}/bin/kedge-agent"

    def pid(self) -> int:
        """The daemon's, as the device counts."""
        return int((self.state / "agent.lock").read_text().split()[0])

    def outside(self, pid: int) -> int:
        """The number that a process of the device has on this machine."""
        assert self.server.process is not None
        space = os.readlink(f"/proc/{self.server.process.pid}/ns/pid_for_children")
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                numbers = Path(f"/proc/{name}/status").read_text().partition("\nNSpid:")[2].splitlines()[0].split()
                if numbers[1:] == [str(pid)] and os.readlink(f"/proc/{name}/ns/pid") == space:
                    return int(name)
        raise AssertionError(f"the device has no process {pid}")

    def run(self, command: str) -> str:
        """Run something as the device's user; it must work."""
        done = self.server.run(command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self) -> None:
        """Start the agent unless it runs, and wait until it serves."""
        self.server.run(f"{self.program} start")
        assert eventually(lambda: self.request("GET", "/v2/health/ready")[0] == 200)

    def restart(self) -> None:
        """Stop the agent in order where it runs, and start it."""
        self.server.run(f"{self.program} stop")
        self.start()

    def deploy(self, release: Release) -> None:
        """Have it serve a release; it must."""
        done = self.doctor.kedge("deploy", str(release.folder), "--to", "bench1")
        assert done.returncode == 0, done.stderr

    def forget(self) -> None:
        """As after its deploy: nothing was recorded, no crash was counted, the log is empty."""
        self.server.run(f"{self.program} stop")
        self.run(f"rm -rf {self.state}/recorder {self.state}/agent.log {self.state}/running")
        self.start()

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Status and body of one request."""
        return next(self._answers(method, path, body, 1))

    def asked(self, body: Any, requests: int, model: str = "digits") -> None:
        """It answers so many requests, one after the other."""
        for status, said in self._answers("POST", f"/v2/models/{model}/infer", body, requests):
            assert status == 200, said

    def _answers(self, method: str, path: str, body: Any, requests: int) -> Iterator[tuple[int, bytes]]:
        connection = http.client.HTTPConnection("agent", timeout=60)
        with contextlib.closing(connection):
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(f"/tmp/kedge-{UID}/{socket_directory(self.state).name}/infer.sock")
            for _ in range(requests):
                connection.request(method, path, b"" if body is None else json.dumps(body).encode())
                with connection.getresponse() as answer:
                    yield answer.status, answer.read()

    def own(self) -> None:
        """What root wrote into the state folder belongs to the agent."""
        subprocess.run(["chown", "-R", f"{UID}:{UID}", str(self.state)], check=True)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("doctor")
    server = make_sshd(apart=True, tree="jetson_orin_nano")
    try:
        clock = WallClock(server.folder / "clock")
        server.environment |= clock.environment
        server.stop()
        server.start()
        cli = make_cli(folder)
        cli.environment["XDG_STATE_HOME"] = str(folder / "state")
        introduce(cli, server)
        cli("device", "provision", "bench1", "--no-service")
        state = str(server.home / ".local/state/kedge")
        key = ("--key", str(server.key))
        cli("device", "add", "nano", server.address, "--target", "orin-nano-8gb", *key, "--state", state)
        cli("device", "trust", "nano", "--fingerprint", server.fingerprint())
        one, two = (Doctor(name, folder, cli.environment) for name in ("bench1", "nano"))
        yield Bench(server, clock, server.folder / "tree", one, two)
    finally:
        remove_sshd(server)

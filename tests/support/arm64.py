"""Devices that the suite in tests/device runs against: one on loopback, an emulated aarch64 one, and a real one."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tools.arm64.device import remove, start
from tools.arm64.root import UnavailableError, cached_root, make_root, roots, why_not

from kedge.fleet.inventory import parse_address
from kedge.transport.base import Deadline
from kedge.transport.hostkeys import fetch_host_key
from tests.support.environment import lacks, required
from tests.support.sshd import make_sshd, remove_sshd

__all__ = ["DEVICES", "NAMES", "SuiteDevice", "arm64", "real_device"]

# Where it is for the user; each test has a cache of its own.
ROOTS = roots()
REAL = "KEDGE_DEVICE"
_OURS = "kedge-device-tests"


@dataclass(frozen=True)
class SuiteDevice:
    """A device as a person knows it.

    address: user@host:port. key: its user's, None where ssh-agent or ~/.ssh has one. fingerprint: as read on the device
    itself. target: its profile. state: the agent's folder there, of this suite alone. sealed: it has no way to any
    network but to this host. emulated: no processor of its kind runs it.
    """

    name: str
    address: str
    key: Path | None
    fingerprint: str
    target: str
    state: str
    sealed: bool = False
    emulated: bool = False

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command there as its user, through OpenSSH's own client."""
        user, host, port = parse_address(self.address)
        key = ("-F", "none", "-i", str(self.key)) if self.key is not None else ()
        unknown = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR")
        return subprocess.run(
            ["ssh", "-p", str(port), *key, *unknown, f"{user}@{host}", command],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


def arm64() -> None:
    """Skip where no emulated device can be made; where it is required its root is made, which takes minutes."""
    lacking = why_not()
    if lacking is not None:
        lacks("arm64", lacking)
    if cached_root(folder=ROOTS) is not None:
        return
    if "arm64" not in required():
        pytest.skip("no root of Debian for arm64 was made yet (python -m tools.arm64_device make)")
    try:
        make_root(folder=ROOTS)
    except UnavailableError as error:
        lacks("arm64", str(error))


@contextmanager
def _loopback() -> Iterator[SuiteDevice]:
    # Of what else runs on this machine its doctor shall see nothing.
    server = make_sshd(apart=os.geteuid() == 0)
    try:
        target = f"cpu-generic-{os.uname().machine}"
        state = f"{server.home}/{_OURS}"
        yield SuiteDevice("loopback", server.address, server.key, server.fingerprint(), target, state)
    finally:
        remove_sshd(server)


@contextmanager
def _emulated() -> Iterator[SuiteDevice]:
    arm64()
    # Not under pytest's own folder, which only root may enter: the device's user must get in.
    with tempfile.TemporaryDirectory(prefix="kedge-arm64-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        try:
            made = start("device", folder, ROOTS, tied=True)
            yield SuiteDevice(
                "arm64",
                f"{made.ssh}:22",
                made.key,
                made.fingerprint(),
                "cpu-generic-aarch64",
                f"/home/{made.user}/{_OURS}",
                sealed=True,
                emulated=os.uname().machine != "aarch64",
            )
        except UnavailableError as error:
            lacks("arm64", str(error))
        finally:
            remove("device", folder)


@contextmanager
def real_device() -> Iterator[SuiteDevice]:
    """The one that KEDGE_DEVICE=USER@HOST:PORT,TARGET names; whoever sets it vouches for the way there."""
    named = os.environ.get(REAL, "")
    address, comma, target = named.partition(",")
    if not comma:
        pytest.skip(f"no real device was named ({REAL}=USER@HOST:PORT,TARGET)")
    _, host, port = parse_address(address)
    key = fetch_host_key(host, port, Deadline.after(30, "reading the host key"))
    there = SuiteDevice("real", address, None, key.fingerprint, target, "")
    home = there.run('printf %s "$HOME"').stdout
    assert home.startswith("/"), f"{address}: no home folder: {home!r}"
    state = f"{home}/{_OURS}"
    try:
        yield SuiteDevice("real", address, None, key.fingerprint, target, state)
    finally:
        there.run(f"{state}/bin/kedge-agent stop; rm -rf {state}")


DEVICES: dict[str, Callable[[], AbstractContextManager[SuiteDevice]]] = {
    "loopback": _loopback,
    "arm64": _emulated,
    "real": real_device,
}
NAMES = tuple(DEVICES)

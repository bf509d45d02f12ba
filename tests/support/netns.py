"""Networks of a test's own: a bridge in a network namespace, and one more namespace behind each of its cables.

Nothing of this machine's own network changes, and no address is in use outside. What holds the namespaces are child
processes that end with this one, and the namespaces with them. Whoever is to reach the devices runs in the bridge's
namespace: `Network.command`.
"""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.environment import lacks

__all__ = ["Cable", "Network", "entering", "held", "netns"]

_NET = ipaddress.ip_network("10.213.0.0/22")
_BRIDGE = "kedge0"
_START_S = 20.0
# With the parent's end comes the child's: a test that is killed leaves nothing behind.
_TIED = ("setpriv", "--pdeathsig", "KILL")


def netns() -> None:
    """Skip where no network namespace can be made, or nothing is there to connect it."""
    if os.geteuid() != 0:
        lacks("netns", "only root can make network namespaces")
    for tool, package in (("ip", "iproute2"), ("tc", "iproute2"), ("nsenter", "util-linux"), ("setpriv", "util-linux")):
        if shutil.which(tool) is None:
            lacks("netns", f"no {tool} on this machine (Debian: {package})")
    tried = "ip link set lo up && ip link add kedge0 type bridge && ip link add v0 type veth peer name v1"
    said = subprocess.run(["unshare", "--net", "sh", "-ec", tried], capture_output=True, text=True, check=False)
    if said.returncode != 0:
        lacks("netns", f"no networks of one's own on this machine: {said.stderr.strip()[:200]}")


def held(*words: str, log: Path | None = None) -> subprocess.Popen[bytes]:
    """A child that unshares its network and what these options of unshare(1) say, and ends with this thread."""
    out: Any = subprocess.DEVNULL if log is None else log.open("ab")
    try:
        made = subprocess.Popen([*_TIED, "unshare", "--net", *words], stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    finally:
        if log is not None:
            out.close()
    ours, theirs = os.stat("/proc/self/ns/net"), Path(f"/proc/{made.pid}/ns/net")
    deadline = time.monotonic() + _START_S
    while made.poll() is None and time.monotonic() < deadline:
        if theirs.stat().st_ino != ours.st_ino:
            return made
        time.sleep(0.005)
    made.kill()
    made.wait()
    reason = "" if log is None else log.read_text(errors="replace")[-200:]
    return lacks("netns", f"no namespaces of one's own on this machine: {reason}")


def entering(pid: int, *kinds: str) -> list[str]:
    """A prefix that runs a command in these namespaces (options of nsenter(1)) of a process."""
    return ["nsenter", f"--target={pid}", *kinds]


@dataclass
class Cable:
    """Between the bridge and one namespace, which is reached at `address`; its end at the bridge is `name`."""

    network: Network
    name: str
    address: str

    def down(self) -> None:
        """Pull it: what is on its way is lost, and nobody is told."""
        self.network.ip("link", "set", self.name, "down")

    def up(self) -> None:
        """Plug it in again."""
        self.network.ip("link", "set", self.name, "up")

    def limit(self, bytes_per_s: int) -> None:
        """Let no more than this through to the device; what waits is queued, 400 ms of it at most."""
        rate = ("rate", f"{bytes_per_s * 8}bit", "burst", "16kb", "latency", "400ms")
        self.network.run("tc", "qdisc", "replace", "dev", self.name, "root", "tbf", *rate)

    def unlimited(self) -> None:
        """Take the limit away."""
        self.network.run("tc", "qdisc", "del", "dev", self.name, "root")

    def bytes_to_device(self) -> int:
        """All that went out to the device so far, headers included."""
        told = json.loads(self.network.ip("-s", "-j", "link", "show", "dev", self.name))
        return int(told[0]["stats64"]["tx"]["bytes"])


class Network:
    """A bridge, and this end's address on it; close it, or end."""

    def __init__(self) -> None:
        netns()
        self._holder = held("sleep", "infinity")
        self._addresses = _NET.hosts()
        self._cables = 0
        self.address = str(next(self._addresses))
        self.ip("link", "set", "lo", "up")
        self.ip("link", "add", _BRIDGE, "type", "bridge")
        self.ip("addr", "add", f"{self.address}/{_NET.prefixlen}", "dev", _BRIDGE)
        self.ip("link", "set", _BRIDGE, "up")

    def connect(self, pid: int) -> Cable:
        """Lead a cable from the bridge into the network namespace of a process, where it is `eth0`."""
        self._cables += 1
        name = f"cable{self._cables}"
        cable = Cable(self, name, str(next(self._addresses)))
        self.ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        self.ip("link", "set", name, "master", _BRIDGE, "up")
        inside = entering(pid, "--net")
        for words in (
            ("addr", "add", f"{cable.address}/{_NET.prefixlen}", "dev", "eth0"),
            ("link", "set", "lo", "up"),
            ("link", "set", "eth0", "up"),
        ):
            _run([*inside, "ip", *words])
        return cable

    def command(self, *words: str) -> list[str]:
        """A command as it runs at the bridge, from where every device is reached."""
        return [*entering(self._holder.pid, "--net"), *words]

    def run(self, *words: str) -> str:
        """Run a command at the bridge, which must work; what it printed."""
        return _run(self.command(*words))

    def ip(self, *words: str) -> str:
        """`ip`, at the bridge."""
        return self.run("ip", *words)

    def close(self) -> None:
        """Let go of the namespace, and of every cable; idempotent."""
        self._holder.kill()
        self._holder.wait()


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout

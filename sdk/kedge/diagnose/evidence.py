"""What the doctor judges: the facts that a device tells of itself, and what this host saw of the way to it.

Devices lie, by defect or on purpose: the document is bounded, and read through `Node`, which believes nothing.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import BadInputError
from ..targets import Target
from .node import NOTHING, Node

__all__ = ["Clock", "Evidence", "Link", "Section", "evidence_of"]

HostKeyState = Literal["pinned", "not pinned", "changed"]
_ASKS = re.compile(r"\bsudo\b")


@dataclass(frozen=True)
class Clock:
    """How far the device's clock is behind this host's (negative: ahead of it), and by how much that may be wrong: half
    of the time between the question and the answer, somewhere in which the device looked at its clock."""

    behind_s: float
    uncertainty_s: float


@dataclass(frozen=True)
class Link:
    """What this host saw of the way to a device.

    over: "ssh"; "local": the device is this machine. address: `user@host`; port: of its sshd.
    key: file of the private key that the inventory names; None: the usual ones.
    host_key, login: None where it did not come to that, or there is no SSH.
    problem, hint: of what ended the looking; None: nothing did.
    agent_problem, agent_hint: the device was reached, and its agent did not tell its facts.
    agent_silent_s: for how long its program was waited for, which said nothing at all; None: it said something.
    jumps: `user@host:port` of each jump host, outermost first. stranger: the entry of the inventory whose host key is
    not the pinned one, where that is a jump host's.
    """

    over: Literal["ssh", "local"]
    reachable: bool
    address: str | None = None
    port: int = 22
    key: str | None = None
    connect_ms: float | None = None
    round_trip_ms: float | None = None
    host_key: HostKeyState | None = None
    login: bool | None = None
    clock: Clock | None = None
    problem: str | None = None
    hint: str | None = None
    agent_problem: str | None = None
    agent_hint: str | None = None
    agent_silent_s: float | None = None
    jumps: tuple[str, ...] = ()
    stranger: str | None = None

    def way(self, program: str, *options: str) -> str:
        """`ssh -p 2222 -i KEY user@host`, or another program of OpenSSH that takes these options; to be pasted."""
        port = () if self.port == 22 else ("-p", str(self.port))
        key = () if self.key is None else ("-i", self.key)
        # As an option of its own, ssh-copy-id takes it too.
        jumps = ("-o", f"ProxyJump={','.join(self.jumps)}") if self.jumps else ()
        return shlex.join([program, *options, *port, *key, *jumps, self.address or ""])


@dataclass(frozen=True)
class Section:
    """What one collector found. why: that nothing is known of it, and the reason; None: `data` hold something."""

    data: Node
    why: str | None


@dataclass(frozen=True)
class Evidence:
    """device: its name here. target: its profile, None where it is not known. link: None: out of a snapshot.

    facts: the document of docs/diagnose.md; empty where the device told none.
    problems: what is wrong with the snapshot's file, a line each. cut: it ends before its end.
    """

    device: str
    target: Target | None
    link: Link | None
    facts: Node = NOTHING
    problems: tuple[str, ...] = ()
    cut: bool = False

    @property
    def told(self) -> bool:
        """Whether the device told its facts."""
        return bool(self.facts.child("collectors"))

    @property
    def at_s(self) -> float | None:
        """When the facts were told, by the device's clock: seconds since 1970."""
        return self.facts.amount("at_s")

    @property
    def facts_seconds(self) -> float | None:
        """How long the device took to tell them."""
        return self.facts.amount("seconds")

    def section(self, collector: str) -> Section:
        """What a collector found, or why it found nothing."""
        if not self.told:
            return Section(NOTHING, f"not looked at: {self._untold()}")
        entry = self.facts.child("collectors", collector)
        status, reason, data = entry.text("status"), entry.text("reason"), entry.child("data")
        if status == "ok" and data:
            return Section(data, None)
        if not entry and self.cut:
            return Section(data, "the file was cut before it")
        words = {
            "unavailable": "unavailable",
            "failed": "the collector failed",
            "timeout": "cut: it took too long",
        }.get(status or "", "the device does not tell" if not entry else "the device tells nothing")
        return Section(data, f"{words}: {reason}" if reason else words)

    def _untold(self) -> str:
        if self.link is None:
            return "the file was cut before them" if self.cut else "the snapshot holds no facts"
        return "there is no connection" if self.link.problem is not None else "its agent told no facts"

    def data(self, collector: str) -> Node:
        """What a collector found, where it matters little why it found nothing."""
        return self.section(collector).data

    def shell(self, command: str, *, terminal: bool = False) -> str:
        """The command, to be pasted on this host: run by SSH where the device is another machine.

        Out of a snapshot it is to be run on the device itself: the address is not in there.

        Args:
            terminal: it wants one, as `sudo` does, which may ask for a password.
        """
        if self.link is None or self.link.address is None:
            return command
        options = ("-t",) if terminal or _ASKS.search(command) else ()
        return f"{self.link.way('ssh', *options)} {shlex.quote(command)}"


def evidence_of(device: str, document: Any, target: Target | None = None, link: Link | None = None) -> Evidence:
    """Evidence from a facts document, as a device sent it or a snapshot holds it.

    Raises:
        BadInputError: it is no such document.
    """
    if not isinstance(document, Mapping) or not isinstance(document.get("collectors"), dict):
        raise BadInputError(f"{device}: what it tells of itself is no document of facts", hint="docs/diagnose.md")
    version = document.get("kedge_facts")
    if version != 1 or isinstance(version, bool):
        raise BadInputError(
            f"{device}: its facts are of form {str(version)[:20]!r}, this kedge reads 1",
            hint="agent and host may be of different versions",
        )
    return Evidence(device, target, link, Node(dict(document)))

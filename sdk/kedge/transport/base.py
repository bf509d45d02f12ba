"""The seam: a transport opens channels to one agent; a channel is a two-way stream of bytes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal, Protocol

from kedge_agent.wire import (
    GREETING_PREFIX,
    MAX_GREETING_BYTES,
    NOISE_LIMIT_BYTES,
    PROTOCOLS_SPOKEN,
    Greeting,
    WireError,
    parse_greeting,
)

from ..errors import AgentMissingError, IncompatibleError, KedgeError, UnreachableError, error_of_kind

__all__ = ["LOCAL", "Channel", "Deadline", "Door", "Transport", "agent_hint", "agreed", "greet", "told_error"]

LOCAL = "local"
"""The device that is this machine: kedge runs its agent itself, and there is nothing to provision or upgrade."""

Door = Literal["infer", "control"]


@dataclass(frozen=True)
class Deadline:
    """A moment by which something must be done. It is passed down; nobody makes a second one."""

    at: float
    what: str

    @classmethod
    def after(cls, seconds: float, what: str, within: Deadline | None = None) -> Deadline:
        """The moment `seconds` from now; `what` names the work, for the message.

        Args:
            within: the deadline of what this is part of, where it comes first.
        """
        at = time.monotonic() + seconds
        return within if within is not None and within.at < at else cls(at, what)

    @property
    def has_passed(self) -> bool:
        """Whether nothing is left."""
        return time.monotonic() >= self.at

    def remaining(self) -> float:
        """Seconds left, always positive.

        Raises:
            UnreachableError: none are left.
        """
        left = self.at - time.monotonic()
        if left <= 0:
            raise UnreachableError(f"{self.what} took too long", hint="check the link to the device, then try again")
        return left


class Channel(Protocol):
    """A two-way stream to a process of the agent; the part of a socket that http.client uses, and a little more."""

    @property
    def window_bytes_per_s(self) -> float:
        """What flow control lets through on a link as long as this one; infinite where nothing is known to bind it."""
        ...

    def sendall(self, data: bytes | memoryview, /) -> None:
        """Send all of it."""
        ...

    def recv(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""
        ...

    def makefile(self, mode: Literal["rb"], /) -> BinaryIO:
        """A buffered reader."""
        ...

    def settimeout(self, seconds: float | None, /) -> None:
        """Limit each later operation."""
        ...

    def close(self) -> None:
        """Hang up; idempotent."""
        ...

    def end(self, timeout_s: float) -> tuple[int | None, str]:
        """Wait for the process: its exit status (None if unknown) and the end of its error output."""
        ...


class Transport(Protocol):
    """A way to one agent."""

    @property
    def name(self) -> str:
        """The device's name, for messages."""
        ...

    def open_door(self, door: Door, deadline: Deadline) -> Channel:
        """A stream to one of the daemon's doors, ready for HTTP.

        Raises:
            AgentMissingError: no agent is installed or running.
            IncompatibleError: the agent speaks another protocol.
            UnreachableError: the device does not answer in time.
        """
        ...

    def open_receive(self, deadline: Deadline) -> tuple[Channel, int]:
        """A stream to a `receive` process, ready for a push, and the protocol to speak. Raises as `open_door`."""
        ...

    def open_diagnose(self, words: Sequence[str], deadline: Deadline) -> Channel:
        """A stream of parts (`kedge_agent.formats.parts`) from a `diagnose` process; it needs no running agent.

        Args:
            words: what is asked for, as `kedge_agent.diagnose.command` reads them: letters, digits and hyphens.

        Raises:
            KedgeError: as `open_door`.
            BadInputError: the agent knows no such words.
        """
        ...

    def close(self) -> None:
        """Give everything back; idempotent."""
        ...


def greet(channel: Channel, device: str, deadline: Deadline) -> Greeting:
    """Read the agent's greeting, skipping what a login shell may print before it.

    Raises:
        AgentMissingError, IncompatibleError, UnreachableError: as `Transport.open_door`.
    """
    received = b""
    try:
        while True:
            start = 0 if received.startswith(GREETING_PREFIX) else received.find(b"\n" + GREETING_PREFIX) + 1
            if received[start:].startswith(GREETING_PREFIX) and (end := received.find(b"\n", start)) >= 0:
                break
            if len(received) > NOISE_LIMIT_BYTES + MAX_GREETING_BYTES:
                raise IncompatibleError(
                    f"{device} prints too much before the agent speaks", hint="silence the login shell's start-up files"
                )
            received += _line(channel, device, deadline)
        greeting = parse_greeting(received[start:end])
    except TimeoutError as error:
        raise UnreachableError(f"{device}: the agent did not answer in time", hint="try again") from error
    except WireError as error:
        raise IncompatibleError(
            f"{device}: {error}", hint=agent_hint(device, "provision", "provision it again")
        ) from error
    if not set(PROTOCOLS_SPOKEN) & set(greeting.protocols):
        ours = ", ".join(map(str, PROTOCOLS_SPOKEN))
        spoken = ", ".join(map(str, greeting.protocols))
        raise IncompatibleError(
            f"{device}: the agent ({greeting.version}) speaks protocol {spoken}, this kedge speaks {ours}",
            hint=agent_hint(device, "provision"),
        )
    if greeting.error is not None:
        raise told_error(device, greeting.kind, greeting.error, greeting.hint or "")
    return greeting


def _line(channel: Channel, device: str, deadline: Deadline) -> bytes:
    """What comes up to the end of a line; what follows is not the greeting's, and is left to who reads on."""
    data = bytearray()
    while not data.endswith(b"\n") and len(data) <= NOISE_LIMIT_BYTES:
        channel.settimeout(deadline.remaining())
        byte = channel.recv(1)
        if not byte:
            raise _no_greeting(channel, device)
        data += byte
    return bytes(data)


def agent_hint(device: str, command: str = "upgrade", what: str = "bring the agent to this version") -> str:
    """A hint where an agent is missing or of another version: the command of `kedge device` that helps."""
    if device == LOCAL:
        return "kedge runs this agent itself: end the other kedge that runs it now, or install this one again"
    return f"{what}: kedge device {command} {device}"


def told_error(device: str, kind: str | None, message: str, hint: str) -> KedgeError:
    """An error that a device reports. A device does not know its name here: its hints say DEVICE."""
    if device == LOCAL and "kedge device " in hint:
        hint = agent_hint(device)
    # Agents of before say NAME in their greeting.
    hint = hint.replace("provision NAME", "provision DEVICE").replace("DEVICE", device)
    return error_of_kind(kind, f"{device}: {message}", hint)


def agreed(greeting: Greeting) -> int:
    """The protocol that a channel speaks after this greeting: the highest that both sides have."""
    return max(set(PROTOCOLS_SPOKEN) & set(greeting.protocols))


def _no_greeting(channel: Channel, device: str) -> AgentMissingError:
    status, said = channel.end(5.0)
    if status in (126, 127):
        hint = agent_hint(device, "provision", "install it")
        return AgentMissingError(f"{device}: no agent is installed there", hint=hint)
    lines = [line for line in said.strip().splitlines() if line.strip()]
    reason = lines[-1][:300] if lines else f"it ended with status {status}"
    # What is there has the version that is wanted: without --force it would be left as it is.
    hint = agent_hint(device, "provision", "install it anew") + ("" if device == LOCAL else " --force")
    return AgentMissingError(f"{device}: the agent cannot be used: {reason}", hint=hint)

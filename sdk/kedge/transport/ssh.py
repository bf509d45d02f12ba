"""One SSH connection to a device, over paramiko: channels to its agent, and what provisioning needs."""

from __future__ import annotations

import math
import shlex
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ..errors import AgentMissingError, UnreachableError
from .address import SshAddress
from .base import Channel, Deadline, Door, agreed, greet
from .ssh_channel import SshChannel
from .ssh_client import make_client
from .ssh_errors import Server, translated
from .ssh_jump import Hop, leave, reach

if TYPE_CHECKING:
    import paramiko

__all__ = ["Completed", "SshAddress", "SshTransport"]

_MAX_OUTPUT_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Completed:
    """A finished command: exit status, standard output, end of the error output."""

    status: int
    output: bytes
    errors: str


class SshTransport:
    """A connection that is made when it is first needed, and once.

    Args:
        name: the device's name, for messages.
        address: where it is and which key it must show.
    """

    def __init__(self, name: str, address: SshAddress) -> None:
        self.name = name
        self.address = address
        self._server = Server(address, name)
        self._client: paramiko.SSHClient | None = None
        self._connecting: paramiko.SSHClient | None = None
        self._hop: Hop | None = None
        self._lock = threading.Lock()
        # Held by whoever connects: others wait for the same connection.
        self._turn = threading.Lock()
        # How often it was closed: what is made for an earlier generation is nobody's any more.
        self._generation = 0
        self._round_trip_s = math.inf

    def connect(self, deadline: Deadline) -> None:
        """Connect, compare the host key with the pinned one, authenticate.

        Raises:
            UnreachableError: no answer. UnknownHostKeyError: no key is pinned.
            HostKeyChangedError: another key than the pinned one.
            AuthenticationRefusedError: none of our keys is accepted.
        """
        self._connected(deadline)

    def _connected(self, deadline: Deadline) -> paramiko.SSHClient:
        """The one connection, which is made if there is none."""
        with self._lock:
            generation, client = self._generation, self._client
        if client is not None:
            return client
        while not self._turn.acquire(timeout=deadline.remaining()):
            pass
        try:
            with self._lock:
                self._check(generation)
                if self._client is not None:
                    return self._client
            stream, hop = reach(self._server, deadline)
            try:
                client = make_client(self._server, stream, deadline, partial(self._begun, generation))
                try:
                    with self._lock:
                        self._check(generation)
                        self._client, self._hop = client, hop
                except BaseException:
                    client.close()
                    raise
            except BaseException:
                leave(hop)
                raise
            finally:
                self._connecting = None
            return client
        finally:
            self._turn.release()

    def _begun(self, generation: int, client: paramiko.SSHClient) -> None:
        with self._lock:
            self._check(generation)
            self._connecting = client

    def _check(self, generation: int) -> None:
        if generation != self._generation:
            raise UnreachableError(
                f"{self.name}: the connection was closed while it was being made", hint="run the command again"
            )

    def open_door(self, door: Door, deadline: Deadline) -> Channel:
        """See `Transport.open_door`."""
        return self._open_agent(f"dial-stdio {door}", deadline)[0]

    def open_receive(self, deadline: Deadline) -> tuple[Channel, int]:
        """See `Transport.open_receive`."""
        channel, protocol = self._open_agent("receive", deadline)
        channel.bound_in_flight(self._round_trip_s)
        return channel, protocol

    def open_diagnose(self, words: Sequence[str], deadline: Deadline) -> Channel:
        """See `Transport.open_diagnose`."""
        return self._open_agent(shlex.join(["diagnose", *words]), deadline)[0]

    def run(self, command: str, deadline: Deadline, data: bytes = b"") -> Completed:
        """Run a shell command to its end, `data` on its standard input.

        Raises:
            UnreachableError: the connection broke, or the command outlasted the deadline.
        """
        channel = self._execute(command, deadline)
        with translated(self._server):
            try:
                if data:
                    channel.sendall(memoryview(data))  # type: ignore[arg-type]
                channel.shutdown_write()
                output = bytearray()
                while chunk := channel.recv(64 * 1024):
                    output += chunk
                    if len(output) > _MAX_OUTPUT_BYTES:
                        raise UnreachableError(f"{self.name} prints without end", hint="log in and look")
                    channel.settimeout(deadline.remaining())
                status, errors = SshChannel(channel).end(deadline.remaining())
                return Completed(-1 if status is None else status, bytes(output), errors)
            finally:
                channel.close()

    @contextmanager
    def sftp(self, deadline: Deadline) -> Iterator[paramiko.SFTPClient]:
        """An SFTP session. It bootstraps the agent; releases never travel this way."""
        connection = self._connected(deadline)
        with translated(self._server):
            client = connection.open_sftp()
            try:
                channel = client.get_channel()
                assert channel is not None
                channel.settimeout(deadline.remaining())
                yield client
            finally:
                client.close()

    def close(self) -> None:
        """Close the connection; idempotent. Another thread that connects now fails, and leaves nothing open."""
        with self._lock:
            self._generation += 1
            connecting, client, hop = self._connecting, self._client, self._hop
            self._client = self._hop = None
        for open_one in (connecting, client):
            if open_one is not None:
                open_one.close()
        leave(hop)

    def _drop(self, dead: paramiko.SSHClient) -> None:
        """Let go of this connection, unless another thread did so and has a new one."""
        with self._lock:
            if self._client is not dead:
                return
            hop = self._hop
            self._client = self._hop = None
        dead.close()
        leave(hop)

    def _open_agent(self, arguments: str, deadline: Deadline) -> tuple[SshChannel, int]:
        if self.address.state is None:
            raise AgentMissingError(
                f"{self.name}: no agent is known there", hint=f"install it: kedge device provision {self.name}"
            )
        binary = shlex.quote(f"{self.address.state}/bin/kedge-agent")
        channel = SshChannel(self._execute(f"exec {binary} {arguments}", deadline))
        try:
            with translated(self._server):
                return channel, agreed(greet(channel, self.name, deadline))
        except BaseException:
            channel.close()
            raise

    def _execute(self, command: str, deadline: Deadline) -> paramiko.Channel:
        client = self._connected(deadline)
        with translated(self._server):
            transport = client.get_transport()
            if transport is None or not transport.is_active():
                # Whoever asks again gets a new one.
                self._drop(client)
                raise UnreachableError(f"{self.name}: the connection is gone", hint="run the command again")
            begin = time.monotonic()
            channel = transport.open_session(timeout=deadline.remaining())
            self._round_trip_s = min(self._round_trip_s, time.monotonic() - begin)
            channel.settimeout(deadline.remaining())
            # paramiko waits for the answer without limit; closing the channel is what ends its wait.
            watchdog = threading.Timer(deadline.remaining(), channel.close)
            watchdog.daemon = True
            watchdog.start()
            try:
                channel.exec_command(command)
            finally:
                watchdog.cancel()
            return channel

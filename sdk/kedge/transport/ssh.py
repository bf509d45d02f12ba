"""One SSH connection to a device, over paramiko: channels to its agent, and what provisioning needs."""

from __future__ import annotations

import math
import os
import shlex
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import (
    AgentMissingError,
    AuthenticationRefusedError,
    BadInputError,
    HostKeyChangedError,
    KedgeError,
    UnknownHostKeyError,
    UnreachableError,
)
from .address import SshAddress
from .base import Channel, Deadline, Door, agreed, greet
from .hostkeys import HostKey, disabled_algorithms, quiet_paramiko
from .ssh_channel import QuickSocket, SshChannel, fast_ciphers_first

if TYPE_CHECKING:
    import paramiko

__all__ = ["Completed", "SshAddress", "SshTransport"]

_KEEPALIVE_S = 15
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
        self._client: paramiko.SSHClient | None = None
        self._round_trip_s = math.inf

    def connect(self, deadline: Deadline) -> None:
        """Connect, compare the host key with the pinned one, authenticate.

        Raises:
            UnreachableError: no answer. UnknownHostKeyError: no key is pinned.
            HostKeyChangedError: another key than the pinned one.
            AuthenticationRefusedError: none of our keys is accepted.
        """
        if self._client is not None:
            return
        import paramiko

        quiet_paramiko()
        address = self.address
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(_refuse_unpinned(self.name, address))
        try:
            with _translated(self.name, address):
                if address.host_key is not None:
                    pinned = paramiko.PKey.from_type_string(address.host_key.algorithm, address.host_key.raw)
                    entry = address.host if address.port == 22 else f"[{address.host}]:{address.port}"
                    client.get_host_keys().add(entry, address.host_key.algorithm, pinned)
                sock = QuickSocket.connected((address.host, address.port), deadline.remaining())
                client.connect(
                    address.host,
                    address.port,
                    address.user,
                    key_filename=None if address.identity is None else os.fspath(address.identity.expanduser()),
                    sock=sock,
                    timeout=deadline.remaining(),
                    banner_timeout=deadline.remaining(),
                    auth_timeout=deadline.remaining(),
                    channel_timeout=deadline.remaining(),
                    allow_agent=address.identity is None,
                    look_for_keys=address.identity is None,
                    disabled_algorithms=disabled_algorithms(),
                    transport_factory=fast_ciphers_first,
                )
                transport = client.get_transport()
                assert transport is not None
                transport.set_keepalive(_KEEPALIVE_S)
        except BaseException:
            client.close()
            raise
        self._client = client

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
        with _translated(self.name, self.address):
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
        self.connect(deadline)
        assert self._client is not None
        with _translated(self.name, self.address):
            client = self._client.open_sftp()
            try:
                channel = client.get_channel()
                assert channel is not None
                channel.settimeout(deadline.remaining())
                yield client
            finally:
                client.close()

    def close(self) -> None:
        """Close the connection; idempotent."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _open_agent(self, arguments: str, deadline: Deadline) -> tuple[SshChannel, int]:
        if self.address.state is None:
            raise AgentMissingError(
                f"{self.name}: no agent is known there", hint=f"install it: kedge device provision {self.name}"
            )
        binary = shlex.quote(f"{self.address.state}/bin/kedge-agent")
        channel = SshChannel(self._execute(f"exec {binary} {arguments}", deadline))
        try:
            with _translated(self.name, self.address):
                return channel, agreed(greet(channel, self.name, deadline))
        except BaseException:
            channel.close()
            raise

    def _execute(self, command: str, deadline: Deadline) -> paramiko.Channel:
        self.connect(deadline)
        assert self._client is not None
        with _translated(self.name, self.address):
            transport = self._client.get_transport()
            if transport is None or not transport.is_active():
                # Whoever asks again gets a new one.
                self.close()
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


def _refuse_unpinned(name: str, address: SshAddress) -> Any:
    import paramiko

    class RefuseUnpinned(paramiko.MissingHostKeyPolicy):
        def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
            shown = HostKey(key.get_name(), key.get_base64())
            if address.host_key is not None:
                raise _changed(name, address.host_key, shown)
            raise UnknownHostKeyError(
                f"{name}: no host key is pinned; {address.host} shows {shown.algorithm} {shown.fingerprint}",
                hint="compare it with the device's own, then:"
                f" kedge device trust {name} --fingerprint {shown.fingerprint}",
            )

    return RefuseUnpinned()


def _changed(name: str, pinned: HostKey, shown: HostKey) -> HostKeyChangedError:
    return HostKeyChangedError(
        f"{name}: the host key changed: pinned {pinned.algorithm} {pinned.fingerprint},"
        f" shown {shown.algorithm} {shown.fingerprint}",
        hint="somebody may be listening; if the device was set up anew:"
        f" kedge device trust {name} --replace --fingerprint FINGERPRINT (as read on the device itself)",
    )


@contextmanager
def _translated(name: str, address: SshAddress) -> Iterator[None]:
    import paramiko
    from paramiko.pkey import UnknownKeyType

    where = f"{name} ({address.user}@{address.host}:{address.port})"
    try:
        yield
    except KedgeError:
        raise
    except UnknownKeyType as error:
        raise BadInputError(
            f"{name}: paramiko does not know the pinned key's algorithm", hint=f"kedge device trust {name} --replace"
        ) from error
    except paramiko.BadHostKeyException as error:
        shown = HostKey(error.key.get_name(), error.key.get_base64())
        pinned = HostKey(error.expected_key.get_name(), error.expected_key.get_base64())
        raise _changed(name, pinned, shown) from error
    except paramiko.PasswordRequiredException as error:
        raise AuthenticationRefusedError(
            f"{where}: the private key is encrypted", hint="load it into ssh-agent (ssh-add), and leave --key out"
        ) from error
    except paramiko.AuthenticationException as error:
        raise AuthenticationRefusedError(
            f"{where}: the device accepts none of our keys",
            hint="put your public key into the device's ~/.ssh/authorized_keys, or name the right --key",
        ) from error
    except FileNotFoundError as error:
        if address.identity is None or error.filename != os.fspath(address.identity.expanduser()):
            raise BadInputError(f"{name}: no such file: {error.filename or error}") from error
        raise AuthenticationRefusedError(
            f"{where}: the private key {error.filename} does not exist", hint="name the right --key"
        ) from error
    except (paramiko.SSHException, OSError, EOFError) as error:
        if "No authentication methods available" in str(error) or "not a valid" in str(error):
            raise AuthenticationRefusedError(
                f"{where}: there is no usable private key: {error}",
                hint="name one with --key, or load it into ssh-agent",
            ) from error
        # Of `[Errno 111] Connection refused` the words.
        said = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise UnreachableError(
            f"{where} cannot be reached: {said}",
            hint="check the address, the link and that sshd runs there",
        ) from error

"""What paramiko and sockets say of an SSH server, in the errors of ours: of a device, or of a jump host before it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import (
    AuthenticationRefusedError,
    BadInputError,
    HostKeyChangedError,
    KedgeError,
    UnknownHostKeyError,
    UnreachableError,
)
from .address import SshAddress, expanded
from .hostkeys import HostKey

__all__ = ["Server", "refuse_unpinned", "translated"]


@dataclass(frozen=True)
class Server:
    """Of whom an error speaks.

    device: the name of a device; None: a jump host, which the addresses of many devices may have in common.
    """

    address: SshAddress
    device: str | None

    @property
    def who(self) -> str:
        """Its short name."""
        return self.device if self.device is not None else f"the jump host {self.address}"

    @property
    def where(self) -> str:
        """Its name and address, and the jump hosts before it."""
        if self.device is None:
            return self.who
        through = ", then ".join(jump.name or str(jump) for jump in self.address.jumps)
        return f"{self.device} ({self.address}{f', through {through}' if through else ''})"

    def trust(self, *options: str) -> str:
        """What to do to pin a host key, where it has been compared."""
        name = self.device or self.address.name
        if name is not None:
            return " ".join(["kedge device trust", name, *options])
        user = shlex.quote(f"{self.address.user}@{self.address.host}")
        return f"ssh -p {self.address.port} {user} true, which asks for it and writes it into known_hosts"


def refuse_unpinned(server: Server) -> Any:
    """paramiko's policy for keys that it finds not pinned: an error that shows the key."""
    import paramiko

    class RefuseUnpinned(paramiko.MissingHostKeyPolicy):
        def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
            shown = HostKey(key.get_name(), key.get_base64())
            if server.address.host_key is not None:
                raise _changed(server, server.address.host_key, shown)
            raise UnknownHostKeyError(
                f"{server.who}: no host key is pinned; {server.address.host} shows"
                f" {shown.algorithm} {shown.fingerprint}",
                hint=f"compare it with the device's own, then: {server.trust('--fingerprint', shown.fingerprint)}",
            )

    return RefuseUnpinned()


def _changed(server: Server, pinned: HostKey, shown: HostKey) -> HostKeyChangedError:
    if server.device is None and server.address.name is None:
        entry = f"[{server.address.host}]:{server.address.port}" if server.address.port != 22 else server.address.host
        mend = f"ssh-keygen -R {shlex.quote(entry)}, then {server.trust()}"
    else:
        mend = f"{server.trust('--replace', '--fingerprint', 'FINGERPRINT')} (as read on the device itself)"
    return HostKeyChangedError(
        f"{server.who}: the host key changed: pinned {pinned.algorithm} {pinned.fingerprint},"
        f" shown {shown.algorithm} {shown.fingerprint}",
        hint=f"somebody may be listening; if the device was set up anew: {mend}",
    )


@contextmanager
def translated(server: Server) -> Iterator[None]:
    """What goes wrong inside becomes an error that names the server.

    Raises:
        UnreachableError, AuthenticationRefusedError, HostKeyChangedError, BadInputError: and their causes.
    """
    import paramiko
    from paramiko.pkey import UnknownKeyType

    address = server.address
    try:
        yield
    except KedgeError:
        raise
    except UnknownKeyType as error:
        raise BadInputError(
            f"{server.who}: paramiko does not know the pinned key's algorithm", hint=server.trust("--replace")
        ) from error
    except paramiko.BadHostKeyException as error:
        shown = HostKey(error.key.get_name(), error.key.get_base64())
        pinned = HostKey(error.expected_key.get_name(), error.expected_key.get_base64())
        raise _changed(server, pinned, shown) from error
    except paramiko.PasswordRequiredException as error:
        raise AuthenticationRefusedError(
            f"{server.where}: the private key is encrypted", hint=f"load it into ssh-agent: {_ssh_add(address)}"
        ) from error
    except paramiko.AuthenticationException as error:
        said = str(error).strip().rstrip(".")
        raise AuthenticationRefusedError(
            f"{server.where}: {'it' if server.device is None else 'the device'} accepts none of our keys"
            f"{'' if said == 'Authentication failed' else f': {said}'}",
            hint="put your public key into the device's ~/.ssh/authorized_keys, or name the right --key",
        ) from error
    except FileNotFoundError as error:
        ours = [os.fspath(expanded(path)) for path in (address.identity, address.certificate) if path is not None]
        if error.filename not in ours:
            raise BadInputError(f"{server.who}: no such file: {error.filename or error}") from error
        kind = "private key" if error.filename == ours[0] and address.identity is not None else "certificate"
        raise AuthenticationRefusedError(
            f"{server.where}: the {kind} {error.filename} does not exist", hint="name the right --key"
        ) from error
    except UnicodeError as error:
        # Of a name that the resolver cannot even be asked for.
        raise BadInputError(
            f"{server.who}: {address.host!r} is no name of a host", hint="mend the inventory"
        ) from error
    except (paramiko.SSHException, OSError, EOFError) as error:
        if "No authentication methods available" in str(error) or "not a valid" in str(error):
            raise AuthenticationRefusedError(
                f"{server.where}: there is no usable private key: {error}",
                hint="name one with --key, or load it into ssh-agent",
            ) from error
        # Of `[Errno 111] Connection refused` the words.
        said = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise UnreachableError(
            f"{server.where} cannot be reached: {said}",
            hint="check the address, the link and that sshd runs there",
        ) from error


def _ssh_add(address: SshAddress) -> str:
    return "ssh-add" if address.identity is None else f"ssh-add {shlex.quote(os.fspath(address.identity))}"

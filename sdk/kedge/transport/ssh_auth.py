"""The keys with which one comes in: files, their certificates, and those that ssh-agent holds."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .address import SshAddress, expanded

if TYPE_CHECKING:
    import paramiko

__all__ = ["Keys"]

_AGENT_S = 20.0
_USUAL = ("id_ed25519", "id_ecdsa", "id_rsa")
_CERTIFICATE = "-cert.pub"
_MAX_PUBLIC_BYTES = 64 * 1024


class Keys:
    """paramiko's `auth_strategy` for an address: one key after the other, until one is accepted.

    With an identity that key alone is tried; where its file is encrypted, ssh-agent signs for it, if it holds it.
    Without one: what ssh-agent holds, then the usual files under ~/.ssh.
    """

    def __init__(self, address: SshAddress) -> None:
        self._address = address

    def authenticate(self, transport: paramiko.Transport) -> None:
        """Come in.

        Raises:
            paramiko.AuthenticationException: no key is accepted.
            paramiko.PasswordRequiredException: the only key is encrypted.
            paramiko.SSHException: there is no key, or the connection is lost.
        """
        import paramiko

        refused: Exception | None = None
        with closing(_Agent(self._address.agent)) as agent:
            for key in _keys(self._address, agent):
                try:
                    if not transport.auth_publickey(self._address.user, key):
                        return
                    refused = paramiko.AuthenticationException("they want more than a key")
                except (paramiko.SSHException, EOFError) as error:
                    if transport.is_active():
                        refused = error
                    elif refused is None:
                        raise paramiko.SSHException("the connection was lost while logging in") from error
                    else:
                        raise paramiko.AuthenticationException("hung up on us after several keys") from error
        raise refused or paramiko.SSHException("No authentication methods available")


def _keys(address: SshAddress, agent: _Agent) -> Iterator[paramiko.PKey]:
    import paramiko

    if address.identity is not None or address.certificate is not None:
        yield _named(address, agent)
        return
    yield from agent.held()
    encrypted = None
    for name in _USUAL:
        path = expanded("~/.ssh") / name
        try:
            key = _load(path)
        except FileNotFoundError:
            continue
        except paramiko.PasswordRequiredException as error:
            encrypted = error
            continue
        except (paramiko.SSHException, OSError):
            continue
        _certify(key, path, None)
        yield key
    if encrypted is not None:
        raise encrypted


def _named(address: SshAddress, agent: _Agent) -> paramiko.PKey:
    import paramiko

    certificate = expanded(address.certificate) if address.certificate is not None else None
    if address.identity is not None:
        path = expanded(address.identity)
    else:
        assert certificate is not None
        path = Path(os.fspath(certificate).removesuffix(_CERTIFICATE))
    try:
        key = _load(path)
    except paramiko.PasswordRequiredException:
        with suppress(OSError, ValueError, IndexError):
            blob = _public_blob(Path(f"{path}.pub"))
            held = next((key for key in agent.held() if key.asbytes() == blob), None)
            if held is not None:
                _certify(held, path, certificate)
                return held
        raise
    _certify(key, path, certificate)
    return key


def _load(path: Path) -> paramiko.PKey:
    import paramiko

    wrong: paramiko.SSHException | None = None
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        try:
            return kind.from_private_key_file(os.fspath(path))
        except paramiko.PasswordRequiredException:
            raise
        except paramiko.SSHException as error:
            wrong = error
    assert wrong is not None
    raise wrong


def _certify(key: paramiko.PKey, path: Path, certificate: Path | None) -> None:
    import paramiko

    beside = Path(f"{path}{_CERTIFICATE}")
    if certificate is None and not beside.is_file():
        return
    chosen = certificate or beside
    if not chosen.is_file():
        raise FileNotFoundError(2, "No such file or directory", os.fspath(chosen))
    try:
        key.load_certificate(os.fspath(chosen))
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise paramiko.SSHException(f"{chosen} is not a valid certificate of that key: {error}") from error


def _public_blob(path: Path) -> bytes:
    from .hostkeys import HostKey

    with path.open("rb") as file:
        return HostKey.parse(file.read(_MAX_PUBLIC_BYTES).decode("ascii")).raw


class _Agent:
    """ssh-agent, asked when its keys are first wanted. where: its socket, True for that of SSH_AUTH_SOCK."""

    def __init__(self, where: bool | str) -> None:
        self._socket = os.environ.get("SSH_AUTH_SOCK") if where is True else where or None
        self._asked: Any = None

    def close(self) -> None:
        """Hang up."""
        if self._asked is not None:
            self._asked._close()  # noqa: SLF001  (paramiko's Agent knows the socket of the environment alone)

    def held(self) -> tuple[paramiko.PKey, ...]:
        """What it holds; none where no agent answers."""
        import paramiko
        from paramiko.agent import AgentSSH

        if self._asked is None and self._socket is not None:
            plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            plain.settimeout(_AGENT_S)
            asked = AgentSSH()
            try:
                plain.connect(os.path.expanduser(self._socket))
                asked._connect(plain)  # type: ignore[attr-defined]  # noqa: SLF001
            except (OSError, paramiko.SSHException):
                plain.close()
                return ()
            self._asked = asked
        return self._asked.get_keys() if self._asked is not None else ()

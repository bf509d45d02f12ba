"""Where a device is, by which key it is known and with which keys one comes in, also as plain JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInputError
from .hostkeys import HostKey

__all__ = ["MAX_JUMPS", "SshAddress", "expanded"]

MAX_JUMPS = 8
"""More hosts than these lead to no device."""

_MAX_TEXT = 4096


@dataclass(frozen=True)
class SshAddress:
    """How to reach a device, or a jump host.

    host_key: the pinned key, None until somebody trusted one.
    identity: private key file; None takes ssh-agent and the usual files under ~/.ssh.
    state: the agent's state folder there, None until it has been provisioned or probed.
    certificate: of the identity, by the authority that the device trusts; None takes IDENTITY-cert.pub where it exists.
    agent: whether ssh-agent is asked for keys; or the path of its socket, in place of SSH_AUTH_SOCK.
    jumps: the hosts through which the way leads, outermost first; their own jumps are empty.
    name: of a jump host that is in the inventory.
    """

    host: str
    port: int
    user: str
    host_key: HostKey | None = None
    identity: Path | None = None
    state: str | None = None
    certificate: Path | None = None
    agent: bool | str = True
    jumps: tuple[SshAddress, ...] = ()
    name: str | None = None

    def __str__(self) -> str:
        """`user@host:port`; of a jump host with a name, that too."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        where = f"{self.user}@{host}:{self.port}"
        return f"{self.name} ({where})" if self.name else where

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, for another process that is to connect; `~` is this user's home."""
        return {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "host_key": str(self.host_key) if self.host_key is not None else None,
            "identity": _absolute(self.identity),
            "certificate": _absolute(self.certificate),
            "agent": self.agent,
            "state": self.state,
            "name": self.name,
            "jumps": [jump.to_json() for jump in self.jumps],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> SshAddress:
        """What `to_json` gave.

        Raises:
            BadInputError: it is no such document.
        """
        try:
            jumps = document.get("jumps", [])
            if not isinstance(jumps, list) or len(jumps) > MAX_JUMPS:
                raise ValueError(f"jumps: no list of at most {MAX_JUMPS}")
            if any(jump.get("jumps") for jump in jumps):
                raise ValueError("jumps: a jump host with jumps of its own")
            port, agent, key = document["port"], document.get("agent", True), _text(document, "host_key")
            if type(port) is not int or not 0 < port < 65536:
                raise ValueError("port: not a port")
            if not isinstance(agent, bool):
                agent = _text(document, "agent", required=True)
            identity, certificate = _text(document, "identity"), _text(document, "certificate")
            return cls(
                host=_text(document, "host", required=True),
                port=port,
                user=_text(document, "user", required=True),
                host_key=HostKey.parse(key) if key else None,
                identity=Path(identity) if identity else None,
                state=_text(document, "state") or None,
                certificate=Path(certificate) if certificate else None,
                agent=agent,
                jumps=tuple(cls.from_json(jump) for jump in jumps),
                name=_text(document, "name") or None,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInputError(f"not an address of a device: {error}", hint="begin the rollout anew") from error


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path whose `~` or `~user` is that home.

    Raises:
        BadInputError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise BadInputError(
            f"{os.fspath(path)}: there is no such user here", hint="write the path without ~"
        ) from error


def _absolute(path: Path | None) -> str | None:
    return None if path is None else os.fspath(expanded(path).absolute())


def _text(document: Mapping[str, Any], key: str, *, required: bool = False) -> str:
    value = document[key] if required else document.get(key)
    if value is None and not required:
        return ""
    if not isinstance(value, str) or len(value) > _MAX_TEXT or (required and not value):
        raise ValueError(f"{key}: no text, or one too long")
    if any(ord(character) < 32 for character in value):
        raise ValueError(f"{key}: a text with control characters")
    return value

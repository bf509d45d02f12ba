"""From what the inventory says of a device to the address where it is reached, through which hosts."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import BadInputError
from ..transport.address import MAX_JUMPS, SshAddress, expanded
from ..transport.hostkeys import HostKey
from ..transport.known_hosts import known_key
from .entries import Entries
from .ssh_config import Alias, resolve

__all__ = ["Routes", "parse_address"]

_ADDRESS = re.compile(r"(?P<user>[^@\s:]+)@(?P<host>\[[0-9a-fA-F:.]+\]|[^@\s:\[\]]+)(?::(?P<port>\d{1,5}))?")


def parse_address(text: str) -> tuple[str, str, int]:
    """User, host and port of `user@host[:port]`; an IPv6 address stands in brackets.

    Raises:
        BadInputError: it is not of that form.
    """
    match = _ADDRESS.fullmatch(text)
    port = int(match["port"] or 22) if match else 0
    if match is None or not 0 < port < 65536 or _is_option(match["user"]) or _is_option(match["host"]):
        raise BadInputError(f"not an address: {text!r}", hint="it looks like user@host or user@host:2222")
    return match["user"], match["host"].strip("[]"), port


def _is_option(word: str) -> bool:
    """Whether a program that is given it takes it for an option of its own."""
    return word.startswith("-")


class Routes:
    """Addresses of one inventory's devices; what is had in common is looked up once."""

    def __init__(self, path: Path, entries: Entries) -> None:
        self._path = path
        self._entries = entries
        self._jumps: dict[str, tuple[SshAddress, ...]] = {}

    def address(self, name: str, values: Mapping[str, Any]) -> SshAddress:
        """Where a device is. An `ssh` alias is asked for what the device does not say itself.

        Raises:
            BadInputError: the entry is not usable, its alias or a jump host of it cannot be resolved.
        """
        address = self._address(name, values, ())
        if len(address.jumps) > MAX_JUMPS:
            raise self._too_far(name)
        return address

    def alias(self, values: Mapping[str, Any]) -> Alias:
        """Where the `ssh` alias of an entry leads, but for what the entry says itself.

        Raises:
            BadInputError: it cannot be resolved.
        """
        config = values.get("ssh_config")
        return resolve(values["ssh"], self._beside(config) if config else None)

    def _address(self, name: str, values: Mapping[str, Any], behind: tuple[str, ...]) -> SshAddress:
        try:
            stated = self._stated(values)
            if "ssh" in values:
                address = replace(self.alias(values).address, **stated)
            else:
                address = SshAddress(host=values["host"], user=values["user"], **{"port": 22} | _without(stated))
            if _is_option(address.host) or _is_option(address.user):
                raise ValueError("a host or user begins with -")
        except (KeyError, TypeError, ValueError) as error:
            said = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise BadInputError(
                f"{self._path}: [{name}] is not a usable device: {said}", hint="docs/inventory.md has the keys"
            ) from error
        if "jump" not in values:
            return address
        words = values["jump"] if isinstance(values["jump"], list) else [values["jump"]]
        return replace(address, jumps=tuple(hop for word in words for hop in self._hops(name, word, (*behind, name))))

    def _too_far(self, device: str) -> BadInputError:
        return BadInputError(
            f"{self._path}: [{device}] is behind more than {MAX_JUMPS} jump hosts", hint="name a shorter way in jump"
        )

    def _beside(self, path: str) -> Path:
        """A path as the file means it: what is not absolute lies beside it."""
        try:
            return self._path.parent / expanded(path)
        except BadInputError as error:
            raise ValueError(error.message) from error

    def _stated(self, values: Mapping[str, Any]) -> dict[str, Any]:
        stated: dict[str, Any] = {key: values[key] for key in ("host", "user", "state") if values.get(key)}
        stated.update({key: self._beside(values[key]) for key in ("identity", "certificate") if values.get(key)})
        if "port" in values:
            port = int(values["port"])
            if not 0 < port < 65536:
                raise ValueError(f"port {port} is none")
            stated["port"] = port
        if "agent" in values:
            if not isinstance(values["agent"], bool | str) or values["agent"] == "":
                raise ValueError("agent is not true, false or the path of a socket")
            agent = values["agent"]
            stated["agent"] = os.fspath(self._beside(agent)) if isinstance(agent, str) else agent
        if values.get("host_key"):
            stated["host_key"] = HostKey.parse(str(values["host_key"]))
        return stated

    def _hops(self, device: str, word: str, behind: tuple[str, ...]) -> tuple[SshAddress, ...]:
        """The way to a jump host and through it, outermost first."""
        if word in behind:
            raise BadInputError(
                f"{self._path}: [{device}] the jump hosts go in a circle: {' → '.join((*behind, word))}",
                hint="a jump host that inherits jump is left out with jump = []",
            )
        if len(behind) > MAX_JUMPS:
            raise self._too_far(behind[0])
        if word not in self._jumps:
            self._jumps[word] = self._resolved(device, word, behind)
        return self._jumps[word]

    def _resolved(self, device: str, word: str, behind: tuple[str, ...]) -> tuple[SshAddress, ...]:
        if word in self._entries:
            address = self._address(word, self._entries.get(word).values, behind)
            return (*address.jumps, replace(address, jumps=(), state=None, name=word))
        if "@" not in word:
            raise BadInputError(
                f"{self._path}: [{device}] jump: there is no device named {word!r}",
                hint="it is a device of the inventory, or looks like user@host or user@host:2222",
            )
        user, host, port = parse_address(word)
        return (SshAddress(host, port, user, host_key=known_key(host, port)),)


def _without(stated: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in stated.items() if key not in ("host", "user")}

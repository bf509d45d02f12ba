"""The inventory: devices.toml, which people may edit; comments and order survive our changes."""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomlkit
import tomlkit.exceptions

from ..config import config_dir
from ..errors import BadInputError
from ..targets import Target, host_target, load_target
from ..transport.address import SshAddress
from ..transport.base import LOCAL, Transport
from ..transport.hostkeys import HostKey
from .way import local_way, open_way

__all__ = ["LOCAL", "Device", "Inventory", "Limit", "open_device", "parse_address"]

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_ADDRESS = re.compile(r"(?P<user>[^@\s:]+)@(?P<host>\[[0-9a-fA-F:.]+\]|[^@\s:\[\]]+)(?::(?P<port>\d{1,5}))?")


@dataclass(frozen=True)
class Limit:
    """At most `concurrency` of these devices at once."""

    group: str
    devices: frozenset[str]
    concurrency: int


@dataclass(frozen=True)
class Device:
    """One entry of the inventory, or `local`.

    python: the interpreter there, None for `python3`.
    """

    name: str
    address: SshAddress
    target: str
    python: str | None = None
    groups: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)

    def way(self) -> dict[str, Any]:
        """How `way.open_way` comes to it, as plain JSON."""
        return local_way() if self.name == LOCAL else self.address.to_json()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        key = self.address.host_key
        return {
            "name": self.name,
            "host": self.address.host,
            "port": self.address.port,
            "user": self.address.user,
            "target": self.target,
            "host_key": key.fingerprint if key is not None else None,
            "state": self.address.state,
            "groups": list(self.groups),
            "labels": dict(self.labels),
        }


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


class Inventory:
    """The devices of one file.

    Raises:
        BadInputError: the file exists and is no inventory.
    """

    def __init__(self, path: Path | None = None) -> None:
        # A link stays a link: what it points to is what changes.
        self.path = (path if path is not None else config_dir() / "devices.toml").resolve()
        self._document = self._read()

    def _read(self) -> tomlkit.TOMLDocument:
        try:
            return tomlkit.parse(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return tomlkit.document()
        except (OSError, UnicodeDecodeError, tomlkit.exceptions.ParseError) as error:
            raise BadInputError(f"{self.path} cannot be read: {error}", hint="mend it, or move it away") from error

    def names(self) -> list[str]:
        """Every device of the file, in its order."""
        return [name for name, entry in self._document.items() if isinstance(entry, dict)]

    def get(self, name: str) -> Device:
        """One device.

        Raises:
            BadInputError: there is none of this name, or its entry is not usable.
        """
        if name == LOCAL:
            raise BadInputError(
                f"{LOCAL!r} is the agent of this kedge, and not in the inventory",
                hint="there is nothing to trust, provision or upgrade: kedge runs it itself, always of its own version",
            )
        entry = self._document.get(name)
        if not isinstance(entry, dict):
            known = ", ".join([LOCAL, *self.names()])
            raise BadInputError(f"no device named {name!r}", hint=f"known: {known}; add one with kedge device add")
        try:
            identity, key = entry.get("identity"), entry.get("host_key")
            address = SshAddress(
                host=str(entry["host"]),
                port=int(entry.get("port", 22)),
                user=str(entry["user"]),
                host_key=HostKey.parse(str(key)) if key else None,
                identity=Path(str(identity)) if identity else None,
                state=str(entry["state"]) if entry.get("state") else None,
            )
            if _is_option(address.host) or _is_option(address.user):
                raise ValueError("a host or user begins with -")
            return Device(name, address, str(entry["target"]), str(entry["python"]) if entry.get("python") else None)
        except (KeyError, TypeError, ValueError) as error:
            raise BadInputError(f"{self.path}: [{name}] is not a usable device: {error}") from error

    def add(self, name: str, address: SshAddress, target: Target) -> Device:
        """Write down a new device.

        Raises:
            BadInputError: the name is taken or cannot be one.
        """
        if not _NAME.fullmatch(name) or name == LOCAL:
            raise BadInputError(f"{name!r} cannot name a device", hint="lower-case letters, digits, - and _; not local")
        entry = tomlkit.table()
        entry.add("host", address.host)
        entry.add("port", address.port)
        entry.add("user", address.user)
        entry.add("target", target.name)
        if address.identity is not None:
            entry.add("identity", str(address.identity))
        if address.state is not None:
            entry.add("state", address.state)
        with self._changing():
            if name in self._document:
                raise BadInputError(f"there is a device named {name!r} already", hint=f"kedge device remove {name}")
            self._document.add(name, entry)
        return self.get(name)

    def update(self, name: str, **values: str) -> Device:
        """Change keys of a device's entry (`host_key`, `state`, `python`)."""
        with self._changing():
            self.get(name)
            entry: Any = self._document[name]
            for key, value in values.items():
                entry[key] = value
        return self.get(name)

    def remove(self, name: str) -> None:
        """Forget a device; nothing changes on it."""
        with self._changing():
            self.get(name)
            self._document.remove(name)

    def select(self, text: str) -> list[Device]:
        """The devices that a selection names (`cam-1,@berlin`), each once, in the order of the terms.

        Raises:
            BadInputError: it is no selection, or names what is not there, or nothing.
        """
        names = dict.fromkeys(part for term in text.split(",") for part in (self.names() if term == "@all" else [term]))
        return [self._local() if name == LOCAL else self.get(name) for name in names]

    def limits(self, devices: Iterable[Device]) -> list[Limit]:
        """What the groups of these devices allow at once."""
        return []

    def _local(self) -> Device:
        return Device(LOCAL, SshAddress("", 0, ""), host_target().name)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One change at a time, on the file as it is now: two commands at once lose nothing."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self.path.with_name(f".{self.path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._document = self._read()
            yield
            self._save()

    def _save(self) -> None:
        handle, partial = tempfile.mkstemp(prefix=".devices.", dir=self.path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(tomlkit.dumps(self._document))
        Path(partial).replace(self.path)


@contextmanager
def open_device(name: str, inventory: Inventory | None = None) -> Iterator[tuple[Transport, Target]]:
    """A transport to a device by its name, and the device's target.

    `local` is an agent on this machine: the one that serves already, or a child of this process.

    Raises:
        KedgeError: the name is unknown, or the local agent does not start.
    """
    if name == LOCAL:
        way, target = local_way(), host_target()
    else:
        device = (inventory or Inventory()).get(name)
        way, target = device.way(), load_target(device.target)
    with open_way(name, way) as transport:
        yield transport, target

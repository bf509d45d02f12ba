"""The inventory: devices.toml, which people may edit; comments and order survive our changes."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import tomlkit

from ..config import config_dir, state_dir
from ..errors import BadInputError
from ..targets import Target, host_target, load_target
from ..transport.address import SshAddress
from ..transport.base import LOCAL, Transport
from ..transport.hostkeys import HostKey
from .entries import NAME, read_entries
from .routes import Routes, parse_address
from .selection import choose
from .ssh_config import Alias
from .way import local_way, open_way
from .writing import as_table, replace_text

__all__ = ["LOCAL", "Device", "Inventory", "Limit", "open_device", "parse_address"]


@dataclass(frozen=True)
class Limit:
    """At most `concurrency` of these devices at once."""

    group: str
    devices: frozenset[str]
    concurrency: int


@dataclass(frozen=True)
class Device:
    """One entry of the inventory, or `local`.

    target: the kind of device. python: the interpreter there, None for `python3`.
    entry: what the inventory says of it, empty for `local`. find: looks up its address.
    """

    name: str
    target: str
    python: str | None
    groups: tuple[str, ...]
    labels: Mapping[str, str]
    entry: Mapping[str, Any] = field(repr=False, compare=False)
    find: Callable[[], SshAddress] = field(repr=False, compare=False)

    @cached_property
    def address(self) -> SshAddress:
        """Where it is; an `ssh` alias, and the host keys of jump hosts, are looked up when this is first asked for.

        Raises:
            BadInputError: it is `local`, or the alias or a jump host cannot be resolved.
        """
        return self.find()

    def way(self) -> dict[str, Any]:
        """How `way.open_way` comes to it, as plain JSON: `{"local": true}`, or its `SshAddress`.

        Raises:
            BadInputError: as `address`.
        """
        return local_way() if self.name == LOCAL else self.address.to_json()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: what the inventory says, with nothing looked up elsewhere."""
        if self.name == LOCAL:
            stated: dict[str, Any] = {"state": str(state_dir() / LOCAL)}
        else:
            stated = dict(self.entry)
            if "ssh" not in stated:
                stated.setdefault("port", 22)
        key = HostKey.parse(str(stated["host_key"])).fingerprint if stated.get("host_key") else None
        jump = stated.get("jump", [])
        return {
            "name": self.name,
            **{name: stated.get(name) for name in ("ssh", "host", "port", "user")},
            "target": self.target or None,
            "host_key": key,
            "state": stated.get("state"),
            "groups": list(self.groups),
            "labels": dict(self.labels),
            "jump": jump if isinstance(jump, list) else [jump],
        }


class Inventory:
    """The devices of one file.

    Raises:
        BadInputError: the file exists and is no inventory.
    """

    def __init__(self, path: Path | None = None) -> None:
        # A link stays a link: what it points to is what changes.
        self.path = (path if path is not None else config_dir() / "devices.toml").resolve()
        self._load()

    def _load(self) -> None:
        # tomlkit, which keeps comments, takes a hundred times as long: it is for changes alone.
        self._entries = read_entries(self.path, self._text())
        self._routes = Routes(self.path, self._entries)

    def _text(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise BadInputError(f"{self.path} cannot be read: {error}", hint="mend it, or move it away") from error

    def names(self) -> list[str]:
        """Every device of the file, in its order; jump hosts are none."""
        return self._entries.devices

    def hosts(self) -> list[str]:
        """Every entry of the file that is no group, in its order: devices, and jump hosts."""
        return self._entries.names

    def groups(self) -> dict[str, list[str]]:
        """The devices of each group, `all` among them."""
        return dict(self._entries.members)

    def get(self, name: str) -> Device:
        """One device.

        Raises:
            BadInputError: there is none of this name, or its entry is not usable.
        """
        if name in self._entries and self._entries.is_jump_host(name):
            raise BadInputError(f"{name} is a jump host, and no device", hint="name a device behind it")
        device = self.host(name)
        if not device.target:
            raise BadInputError(
                f"{self.path}: [{name}] is not a usable device: it has no 'target'",
                hint="its own or a group's: kedge targets list; a jump host alone has jump_host = true",
            )
        return device

    def host(self, name: str) -> Device:
        """A device, or a jump host, whose target is empty.

        Raises:
            BadInputError: there is none of this name, or its entry is not usable.
        """
        if name == LOCAL:
            raise BadInputError(
                f"{LOCAL!r} is the agent of this kedge, and not in the inventory",
                hint="there is nothing to trust, provision or upgrade: kedge runs it itself, always of its own version",
            )
        if name not in self._entries:
            known = ", ".join([LOCAL, *self.hosts()])
            raise BadInputError(f"no device named {name!r}", hint=f"known: {known}; add one with kedge device add")
        entry = self._entries.get(name)
        values = entry.values
        device = Device(
            name,
            "" if self._entries.is_jump_host(name) else str(values.get("target", "")),
            values.get("python") or None,
            entry.groups,
            entry.labels,
            values,
            lambda: self._routes.address(name, values),
        )
        if "ssh" not in values and "jump" not in values:
            # Nothing has to be looked up elsewhere: what is wrong is told at once.
            device.address  # noqa: B018
        return device

    def add(
        self,
        name: str,
        address: SshAddress,
        target: Target | None,
        *,
        groups: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        jump: Sequence[str] = (),
    ) -> Device:
        """Write down a new device.

        Args:
            target: its kind; None: a jump host, to which nothing is deployed.
            jump: the hosts before it, outermost first: devices of the inventory, or `user@host:port`.

        Raises:
            BadInputError: the name is taken or cannot be one.
        """
        entry: dict[str, Any] = {"host": address.host, "port": address.port, "user": address.user}
        entry |= {"target": target.name} if target is not None else {"jump_host": True}
        if address.identity is not None:
            entry["identity"] = str(address.identity)
        if address.certificate is not None:
            entry["certificate"] = str(address.certificate)
        if address.state is not None:
            entry["state"] = address.state
        if jump:
            entry["jump"] = list(jump) if len(jump) > 1 else jump[0]
        if groups:
            entry["groups"] = list(groups)
        if labels:
            entry["labels"] = dict(labels)
        self.add_entries({name: entry})
        return self.host(name)

    def add_entries(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        """Write down new entries, all or none of them.

        Raises:
            BadInputError: a name is taken or cannot be one, or what is written would not be usable.
        """
        for name in entries:
            if not NAME.fullmatch(name) or name == LOCAL:
                raise BadInputError(
                    f"{name!r} cannot name a device", hint="lower-case letters, digits, - and _; not local"
                )
        with self._changing(entries) as document:
            for name, entry in entries.items():
                if name in document:
                    raise BadInputError(f"there is a device named {name!r} already", hint=f"kedge device remove {name}")
                document.add(name, as_table(entry))

    def alias(self, name: str, entry: Mapping[str, Any]) -> Alias:
        """Where a new entry's `ssh` alias would lead, with what it would inherit.

        Raises:
            BadInputError: the entry would not be usable, or the alias cannot be resolved.
        """
        return self._routes.alias(self._entries.having(name, entry).get(name).values)

    def update(self, name: str, **values: str) -> Device:
        """Change keys of a device's entry (`host_key`, `state`, `python`)."""
        with self._changing() as document:
            self.host(name)
            entry: Any = document[name]
            for key, value in values.items():
                entry[key] = value
        return self.host(name)

    def remove(self, name: str) -> None:
        """Forget a device; nothing changes on it.

        Raises:
            BadInputError: there is none of this name, or others still name it.
        """
        with self._changing() as document:
            if name not in self._entries:
                self.host(name)
            listing = self._entries.listed_by(name)
            if listing:
                raise BadInputError(
                    f'{self.path}: the group ["@{listing[0]}"] lists {name}', hint="take it out of its devices first"
                )
            behind = self._entries.behind(name)
            if behind:
                raise BadInputError(
                    f"{name} is a jump host of {behind[0]}" + (f" and {len(behind) - 1} more" if behind[1:] else ""),
                    hint="change their jump first",
                )
            document.remove(name)

    def select(self, text: str) -> list[Device]:
        """The devices that a selection names (`cam-1,@berlin`), each once, in the order of the terms.

        Raises:
            BadInputError: it is no selection, names what is not there, or nothing; or an entry is not usable.
        """
        return [_local() if name == LOCAL else self.get(name) for name in choose(text, self._entries)]

    def limits(self, devices: Iterable[Device]) -> list[Limit]:
        """What the groups of these devices allow at once."""
        wanted = {device.name for device in devices}
        limits = [
            Limit(group, frozenset(self._entries.members[group]) & wanted, most)
            for group, most in self._entries.concurrency.items()
        ]
        return [limit for limit in limits if limit.devices]

    @contextmanager
    def _changing(self, new: Iterable[str] = ()) -> Iterator[tomlkit.TOMLDocument]:
        """One change at a time, on the file as it is now: two commands at once lose nothing.

        What would be no inventory, or have a new entry that is not usable, is not written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self.path.with_name(f".{self.path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._load()
            document = tomlkit.parse(self._text())
            yield document
            text = tomlkit.dumps(document)
            entries = read_entries(self.path, text)
            for name in new:
                values = entries.get(name).values
                if "jump" in values:
                    Routes(self.path, entries).address(name, values)
            replace_text(self.path, text)
            self._load()


def _local() -> Device:
    def find() -> SshAddress:
        raise BadInputError(f"{LOCAL!r} is this machine: nothing is reached over SSH there")

    return Device(LOCAL, host_target().name, None, (), {}, {}, find)


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

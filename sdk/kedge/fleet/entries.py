"""What devices.toml says: devices, groups whose keys they inherit, and variables put in where they are named."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import BadInputError
from ..transport.base import LOCAL

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["ALL", "LABEL", "NAME", "Entries", "Entry", "read_entries"]

ALL = "all"
"""The group of everyone; its table is `["@all"]`."""

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,63}")
"""Names of labels and groups, and values of labels: nothing that a selection reads otherwise."""

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
"""Names of devices and jump hosts, which are also names of files and words of a selection; `local` is none."""

_TEXTS = ("host", "user", "identity", "certificate", "state", "python", "ssh", "ssh_config")
_INHERITED = (*_TEXTS, "port", "target", "agent", "jump")
_OF_AN_ADDRESS = ("host", "port", "user", "identity", "certificate", "agent", "jump")
_OF_A_DEVICE = (*_INHERITED, "labels", "vars", "groups", "host_key", "jump_host")
_OF_A_GROUP = (*_INHERITED, "labels", "vars", "devices", "concurrency")
_VARIABLE = re.compile(r"\{([A-Za-z0-9._/-]+)\}")
_MEND = "docs/inventory.md has the keys"


@dataclass(frozen=True)
class Entry:
    """A device's own keys and those it inherits, every variable put in. host_key: as it stands in the file."""

    name: str
    values: Mapping[str, Any]
    groups: tuple[str, ...]
    labels: Mapping[str, str]


class Entries:
    """The tables of one file.

    Args:
        path: for messages.
        document: the file as TOML reads it.

    Raises:
        BadInputError: a group is not usable, or names a device that is not there; or a table is named `local`.
    """

    def __init__(self, path: Path, document: Mapping[str, Any]) -> None:
        self._path = path
        tables = {name: table for name, table in document.items() if isinstance(table, dict)}
        self._devices = {name: table for name, table in tables.items() if not name.startswith("@")}
        self._groups = {name[1:]: table for name, table in tables.items() if name.startswith("@")}
        for name, table in self._groups.items():
            self._check_group(name, table)
        if LOCAL in self._devices:
            raise self._wrong(LOCAL, "cannot be in a file: it is the agent of this machine", "give it another name")

    def having(self, name: str, table: Mapping[str, Any]) -> Entries:
        """The same with one more entry, which no group lists."""
        more = copy.copy(self)
        more._devices = {**self._devices, name: dict(table)}  # noqa: SLF001
        return more

    def _wrong(self, table: str, what: str, hint: str = _MEND) -> BadInputError:
        return BadInputError(f"{self._path}: [{table}] {what}", hint=hint)

    def _check_group(self, name: str, table: Mapping[str, Any]) -> None:
        told = f'"@{name}"'
        if not LABEL.fullmatch(name):
            raise self._wrong(told, "cannot name a group", "letters, digits, and . _ / - within")
        unknown = [key for key in table if key not in _OF_A_GROUP]
        if unknown:
            raise self._wrong(told, f"has a key that no group has: {unknown[0]}")
        concurrency = table.get("concurrency", 1)
        if type(concurrency) is not int or concurrency < 1:
            raise self._wrong(told, f"concurrency is no number above 0: {concurrency!r}")
        for device in _names(table.get("devices", []), lambda what: self._wrong(told, f"devices: {what}")):
            if device not in self._devices:
                raise self._wrong(told, f"lists a device that is not there: {device!r}", "add it, or take it out there")
        self._labels_of(told, table)

    @property
    def names(self) -> list[str]:
        """Every entry that is no group, in the order of the file."""
        return list(self._devices)

    def __contains__(self, name: str) -> bool:
        return name in self._devices

    def is_jump_host(self, name: str) -> bool:
        """Whether an entry is a jump host alone, to which nothing is deployed."""
        return self._devices[name].get("jump_host", False) is True

    @cached_property
    def devices(self) -> list[str]:
        """Those to which something can be deployed, in the order of the file."""
        return [name for name in self._devices if not self.is_jump_host(name)]

    @cached_property
    def members(self) -> dict[str, list[str]]:
        """The devices of each group: those that it lists, in that order, then those that name it, as in the file."""
        found: dict[str, dict[str, None]] = {
            name: dict.fromkeys(device for device in table.get("devices", []) if not self.is_jump_host(device))
            for name, table in self._groups.items()
        }
        for name in self.devices:
            # One whose groups cannot be read is told of when it is asked for; the others are theirs all the same.
            with suppress(BadInputError):
                for group in self._own_groups(name):
                    found.setdefault(group, {})[name] = None
        return {**{group: list(devices) for group, devices in found.items()}, ALL: self.devices}

    @cached_property
    def concurrency(self) -> dict[str, int]:
        """How many of a group are worked on at once, for the groups that say so."""
        return {name: table["concurrency"] for name, table in self._groups.items() if "concurrency" in table}

    def _own_groups(self, name: str) -> list[str]:
        own = self._devices[name].get("groups", [])
        groups = _names(own, lambda what: self._wrong(name, f"groups: {what}"))
        bad = next((group for group in groups if group == ALL or not LABEL.fullmatch(group)), None)
        if bad is not None:
            raise self._wrong(name, f"groups: {bad!r} cannot be one", 'as in groups = ["berlin"]; @all has everyone')
        return groups

    @cached_property
    def _listed(self) -> dict[str, list[str]]:
        """The groups that list a device, in the order of the file."""
        found: dict[str, list[str]] = {}
        for group, table in self._groups.items():
            for device in table.get("devices", []):
                found.setdefault(device, []).append(group)
        return found

    def listed_by(self, name: str) -> list[str]:
        """The groups that list a device, in the order of the file."""
        return list(self._listed.get(name, []))

    def groups_of(self, name: str) -> tuple[str, ...]:
        """The groups of a device: those it names, then those that list it. The earlier one's keys win."""
        named = [*self._own_groups(name), *self._listed.get(name, [])]
        return tuple(group for group in dict.fromkeys(named) if group != ALL)

    def labels_of(self, name: str) -> dict[str, str]:
        """The labels of a device, its groups' among them."""
        merged: dict[str, str] = {}
        for told, table in reversed(self._tables(name)):
            merged.update(self._labels_of(told, table))
        return merged

    def _tables(self, name: str) -> list[tuple[str, Mapping[str, Any]]]:
        """A device's table, then those of its groups: the earlier one's keys win."""
        groups = [group for group in (*self.groups_of(name), ALL) if group in self._groups]
        return [(name, self._devices[name]), *((f'"@{group}"', self._groups[group]) for group in groups)]

    def _labels_of(self, told: str, table: Mapping[str, Any]) -> dict[str, str]:
        labels = table.get("labels", {})
        if not isinstance(labels, dict):
            raise self._wrong(told, "labels is no table", 'as in labels = {site = "berlin"}')
        for key, value in labels.items():
            if not LABEL.fullmatch(key) or not isinstance(value, str) or not LABEL.fullmatch(value):
                raise self._wrong(
                    told, f"labels: {key} = {value!r} cannot be one", "texts of letters, digits, and . _ / - within"
                )
        return labels

    def get(self, name: str) -> Entry:
        """One entry.

        Where a table names an `ssh` alias, nothing of an address holds that a farther one says.

        Raises:
            BadInputError: its name cannot be one, a key is unknown or not usable, or a variable has no value.
        """
        table = self._devices[name]
        if not NAME.fullmatch(name):
            raise self._wrong(name, "cannot name a device", "lower-case letters, digits, - and _")
        unknown = [key for key in table if key not in _OF_A_DEVICE]
        if unknown:
            raise self._wrong(name, f"has a key that no device has: {unknown[0]}", f"{_MEND}; notes can be comments")
        if not isinstance(table.get("jump_host", False), bool):
            raise self._wrong(name, f"jump_host is not true or false: {table['jump_host']!r}")
        tables = self._tables(name)
        labels = self.labels_of(name)
        variables: dict[str, str] = {}
        values: dict[str, Any] = {}
        for told, one in reversed(tables):
            own = one.get("vars", {})
            if not isinstance(own, dict) or not all(isinstance(value, str | int) for value in own.values()):
                raise self._wrong(told, "vars is no table of texts", 'as in vars = {domain = "cams.example"}')
            variables.update({key: str(value) for key, value in own.items()})
            if "ssh" in one:
                for key in _OF_AN_ADDRESS:
                    values.pop(key, None)
            values.update({key: one[key] for key in _INHERITED if key in one})
        values.update({key: table[key] for key in ("host_key", "jump_host") if key in table})
        known = {**labels, **variables, "name": name}
        for key in (*_TEXTS, "jump"):
            if key in values:
                values[key] = self._put_in(name, key, values[key], known)
        return Entry(name, values, self.groups_of(name), labels)

    def behind(self, name: str) -> list[str]:
        """The entries that name this one as a jump host; of those that are not usable nothing is known."""
        found = []
        for other in self._devices:
            with suppress(BadInputError):
                jump = self.get(other).values.get("jump", [])
                if name in (jump if isinstance(jump, list) else [jump]):
                    found.append(other)
        return found

    def _put_in(self, name: str, key: str, value: Any, known: Mapping[str, str]) -> Any:
        if key == "jump" and isinstance(value, list):
            return [self._put_in(name, key, one, known) for one in value]
        if not isinstance(value, str):
            raise self._wrong(name, f"{key} is no text: {value!r}")

        def put(match: re.Match[str]) -> str:
            if match[1] not in known:
                listed = ", ".join(sorted(known))
                raise self._wrong(name, f"{key} = {value!r}: nothing says what {match[0]} is", f"known here: {listed}")
            return known[match[1]]

        return _VARIABLE.sub(put, value)


def _names(value: Any, wrong: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise wrong("no list of names")
    return value


def read_entries(path: Path, text: str) -> Entries:
    """Read the text of a file.

    Raises:
        BadInputError: it is no TOML, or no inventory.
    """
    try:
        return Entries(path, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise BadInputError(f"{path} cannot be read: {error}", hint="mend it, or move it away") from error

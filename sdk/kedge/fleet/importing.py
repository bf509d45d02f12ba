"""The hosts of an ssh config become devices of the inventory, by their aliases."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..errors import BadInputError
from ..targets import Target
from ..transport.address import SshAddress, expanded
from ..transport.hostkeys import HostKey
from .entries import ALL, LABEL
from .inventory import Inventory
from .ssh_config import hosts_of

__all__ = ["Import", "import_hosts"]

_AT_ONCE = 8
_USUAL_CONFIG = Path("~/.ssh/config")


@dataclass(frozen=True)
class Import:
    """What became of one alias. why: it was left out, None: it is a device now. host_key: known already, and pinned."""

    ssh: str
    device: str
    address: SshAddress | None = None
    host_key: HostKey | None = None
    why: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        at = self.address
        return {
            "ssh": self.ssh,
            "device": self.device,
            "host": at.host if at else None,
            "port": at.port if at else None,
            "user": at.user if at else None,
            "jump": [f"{jump.user}@{jump.host}:{jump.port}" for jump in at.jumps] if at else [],
            "host_key": self.host_key.fingerprint if self.host_key else None,
            "why": self.why,
        }


def import_hosts(
    inventory: Inventory,
    target: Target,
    *,
    patterns: Sequence[str] = (),
    config: Path | None = None,
    groups: Sequence[str] = (),
) -> list[Import]:
    """Write the hosts of an ssh config into the inventory, as entries with `ssh = alias`.

    What `ssh` does with an alias is asked for whenever the device is opened. Devices that exist are left alone, and
    aliases that cannot be resolved.

    Args:
        patterns: which aliases, as in `cam-*`; none: all of them.
        config: in place of ~/.ssh/config.

    Raises:
        BadInputError: the config cannot be read, has no such host, or a group cannot be one.
    """
    source = config if config is not None else _USUAL_CONFIG
    aliases = [
        alias for alias in hosts_of(source) if not patterns or any(fnmatchcase(alias, pattern) for pattern in patterns)
    ]
    if not aliases:
        like = f" like {', '.join(patterns)}" if patterns else ""
        raise BadInputError(f"{source} has no host{like}", hint="hosts are what stands after Host; patterns are none")
    bad = next((group for group in groups if group == ALL or not LABEL.fullmatch(group)), None)
    if bad is not None:
        raise BadInputError(
            f"{bad!r} cannot name a group", hint="letters, digits, and . _ / - within; @all has everyone"
        )
    kept = expanded(config).absolute() if config is not None else None
    taken = set(inventory.hosts())
    found: list[Import] = []
    entries: dict[str, dict[str, Any]] = {}
    common: dict[str, Any] = {"target": target.name}
    common |= {"ssh_config": str(kept)} if kept is not None else {}
    common |= {"groups": list(groups)} if groups else {}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for one in pool.map(lambda alias: _look(inventory, {"ssh": alias, **common}, taken), aliases):
            if one.why is None and one.device in entries:
                found.append(Import(one.ssh, one.device, why=f"another alias is {one.device} too"))
                continue
            found.append(one)
            if one.why is None:
                key = {"host_key": str(one.host_key)} if one.host_key is not None else {}
                entries[one.device] = {"ssh": one.ssh, **common, **key}
    if entries:
        inventory.add_entries(entries)
    return found


def _look(inventory: Inventory, entry: Mapping[str, Any], taken: set[str]) -> Import:
    alias = entry["ssh"]
    name = re.sub(r"[^a-z0-9_-]+", "-", alias.lower()).strip("-_")[:64]
    if name in taken:
        return Import(alias, name, why=f"there is a device named {name} already")
    if not name or name == "local":
        return Import(alias, name, why="it cannot name a device")
    try:
        resolved = inventory.alias(name, entry)
        return Import(alias, name, resolved.address, resolved.key())
    except BadInputError as error:
        return Import(alias, name, why=f"{error.message} ({error.hint})" if error.hint else error.message)

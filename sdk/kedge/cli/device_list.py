"""`kedge device list`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import Output, inventory_option, output_options, read_inventory

if TYPE_CHECKING:
    from ..fleet.inventory import Inventory

__all__ = ["list_command"]

_KEYS = ("name", "ssh", "host", "port", "user", "target", "host_key", "state")


@click.command("list")
@click.option(
    "--to", "selection", metavar="SELECTION", help="These alone: cam-1,@berlin or 'label:floor=2' or 'cam-*'."
)
@inventory_option
@output_options
def list_command(selection: str | None, inventory_path: Path | None, out: Output) -> None:
    """List the devices of the inventory, and local, which is always there."""
    inventory = read_inventory(inventory_path)
    if selection is not None:
        devices = [{**each.to_json(), "why": None} for each in inventory.select(selection)]
    else:
        devices = [*(_entry(inventory, name) for name in inventory.hosts()), _local()]

    def render() -> None:
        from ..report.tables import print_table
        from ..transport.base import LOCAL

        # What no device of the list has gets no column.
        more = [key for key in ("groups", "labels", "jump") if any(d[key] for d in devices)]
        rows = [
            [
                d["name"],
                _where(d),
                "not usable" if d["why"] else d["target"] or ("no profile fits" if d["name"] == LOCAL else "jump host"),
                d["host_key"] or ("–" if d["name"] == LOCAL or d["why"] else "not trusted yet"),
                d["state"] or ("not provisioned yet" if d["target"] else "–"),
                *(_listed(d[key]) for key in more),
            ]
            for d in devices
        ]
        print_table("", ["device", "address", "target", "host key", "agent's state", *more], rows)
        for d in devices:
            if d["why"]:
                click.echo(f"not usable: {d['why']}")

    out.result(devices, render)


def _where(entry: dict[str, Any]) -> str:
    if entry["host"] and entry["user"] and entry["port"]:
        return f"{entry['user']}@{entry['host']}:{entry['port']}"
    return f"ssh {entry['ssh']}" if entry["ssh"] else "–" if entry["why"] else "this machine"


def _listed(value: list[str] | dict[str, str]) -> str:
    words = [f"{key}={one}" for key, one in value.items()] if isinstance(value, dict) else value
    return ", ".join(words)


def _entry(inventory: Inventory, name: str) -> dict[str, Any]:
    from ..errors import BadInputError

    try:
        return {**inventory.host(name).to_json(), "why": None}
    except BadInputError as error:
        return {**dict.fromkeys(_KEYS), "name": name, "groups": [], "labels": {}, "jump": [], "why": error.message}


def _local() -> dict[str, Any]:
    from ..config import state_dir
    from ..errors import BadInputError
    from ..targets import host_target
    from ..transport.base import LOCAL

    target = None
    with suppress(BadInputError):
        target = host_target().name
    entry = dict.fromkeys(_KEYS)
    own = {"name": LOCAL, "target": target, "state": str(state_dir() / LOCAL)}
    return {**entry, **own, "groups": [], "labels": {}, "jump": [], "why": None}

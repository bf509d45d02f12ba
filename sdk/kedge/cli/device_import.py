"""`kedge device import`."""

from __future__ import annotations

from pathlib import Path

import click

from .common import Output, inventory_option, output_options, path_type, read_inventory

__all__ = ["import_command"]


@click.command("import")
@click.argument("patterns", metavar="[PATTERN]...", nargs=-1)
@click.option("--ssh-config", "config", type=path_type, help="In place of ~/.ssh/config.")
@click.option("--target", required=True, help="The kind of device; see: kedge targets list.")
@click.option("--group", "groups", multiple=True, metavar="GROUP", help="A group of theirs; may be repeated.")
@inventory_option
@output_options
def import_command(
    patterns: tuple[str, ...],
    config: Path | None,
    target: str,
    groups: tuple[str, ...],
    inventory_path: Path | None,
    out: Output,
) -> None:
    """Write the hosts of an ssh config into the inventory, all or those like a PATTERN (cam-*)."""
    from ..fleet.importing import import_hosts
    from ..targets import load_target

    inventory = read_inventory(inventory_path, new=True)
    found = import_hosts(inventory, load_target(target), patterns=patterns, config=config, groups=groups)

    def render() -> None:
        from ..report.tables import print_table

        rows = []
        for one in found:
            if one.why is not None:
                rows.append([one.device, one.ssh, "–", f"left alone: {one.why}"])
                continue
            key = f"pinned {one.host_key.fingerprint}" if one.host_key is not None else "not trusted yet"
            rows.append([one.device, one.ssh, str(one.address), key])
        print_table("", ["device", "ssh", "address", "host key"], rows)
        new = [one for one in found if one.why is None]
        click.echo(f"{len(new)} added, {len(found) - len(new)} left alone")
        if any(one.host_key is None for one in new):
            click.echo("next: kedge device trust DEVICE, for each that is not trusted yet")

    out.result({"inventory": str(inventory.path), "hosts": [one.to_json() for one in found]}, render)

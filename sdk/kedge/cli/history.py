"""`kedge history`."""

from __future__ import annotations

from pathlib import Path

import click

from .common import Output, inventory_option, on_option, output_options, read_inventory

__all__ = ["history"]


@click.command()
@click.argument("model", required=False)
@on_option
@inventory_option
@output_options
def history(model: str | None, device: str, inventory_path: Path | None, out: Output) -> None:
    """What was deployed to a device, when, and how it ended; of MODEL, or of every model.

    The device keeps the last few hundred steps. Times are those of its own clock, in UTC: where that is wrong, so are
    they.
    """
    from ..deploy.history import read_history
    from ..fleet.inventory import open_device

    with open_device(device, read_inventory(inventory_path)) as (transport, _):
        entries = read_history(transport, model)

    def render() -> None:
        from ..report.history_text import history_rows
        from ..report.tables import print_table

        if not entries:
            click.echo(f"nothing was deployed to {device} yet" if model is None else f"no deploy of {model} is known")
            return
        columns = ["device's clock (UTC)", "model", "version", "release", "outcome"]
        print_table("", columns, history_rows(entries))

    out.result({"device": device, "entries": entries}, render)

"""`kedge logs`."""

from __future__ import annotations

from pathlib import Path

import click

from .common import Output, inventory_option, on_option, output_options, read_inventory
from .units import parse_duration

__all__ = ["logs"]


@click.command()
@on_option
@click.option(
    "--since", "since_s", type=parse_duration, metavar="TIME", help="Of the last 90s, 30m, 2h or 3d.  [default: all]"
)
@click.option("--lines", type=click.IntRange(1, 100_000), default=200, show_default=True, help="The newest so many.")
@click.option(
    "--level",
    type=click.Choice(("debug", "info", "warning", "error", "critical")),
    default="debug",
    help="This level and worse ones alone.",
)
@inventory_option
@output_options
def logs(device: str, since_s: int | None, lines: int, level: str, inventory_path: Path | None, out: Output) -> None:
    """What the agent on a device wrote down, the newest last; it need not run, or answer.

    Times are those of the device's clock, in UTC.
    """
    from ..diagnose.logs import read_logs
    from ..fleet.past import open_as_it_is

    with open_as_it_is(device, read_inventory(inventory_path)) as transport:
        read = read_logs(transport, since_s=since_s, lines=lines, level=level)

    def render() -> None:
        for entry in read.entries:
            for line in entry.shown:
                click.echo(line)
        if read.left_out:
            out.say(f"{read.left_out} earlier lines are left out: --lines")
        elif not read.entries:
            out.say(f"the agent on {device} wrote nothing like that down")

    out.result({"device": device, **read.to_json()}, render)

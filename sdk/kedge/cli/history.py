"""`kedge history`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from .common import Output, inventory_option, output_options, path_type, read_inventory
from .units import parse_duration

__all__ = ["history"]

_STEPS = 300
_ROWS = 60


@click.command()
@click.argument("model", required=False)
@click.option("--on", "device", metavar="DEVICE", help="A device of the inventory, or local.")
@click.option("--snapshot", type=path_type, metavar="FILE", help="Of the device that this snapshot was taken of.")
@click.option(
    "--since",
    "since_s",
    type=parse_duration,
    default="2h",
    show_default=True,
    metavar="TIME",
    help="How far back the recording is shown, as 90s, 30m, 2h or 3d.",
)
@click.option("--html", type=path_type, metavar="FILE", help="The report as a page.")
@inventory_option
@output_options
def history(
    model: str | None,
    device: str | None,
    snapshot: Path | None,
    since_s: int,
    html: Path | None,
    inventory_path: Path | None,
    out: Output,
) -> None:
    """What a device did over time; of MODEL, or of every model.

    Every deploy, when it was and how it ended (the device keeps the last few hundred steps). Then what its flight
    recorder has: latency, requests and failures, temperature, clocks, power and memory, drawn on a terminal, and as
    tables in a pipe. The agent need not run, or answer. Times are those of the device's clock, in UTC.
    """
    from ..errors import BadInputError
    from ..fleet.past import past_of_snapshot, read_past

    if (snapshot is None) == (device is None):
        raise click.UsageError("name a device (--on DEVICE) or a snapshot's file (--snapshot FILE)")
    if html is not None and (html.is_dir() or not html.absolute().parent.is_dir()):
        raise BadInputError(f"{html} cannot be written", hint="name a file in a folder that exists")
    steps = _STEPS if out.as_json or html is not None else _steps()
    if device is None:
        assert snapshot is not None
        past = past_of_snapshot(snapshot, model=model, since_s=since_s, steps=steps)
    else:
        with out.progress() as progress:
            progress.step(f"asking {device}")
            past = read_past(device, read_inventory(inventory_path), model=model, since_s=since_s, steps=steps)
    document = past.to_json()
    if html is not None:
        from ..report.history_html import history_html

        html.write_text(history_html(document), encoding="utf-8")

    def render() -> None:
        from ..report.history_text import show_history

        show_history(document)

    out.not_whole(document["problems"])
    out.result(document, render)


def _steps() -> int:
    """As many as can be told apart on this terminal; rows of a table, where there is none."""
    if not sys.stdout.isatty():
        return _ROWS
    from ..report.history_charts import columns_of_time

    return 2 * columns_of_time(shutil.get_terminal_size().columns)

"""`kedge snapshot`: take one of a device, and open one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ..errors import BadInputError, UnreachableError
from .common import Output, inventory_option, output_options, path_type, read_inventory

__all__ = ["snapshot"]


@click.group(invoke_without_command=True, subcommand_metavar="[open FILE]")
@click.option("--on", "device", metavar="DEVICE", help="A device of the inventory, or local.")
@click.option("-o", "--output", type=path_type, metavar="FILE", help="[default: DEVICE-TIME.kedge-snapshot.tar.zst]")
@click.option(
    "--seconds", type=click.IntRange(5, 600), default=60, show_default=True, help="Within which it is done, or cut."
)
@inventory_option
@output_options
@click.pass_context
def snapshot(
    context: click.Context,
    device: str | None,
    output: Path | None,
    seconds: int,
    inventory_path: Path | None,
    out: Output,
) -> None:
    """All that a device knows of itself, in one file that is safe to send home; its agent need not run.

    Secrets, addresses and names are masked on the device, as the file is written; what the masks stand for is written
    beside it, into FILE.map.json, which stays with you. `kedge doctor FILE` judges it, `kedge snapshot open FILE`
    makes it a page.
    """
    if context.invoked_subcommand is not None:
        given = [name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
        if given:
            raise click.UsageError("a snapshot that is opened needs no device: options stand behind open")
        return
    if device is None:
        raise click.UsageError("name a device (--on DEVICE), or: kedge snapshot open FILE")
    from ..diagnose.snapshot import take_snapshot
    from ..fleet.past import open_as_it_is
    from ..report.snapshot_text import collected, show_taken

    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        raise BadInputError(f"{output} cannot be written", hint="name a file in a folder that exists")
    inventory = read_inventory(inventory_path)
    with open_as_it_is(device, inventory) as transport, out.progress() as progress:
        progress.step(f"asking {device}")

        def note(told: Mapping[str, Any]) -> None:
            progress.step(f"collected: {collected(told)}")

        taken = take_snapshot(transport, output, seconds=seconds, note=note)
    document = {
        "device": device,
        "file": str(taken.path),
        "bytes": taken.size_bytes,
        "map": None if taken.map_path is None else str(taken.map_path),
        "cut": taken.cut,
        "manifest": dict(taken.end),
    }
    out.result(document, lambda: show_taken(document))
    if taken.cut is not None:
        raise UnreachableError(
            f"the snapshot is not whole: {taken.cut}", hint=f"what came until then is in {taken.path}", told=True
        )


@snapshot.command("open")
@click.argument("file", type=path_type)
@click.option("-o", "--output", type=path_type, metavar="FILE", help="The page.  [default: FILE.html]")
@output_options
def open_(file: Path, output: Path | None, out: Output) -> None:
    """Make a snapshot's FILE one page, for which no device and no network is needed.

    --json prints its manifest and its facts, and makes no page unless -o names one.
    """
    from ..diagnose.opened import open_snapshot

    opened = open_snapshot(file)
    page = output if output is not None else None if out.as_json else file.with_name(file.name + ".html")
    if page is not None:
        from ..diagnose.opened_page import snapshot_page

        page.write_text(snapshot_page(opened), encoding="utf-8")
    document = {
        "file": str(file),
        "page": None if page is None else str(page),
        "problems": list(opened.problems),
        "manifest": opened.manifest,
        "facts": opened.facts(),
    }

    def render() -> None:
        click.echo(str(page))

    out.not_whole(opened.problems)
    out.result(document, render)

"""`kedge demo`."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from .common import Output, long_output_options, path_type

__all__ = ["demo"]


@click.command()
@click.option("--keep", type=path_type, help="Leave the models and the data in this new folder.")
@long_output_options
def demo(keep: Path | None, out: Output) -> None:
    """The whole way on a bundled example, on a loopback device.

    Trains a small network on 1,797 real scans of handwritten digits, quantises it to INT8, makes
    releases, deploys them to agents on this machine behind their gates, runs images through them
    that training never saw while they are on probation, and measures. Nothing is left behind.
    """
    from ..demo.run import run_demo
    from ..demo.workspace import in_workspace

    begin = time.monotonic()

    def work(folder: Path, stack: ExitStack) -> dict[str, Any]:
        with out.progress() as progress:
            return run_demo(folder, stack, progress.share, keep)

    document = in_workspace(work)
    document["seconds"] = time.monotonic() - begin

    def render() -> None:
        from ..report.demo import demo_tables

        demo_tables(document)
        if keep is not None:
            click.echo(f"models and data are in {keep}")

    out.result(document, render)

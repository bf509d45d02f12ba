"""`kedge init`."""

from __future__ import annotations

from pathlib import Path

import click

from .common import Output, output_options, path_type

__all__ = ["init"]


@click.command()
@click.argument("folder", type=path_type, default=".", required=False)
@click.option(
    "--model", type=path_type, metavar="MODEL.onnx", help="Fill in this model and its inputs; needs --target."
)
@click.option("--target", help="The kind of device; see: kedge targets list.  [default: this machine's]")
@output_options
def init(folder: Path, model: Path | None, target: str | None, out: Output) -> None:
    """Write a recipe to begin with, kedge.toml, in FOLDER or here.

    Name the model and the data in it; kedge run then does the rest. Nothing is written over.
    """
    from ..errors import BadInputError
    from ..run.starter import write_starter
    from ..targets import host_target

    if model is not None and target is None:
        raise BadInputError(
            "no target was named", hint=f"give --target; this machine is {host_target().name}, see: kedge targets list"
        )
    path = write_starter(folder, model, target)

    def render() -> None:
        click.echo(f"{path}: name the {'data' if model is not None else 'model and the data'} in it, then: kedge run")

    out.result({"recipe": str(path), "model": None if model is None else str(model)}, render)

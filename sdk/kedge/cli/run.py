"""`kedge run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import Output, inventory_option, long_output_options, path_type, read_inventory
from .rollout_options import Asked, asked, carried_out_options

if TYPE_CHECKING:
    from ..fleet.inventory import Inventory
    from ..run.steps import Order

__all__ = ["run"]


@click.command()
@click.argument("recipe", type=path_type, default="kedge.toml", required=False)
@click.option("--to", metavar="DEVICES", help="Devices of the inventory, @group, local.  [default: what [run] says]")
@click.option(
    "--model-version", type=click.IntRange(min=1), help="The model's version.  [default: what [run] says, or 1]"
)
@click.option("-o", "--out", "folder", type=path_type, help="Where everything is written.  [default: NAME-run]")
@carried_out_options
@inventory_option
@long_output_options
def run(
    recipe: Path,
    to: str | None,
    model_version: int | None,
    folder: Path | None,
    inventory_path: Path | None,
    out: Output,
    **rollout: Any,
) -> int:
    """A RECIPE's whole way: optimize, build, deploy and bench, in one command.

    RECIPE is kedge.toml unless another is named; kedge init writes one to begin with. The golden inputs are the first
    samples of its evaluation data. What served before is measured, too.

    It stops where a step stops, with that step's exit code; OUT/run.json and the table say what is done. The same
    command then goes on: passes that were finished are not run again, and a release that a device serves is not sent.

    To several devices, or with any option of a rollout, the release is rolled out; the first device is measured.
    """
    from ..bench.rules import BenchRules
    from ..errors import KedgeError
    from ..run.steps import Run, read_order
    from .rolling import rolled_out

    wanted = asked(rollout)
    order = read_order(recipe, to, model_version, folder)
    devices, inventory = order.settings.to, read_inventory(inventory_path)
    work = Run(order, inventory, BenchRules())
    # What can be found wrong now is not found after an hour of training.
    if wanted.is_rollout(devices):
        _require_plan(order, inventory, wanted)
    else:
        work.ask()

    def roll_out(release: Path) -> tuple[dict[str, Any], int]:
        document, code = rolled_out(release, devices, inventory, wanted, None, None, out, allow_downgrade=False)
        assert document is not None  # none is of a plan that is shown only
        return document, code

    def render() -> None:
        from ..report.run_text import run_tables

        run_tables(work.document, every=wanted.every)

    try:
        code = work.go(lambda: out.progress(keep=True), roll_out if wanted.is_rollout(devices) else None)
    except KedgeError as error:
        out.result(work.document, render)
        error.told = True
        raise
    except KeyboardInterrupt:
        out.say(f"what is done is kept in {order.folder}, and the same command goes on; a device ends what it began")
        raise
    out.result(work.document, render)
    return code


def _require_plan(order: Order, inventory: Inventory, wanted: Asked) -> None:
    """That a rollout can be planned so, whatever its release will be."""
    from ..fleet.rollout.plan import make_plan
    from ..release.urls import require_plain

    if wanted.source is not None:
        require_plain(wanted.source)
    devices = inventory.select(order.settings.to)
    make_plan(
        devices,
        model=order.model,
        version=order.settings.version,
        digest="0" * 64,
        source=str(order.folder.absolute()),
        options=wanted.options(None),
        limits=inventory.limits(devices),
    )

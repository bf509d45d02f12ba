"""`kedge rollout`."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import BadInputError, ExitCode, KedgeError
from .common import Output, long_output_options, output_options, path_type
from .rolling import exit_code, go_on, result

if TYPE_CHECKING:
    from ..fleet.rollout.ledger import Ledger

__all__ = ["rollout"]

_LOOKS_S = 1.0

_id = click.argument("part", required=False, metavar="[ID]")
_every = click.option("--all", "every", is_flag=True, help="A row for each device.")
_cluster = click.option(
    "--cluster", metavar="URL", help="Workers of this dask scheduler; threads: of this host.  [default: as begun]"
)


@click.group()
def rollout() -> None:
    """Look at rollouts to many devices, go on with them, end them.

    ID may be any part of a rollout's name that no other has; without it, the newest is meant.
    """


@rollout.command("status")
@_id
@click.option("--watch", is_flag=True, help="Until it ends, on a terminal as a live display.")
@click.option("--html", type=path_type, metavar="FILE", help="Write it as one HTML page as well.")
@_every
@output_options
def status_command(part: str | None, watch: bool, html: Path | None, every: bool, out: Output) -> int | None:
    """Where a rollout stands. With --watch, the exit code is that of its end."""
    ledger = _find(part)
    if html is not None and not html.parent.is_dir():
        raise BadInputError(f"{html} cannot be written", hint="name a file in a folder that exists")
    if watch:
        _watch(ledger, out)
    document = _document(ledger)
    if html is not None:
        from ..report.rollout_html import rollout_html

        html.write_text(rollout_html(document), encoding="utf-8")
    result(document, out, every=every)
    return exit_code(document, ledger.read()) if watch else None


@rollout.command("resume")
@_id
@click.option("--skip-failed", is_flag=True, help="Leave devices that failed as they are, and count them no longer.")
@_cluster
@_every
@long_output_options
def resume_command(part: str | None, skip_failed: bool, cluster: str | None, every: bool, out: Output) -> int:
    """Go on with a rollout whose host died, that halted, or in which devices failed.

    Devices whose end is not known are asked again: one that did it already says so. Those that failed are tried again
    first, or left out with --skip-failed.
    """
    return go_on(_find(part), cluster, out, skip_failed=skip_failed, every=every)


@rollout.command("abort")
@_id
@click.option("--rollback", is_flag=True, help="Every device that it updated goes back to what it served before.")
@_cluster
@_every
@long_output_options
def abort_command(part: str | None, rollback: bool, cluster: str | None, every: bool, out: Output) -> int | None:
    """End a rollout: nothing more begins, what runs on devices ends. Whoever drives it does so; else this command."""
    ledger = _find(part)
    stands = ledger.read().to_json(driven=True)
    if stands["state"] in ("done", "aborted") and ledger.driver() is None:
        raise BadInputError(
            f"rollout {ledger.id} has ended: {stands['state']}",
            hint="of one device: kedge rollback MODEL --on DEVICE",
        )
    ledger.ask_abort(rollback=rollback)
    driver = ledger.driver()
    if driver is None:
        code = go_on(ledger, cluster, out, skip_failed=True, every=every)
        # That devices do not serve the release is what was asked for.
        return int(ExitCode.OK) if code == ExitCode.FLEET else code
    asked = {"rollout": ledger.id, "rollback": rollback, "driver": driver or None}
    out.result(
        asked,
        lambda: click.echo(
            f"asked process {driver or 'unknown'} to end {ledger.id}; see: kedge rollout status --watch"
        ),
    )
    return None


@rollout.command("list")
@output_options
def list_command(out: Output) -> None:
    """The rollouts that this host began, the newest first."""
    from ..fleet.rollout.ledger import rollouts

    keys = ("id", "created_s", "model", "version", "release", "state", "seconds", "counts", "cluster")
    rows: list[dict[str, Any]] = []
    for ledger in rollouts():
        try:
            document = _document(ledger)
        except KedgeError as error:
            # One that is damaged hides no other.
            out.say(f"{ledger.id}: {error.message}")
            continue
        rows.append({key: document[key] for key in keys})

    def render() -> None:
        from ..report.rollout_text import rollout_list

        rollout_list(rows)

    out.result(rows, render)


def _find(part: str | None) -> Ledger:
    from ..fleet.rollout.ledger import find, rollouts

    if part is None:
        return find(None)
    found = [each for each in rollouts() if part in each.id]
    exact = [each for each in found if each.id == part]
    if len(exact or found) == 1:
        return (exact or found)[0]
    if not found:
        raise BadInputError(f"there is no rollout {part!r}", hint="kedge rollout list")
    named = ", ".join(each.id for each in found[:4]) + (" …" if len(found) > 4 else "")
    raise BadInputError(f"{len(found)} rollouts have {part!r} in their name: {named}", hint="give more of it")


def _document(ledger: Ledger) -> Mapping[str, Any]:
    # In this order: who drives it may end it meanwhile, and has then written its end.
    driven = ledger.driver() is not None
    return ledger.read().to_json(driven=driven)


def _watch(ledger: Ledger, out: Output) -> None:
    """Until nobody drives it any more."""
    from .rollout_live import RolloutView, rollout_display

    if out.quiet or out.as_json or not sys.stderr.isatty():
        while ledger.driver() is not None:
            time.sleep(_LOOKS_S)
        return
    now = [ledger.read()]
    with rollout_display(RolloutView(lambda: now[0])):
        while ledger.driver() is not None:
            time.sleep(_LOOKS_S)
            now[0] = ledger.read()

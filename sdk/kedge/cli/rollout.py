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
# A driver looks each second whether it is asked to end.
_HEARS_S, _ASKS_S = 3.0, 0.1

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
    ledger = _find(part)
    if ledger.driver() is None and (ledger.asked_abort() is not None or ledger.read().aborted is not None):
        out.say("an end of it was asked for (kedge rollout abort): what is left of that is done, and nothing more")
    return go_on(ledger, cluster, out, skip_failed=skip_failed, every=every)


@rollout.command("abort")
@_id
@click.option("--rollback", is_flag=True, help="Every device that it updated goes back to what it served before.")
@_cluster
@_every
@long_output_options
def abort_command(part: str | None, rollback: bool, cluster: str | None, every: bool, out: Output) -> int | None:
    """End a rollout: nothing more begins, what runs on devices ends. Whoever drives it does so; else this command.

    The exit code is 11 where this command ended it, and a device could not be taken back.
    """
    ledger = _find(part)
    stands = ledger.read().to_json(driven=True)
    if stands["state"] in ("done", "aborted") and ledger.driver() is None:
        raise BadInputError(
            f"rollout {ledger.id} has ended: {stands['state']}",
            hint="of one device: kedge rollback MODEL --on DEVICE",
        )
    ledger.ask_abort(rollback=rollback)
    driver = _who_heard(ledger)
    if driver is None:
        if ledger.asked_abort() is None and ledger.read().ended == "aborted":
            # Whoever drove it has ended it meanwhile.
            result(_document(ledger), out, every=every)
        elif (code := go_on(ledger, cluster, out, skip_failed=True, every=every)) not in (ExitCode.OK, ExitCode.FLEET):
            return code
        return _abort_code(_document(ledger), rollback=rollback)
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


def _who_heard(ledger: Ledger) -> int | None:
    """Process id of the driver that takes the request up; None: nobody drives it, or does any more."""
    end = time.monotonic() + _HEARS_S
    # The last look of one that is about to end may have been before it was asked.
    while ledger.driver() is not None and ledger.asked_abort() is not None and time.monotonic() < end:
        time.sleep(_ASKS_S)
    return ledger.driver()


def _abort_code(document: Mapping[str, Any], *, rollback: bool) -> int:
    """That devices do not serve the release is what was asked for; that one still may is not."""
    missed = ("rollback_failed", "unknown") if rollback else ("rollback_failed",)
    return int(ExitCode.FLEET if any(each["state"] in missed for each in document["devices"]) else ExitCode.OK)


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

"""`kedge doctor`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from .common import Output, inventory_option, output_options, path_type, read_inventory

__all__ = ["doctor"]


@click.command()
@click.argument("snapshot", required=False, type=path_type)
@click.option("--on", "device", metavar="DEVICE", help="A device of the inventory, or local.")
@click.option("--html", type=path_type, metavar="FILE", help="The report as a page.")
@inventory_option
@output_options
def doctor(
    snapshot: Path | None, device: str | None, html: Path | None, inventory_path: Path | None, out: Output
) -> int:
    """Find out why a device is slow or does not serve: checks, what is behind them, and what to do.

    Of a device (--on), whose agent need not run; or of a SNAPSHOT's file, without any device. Exit code 10: there is a
    fault, and be it that the device cannot be reached. 0: there is none; there may be warnings, and what is not known.
    """
    from ..diagnose.doctor import diagnose
    from ..errors import BadInputError, ExitCode
    from ..fleet.examine import examine, examine_snapshot

    if (snapshot is None) == (device is None):
        raise click.UsageError("name a device (--on DEVICE) or a snapshot's file")
    if html is not None and (html.is_dir() or not html.absolute().parent.is_dir()):
        raise BadInputError(f"{html} cannot be written", hint="name a file in a folder that exists")
    if device is None:
        assert snapshot is not None
        evidence = examine_snapshot(snapshot)
    else:
        with out.progress(keep=True) as progress:
            progress.step(f"reaching {device}")

            def note(told: Mapping[str, Any]) -> None:
                status, name = told.get("status"), str(told.get("collector"))[:40]
                progress.share(name if status == "ok" else f"{name}: {str(status)[:20]}", 1.0)

            evidence = examine(device, read_inventory(inventory_path), note)
    document = diagnose(evidence).to_json()
    if html is not None:
        from ..report.doctor_html import doctor_html

        html.write_text(doctor_html(document), encoding="utf-8")

    def render() -> None:
        from ..report.doctor_text import show_doctor

        show_doctor(document)

    out.not_whole(document["problems"])
    out.result(document, render)
    faulty = any(finding["result"] == "fault" for finding in document["findings"])
    return int(ExitCode.DOCTOR if faulty else ExitCode.OK)

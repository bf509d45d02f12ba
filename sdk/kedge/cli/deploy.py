"""`kedge deploy`, `kedge status`, `kedge rollback`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from .common import Output, inventory_option, long_output_options, on_option, output_options, path_type, read_inventory

__all__ = ["deploy", "rollback", "status"]


@click.command()
@click.argument("release", type=path_type)
@click.option("--to", "device", required=True, metavar="DEVICE", help="A device of the inventory, or local.")
@inventory_option
@long_output_options
def deploy(release: Path, device: str, inventory_path: Path | None, out: Output) -> None:
    """Push a RELEASE folder to a device, and switch its model to it once the parity gate is passed.

    Where the release has a build plan and no engine, the engine comes from the cache if one fits the device; else the
    device builds it first, and it is kept for all of the same passport.
    """
    from ..deploy.engines import prepared
    from ..deploy.push import deploy as run_deploy
    from ..fleet.inventory import open_device
    from ..release.bundle import open_release

    found = open_release(release)
    with (
        open_device(device, read_inventory(inventory_path)) as (transport, kind),
        out.progress() as progress,
        tempfile.TemporaryDirectory(prefix="kedge-deploy-") as folder,
    ):
        # Where the release has a build plan: from the cache, or compiled on the device.
        found = prepared(transport, kind, found, Path(folder) / "release", progress.share)
        done = run_deploy(transport, found, progress=progress.bytes, state=progress.step)

    def render() -> None:
        from ..report.tables import key_values
        from ..report.text import byte_size, milliseconds

        speed = f" at {byte_size(int(done.sent_bytes / done.push_s))}/s" if done.sent_bytes else ""
        key_values(
            [
                ("device", done.device),
                ("serves", f"{done.model} version {done.version}, release {done.release[:12]}"),
                (
                    "rolls back to",
                    done.previous[:12] if done.previous else "nothing: this is the model's first release",
                ),
                ("sent", f"{byte_size(done.sent_bytes)}{speed}; {byte_size(done.skipped_bytes)} were there already"),
                *(
                    (
                        f"parity of {row['output']}",
                        f"cosine {row['cosine']:.6f}, relative error {row['relative_error']:.2g}",
                    )
                    for row in done.parity
                ),
                ("push / activate", f"{milliseconds(done.push_s * 1e3)} / {milliseconds(done.activate_s * 1e3)}"),
            ]
        )

    out.result(done.to_json(), render)


@click.command()
@on_option
@inventory_option
@output_options
def status(device: str, inventory_path: Path | None, out: Output) -> None:
    """What a device serves, and what it would roll back to."""
    from ..fleet.inventory import open_device
    from ..transport.client import AgentClient

    with open_device(device, read_inventory(inventory_path)) as (transport, target):
        client = AgentClient(transport)
        try:
            info = client.get("/kedge/v1/info", expect=("version", "python", "runtimes", "memory", "state"))
            found = client.get("/kedge/v1/status", expect=("ready", "models"))
        finally:
            client.close()
    document = {"device": device, "target": target.name, "agent": info, **found}

    def render() -> None:
        from ..report.tables import key_values, print_table
        from ..report.text import byte_size

        runtimes = ", ".join(f"{name} {version}" for name, version in info["runtimes"].items() if version) or "none"
        key_values(
            [
                ("device", f"{device} ({target.name}, {info['os']}/{info['arch']}, {info['cores']} cores)"),
                ("agent", f"{info['version']} on Python {info['python']}, up {_duration(info['uptime_s'])}"),
                ("runtimes", runtimes),
                ("memory", f"{byte_size(info['memory']['rss_bytes'])} RSS"),
                ("state", info["state"]),
            ]
        )
        if not found["models"]:
            click.echo("no model yet: kedge deploy RELEASE --to " + device)
            return
        print_table("", ["model", "state", "version", "precision", "release", "rolls back to", "problem"], _rows(found))

    out.result(document, render)


def _rows(found: dict[str, Any]) -> list[list[str]]:
    return [
        [
            row["model"],
            row["state"],
            str(row["version"] or "–"),
            row["precision"] or "–",
            (row["release"] or row["current"] or "–")[:12],
            (row["previous"] or "–")[:12],
            row["problem"] or "",
        ]
        for row in found["models"]
    ]


def _duration(seconds: float) -> str:
    minutes = int(seconds) // 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"


@click.command()
@click.argument("model")
@on_option
@inventory_option
@output_options
def rollback(model: str, device: str, inventory_path: Path | None, out: Output) -> None:
    """Switch a MODEL back to the release it served before."""
    from ..deploy.push import rollback as run_rollback
    from ..fleet.inventory import open_device

    with open_device(device, read_inventory(inventory_path)) as (transport, _), out.progress() as progress:
        progress.step("rolling back")
        done = run_rollback(transport, model)

    def render() -> None:
        from ..report.tables import key_values

        key_values(
            [
                ("device", device),
                ("serves", f"{done['model']} version {done['version']}, release {done['release'][:12]}"),
                ("rolls back to", done["previous"][:12]),
            ]
        )

    out.result({"device": device, **done}, render)

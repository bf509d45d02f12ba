"""`kedge deploy`, `kedge status`, `kedge rollback`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .common import Output, inventory_option, long_output_options, on_option, output_options, path_type, read_inventory
from .rollout_options import asked, rollout_options
from .units import parse_rate

__all__ = ["deploy", "rollback", "status"]

# Of one that is well it takes milliseconds; whoever asks for its state waits for no other.
_ANSWERS_S = 10.0


@click.command()
@click.argument("release", type=path_type, metavar="RELEASE|ARCHIVE")
@click.option("--to", "device", required=True, metavar="DEVICES", help="Devices of the inventory, @group, local.")
@click.option("--limit", "limit", type=parse_rate, metavar="RATE", help="Push no faster than this, as 50Mbit.")
@click.option("--allow-downgrade", is_flag=True, help="Take this version though the device has had a later one.")
@click.option("--key", type=path_type, help="SSH key that signs the downgrade, where the device asks for signatures.")
@click.option("--no-wait", is_flag=True, help="Return once the device has switched; its probation goes on there.")
@rollout_options
@inventory_option
@long_output_options
def deploy(
    release: Path,
    device: str,
    limit: int | None,
    allow_downgrade: bool,
    key: Path | None,
    no_wait: bool,
    inventory_path: Path | None,
    out: Output,
    **rollout: Any,
) -> int | None:
    """Push a RELEASE folder or .kedge archive to a device, which switches to it once its gates are passed.

    The device stages, gates and switches by itself, then watches the release for its probation and goes back to the one
    before where it does not keep to its limits. When the connection is lost it does so all the same, and the same
    command picks up and tells how it ended.

    Where the release has a build plan and no engine, the engine comes from the cache if one fits the device; else the
    device builds it first, and it is kept for all of the same passport.

    To several devices (cam-1,cam-2 or @group or 'label:site=berlin') or with any option of a rollout it is one:
    wave by wave, and it halts where more devices fail than may. See: kedge rollout.
    """
    from ..deploy.push import DEVICE_STEPS
    from ..deploy.releases import read_floor
    from ..deploy.to_device import deploy_to_device
    from ..errors import BadInputError
    from ..fleet.inventory import open_device
    from ..release.archives import opened
    from ..release.signing import downgrade
    from ..report.deploy_text import deploy_tables

    if key is not None and not allow_downgrade:
        raise BadInputError(
            "--key signs a downgrade, and none was asked for", hint="to sign the release: kedge release sign"
        )
    wanted = asked(rollout)
    if wanted.is_rollout(device):
        from .rolling import begin

        if no_wait:
            raise click.UsageError("--no-wait is of a deploy to one device: a rollout waits for each device's end")
        return begin(
            release, device, read_inventory(inventory_path), wanted, limit, key, out, allow_downgrade=allow_downgrade
        )
    reached: list[str] = []
    try:
        with (
            opened(release) as given,
            open_device(device, read_inventory(inventory_path)) as (transport, kind),
        ):
            # Before there is a display: ssh-keygen may ask for a passphrase.
            older = None
            if allow_downgrade:
                floor, last_serial = read_floor(transport, given.manifest.model)
                older = downgrade(given, key, floor, last_serial)
            with out.progress(keep=True) as progress:
                done = deploy_to_device(
                    transport,
                    kind,
                    given,
                    progress,
                    downgrade=older,
                    limit_bytes_per_s=limit,
                    wait=not no_wait,
                    reached=reached.append,
                )
    except KeyboardInterrupt:
        if reached and reached[-1] in DEVICE_STEPS:
            out.say("the device finishes or goes back by itself; the same command picks up and tells the end")
        raise
    document = done.to_json()
    out.result(document, lambda: deploy_tables(document))
    if no_wait and done.probation is None and reached[-1] == "probation":
        out.say(f"on probation: the device goes back by itself where it must; see: kedge history --on {device}")
    return None


@click.command()
@on_option
@inventory_option
@output_options
def status(device: str, inventory_path: Path | None, out: Output) -> None:
    """What a device serves, and what it would roll back to."""
    from ..deploy.told import require
    from ..errors import UnreachableError
    from ..fleet.inventory import open_device
    from ..transport.client import AgentClient

    with open_device(device, read_inventory(inventory_path)) as (transport, target):
        client = AgentClient(transport, _ANSWERS_S)
        try:
            info = require(device, "info", client.get("/kedge/v1/info"))
            found = client.get("/kedge/v1/status", expect=("ready", "models"))
            require(device, "models", found["models"])
        except UnreachableError as error:
            raise UnreachableError(error.message, hint=f"see why: kedge doctor --on {device}") from error
        finally:
            client.close()
    document = {"device": device, "target": target.name, "agent": info, **found}

    def render() -> None:
        from ..report.status_text import STATUS_COLUMNS, outcome_lines, signature_rows, status_rows
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
                *signature_rows(info.get("signatures")),
                *([("safe mode", str(found["safe_mode"]))] if found.get("safe_mode") else []),
            ]
        )
        if not found["models"]:
            click.echo("no model yet: kedge deploy RELEASE --to " + device)
            return
        print_table("", STATUS_COLUMNS, status_rows(found["models"]))
        for line in outcome_lines(found["models"]):
            click.echo(line)

    out.result(document, render)


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
                ("rolls back to", (done["previous"] or "nothing")[:12]),
            ]
        )

    out.result({"device": device, **done}, render)

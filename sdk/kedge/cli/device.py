"""`kedge device`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click

from .common import Output, inventory_option, long_output_options, output_options, path_type, read_inventory
from .device_import import import_command
from .device_list import list_command
from .upgrade import upgrade_command

__all__ = ["device"]


@click.group()
def device() -> None:
    """Add, import, trust, provision, upgrade and list devices."""


device.add_command(import_command)
device.add_command(list_command)
device.add_command(upgrade_command)


@device.command("add")
@click.argument("name")
@click.argument("address", metavar="USER@HOST[:PORT]")
@click.option("--target", help="The kind of device; see: kedge targets list.")
@click.option("--jump-host", is_flag=True, help="It is a jump host alone: nothing is deployed to it.")
@click.option("--key", "identity", type=path_type, help="Private key.  [default: ssh-agent and ~/.ssh]")
@click.option("--state", help="The agent's state folder there.  [default: the SSH user's own]")
@click.option("--group", "groups", multiple=True, metavar="GROUP", help="A group of its; may be repeated.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label of its; may be repeated.")
@click.option(
    "--jump",
    multiple=True,
    metavar="HOST",
    help="A host before it, of the inventory or USER@HOST[:PORT]; may be repeated, the outermost first.",
)
@inventory_option
@output_options
def add_command(
    *,
    name: str,
    address: str,
    target: str | None,
    jump_host: bool,
    identity: Path | None,
    state: str | None,
    groups: tuple[str, ...],
    labels: tuple[str, ...],
    jump: tuple[str, ...],
    inventory_path: Path | None,
    out: Output,
) -> None:
    """Write a device into the inventory; nothing is sent to it."""
    from ..errors import BadInputError
    from ..fleet.inventory import parse_address
    from ..targets import load_target
    from ..transport.address import SshAddress, expanded

    if (target is None) != jump_host:
        raise click.UsageError("give --target, or --jump-host")
    user, host, port = parse_address(address)
    key = expanded(identity).absolute() if identity is not None else None
    if key is not None and not key.is_file():
        raise BadInputError(f"the private key {identity} does not exist")
    if state is not None and not state.startswith("/"):
        raise BadInputError(f"the state folder {state!r} is not an absolute path")
    inventory = read_inventory(inventory_path, new=True)
    added = inventory.add(
        name,
        SshAddress(host, port, user, identity=key, state=state),
        load_target(target) if target is not None else None,
        groups=groups,
        labels=dict(_label(text) for text in labels),
        jump=jump,
    )
    kind = target or "a jump host"
    out.result(
        added.to_json(),
        lambda: click.echo(f"added {name}: {user}@{host}:{port}, {kind}\nnext: kedge device trust {name}"),
    )


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"--label {text} is not KEY=VALUE")
    return key, value


@device.command("trust")
@click.argument("name")
@click.option("--fingerprint", help="The fingerprint it must have (SHA256:…), as read on the device itself.")
@click.option("--replace", is_flag=True, help="Replace a pinned key by another; needs --fingerprint.")
@inventory_option
@output_options
def trust_command(name: str, fingerprint: str | None, replace: bool, inventory_path: Path | None, out: Output) -> None:
    """Pin a device's host key, after you have compared its fingerprint."""
    from ..errors import HostKeyChangedError, UnknownHostKeyError
    from ..transport.base import Deadline
    from ..transport.ssh_jump import shown_host_key

    inventory = read_inventory(inventory_path)
    entry = inventory.host(name)
    pinned = entry.address.host_key
    # What replaces it may be of another algorithm: the one that `ssh` would see too.
    address = dataclasses.replace(entry.address, host_key=None) if replace else entry.address
    shown = shown_host_key(name, address, Deadline.after(30, f"reading the host key of {name}"))
    if pinned is not None and pinned != shown and not (replace and fingerprint):
        raise HostKeyChangedError(
            f"{name}: the host key changed: pinned {pinned.fingerprint}, shown {shown.fingerprint}",
            hint="if the device was set up anew, read its fingerprint there and give --replace --fingerprint",
        )
    if fingerprint is not None and fingerprint != shown.fingerprint:
        raise HostKeyChangedError(
            f"{name} shows {shown.algorithm} {shown.fingerprint}, not {fingerprint}",
            hint="do not connect: somebody may be listening, or the address is another machine's",
        )
    if fingerprint is None and pinned is None:
        _confirm(name, shown, UnknownHostKeyError)
    inventory.update(name, host_key=str(shown))
    document = {"device": name, "algorithm": shown.algorithm, "fingerprint": shown.fingerprint}
    then = f"\nnext: kedge device provision {name}" if entry.target else ""
    out.result(
        document,
        lambda: click.echo(f"pinned {shown.algorithm} {shown.fingerprint} for {name}{then}"),
    )


def _confirm(name: str, shown: Any, refusal: type[Exception]) -> None:
    hint = f"compare it with the device's own, then: kedge device trust {name} --fingerprint {shown.fingerprint}"
    if not sys.stdin.isatty():
        raise refusal(f"{name} shows {shown.algorithm} {shown.fingerprint}", hint=hint)  # type: ignore[call-arg]
    click.echo(f"{name} shows {shown.algorithm} {shown.fingerprint}", err=True)
    click.echo("on the device: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub", err=True)
    if not click.confirm("is it the same?", err=True):
        raise refusal(f"{name}: the host key was not accepted", hint=hint)  # type: ignore[call-arg]


@device.command("probe")
@click.argument("name")
@click.option("--python", default=None, help="The interpreter there.  [default: python3]")
@inventory_option
@output_options
def probe_command(name: str, python: str | None, inventory_path: Path | None, out: Output) -> None:
    """Ask a device what it is, and whether an agent is installed."""
    from ..deploy.provision import check_target, probe
    from ..targets import load_target
    from ..transport.ssh import SshTransport

    inventory = read_inventory(inventory_path)
    entry = inventory.get(name)
    transport = SshTransport(name, entry.address)
    try:
        found = probe(transport, python=python or entry.python or "python3", state=entry.address.state)
    finally:
        transport.close()
    check_target(name, found, load_target(entry.target))
    if found.installed and entry.address.state is None:
        inventory.update(name, state=found.state)

    def render() -> None:
        from ..report.tables import key_values

        key_values((key, _text(value)) for key, value in found.to_json().items())

    out.result({"device": name, **found.to_json()}, render)


def _text(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(str(item)[:12] for item in value) or "none"
    return str(value)


@device.command("provision")
@click.argument("name")
@click.option("--python", default=None, help="The interpreter there, 3.10 or newer.  [default: python3]")
@click.option("--state", help="The agent's state folder there.  [default: the SSH user's own]")
@click.option("--wheelhouse", type=path_type, help="A folder of wheels, for a host without network.")
@click.option(
    "--service/--no-service", default=True, help="Make it a systemd service where systemd runs.  [default: service]"
)
@click.option("--force", is_flag=True, help="Send and unpack everything again, to mend a damaged agent.")
@inventory_option
@long_output_options
def provision_command(
    name: str,
    python: str | None,
    state: str | None,
    wheelhouse: Path | None,
    force: bool,
    service: bool,
    inventory_path: Path | None,
    out: Output,
) -> None:
    """Install or update the agent on a device, start it, and see that it answers."""
    from ..deploy.provision import provision
    from ..targets import load_target
    from ..transport.ssh import SshTransport

    inventory = read_inventory(inventory_path)
    entry = inventory.get(name)
    interpreter = python or entry.python or "python3"
    transport = SshTransport(name, entry.address)
    try:
        with out.progress() as progress:
            done = provision(
                transport,
                load_target(entry.target),
                python=interpreter,
                state=state or entry.address.state,
                wheelhouse=wheelhouse,
                force=force,
                service=service,
                step=progress.step,
                sent=progress.bytes,
                note=out.say,
            )
    finally:
        transport.close()
    inventory.update(name, state=done.state, **({"python": python} if python else {}))
    document = {
        "device": name,
        "state": done.state,
        "agent": done.agent,
        "sent_bytes": done.sent_bytes,
        "started": done.started,
        "reason": done.reason,
        "info": done.info,
    }

    def render() -> None:
        from ..report.tables import key_values
        from ..report.text import byte_size

        note = (
            f" ({done.reason}: it does not come back by itself after a reboot)" if done.started == "background" else ""
        )
        key_values(
            [
                ("device", name),
                ("agent", f"{done.info['version']} on Python {done.info['python']}, answering"),
                ("started", f"{done.started}{note}"),
                ("sent", byte_size(done.sent_bytes) if done.sent_bytes else "nothing: it was there already"),
                ("state", done.state),
            ]
        )

    out.result(document, render)


@device.command("remove")
@click.argument("name")
@inventory_option
@output_options
def remove_command(name: str, inventory_path: Path | None, out: Output) -> None:
    """Forget a device; nothing changes on it."""
    read_inventory(inventory_path).remove(name)
    out.result({"removed": name}, lambda: click.echo(f"removed {name}"))

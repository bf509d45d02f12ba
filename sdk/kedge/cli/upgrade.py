"""`kedge device upgrade`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .common import Output, inventory_option, long_output_options, path_type, read_inventory

__all__ = ["upgrade_command"]


@click.command("upgrade")
@click.argument("name")
@click.option("--key", type=path_type, help="Sign the agent with this SSH key (or the .pub file of one in ssh-agent).")
@click.option("--wheelhouse", type=path_type, help="A folder of wheels, for a host without network.")
@inventory_option
@long_output_options
def upgrade_command(
    name: str, key: Path | None, wheelhouse: Path | None, inventory_path: Path | None, out: Output
) -> None:
    """Bring the agent of a device to this version of kedge, while it serves; it falls back by itself."""
    from ..deploy.upgrade import upgrade
    from ..targets import load_target
    from ..transport.address import expanded
    from ..transport.ssh import SshTransport

    entry = read_inventory(inventory_path).get(name)
    transport = SshTransport(name, entry.address)
    try:
        with out.progress() as progress:
            done = upgrade(
                transport,
                load_target(entry.target),
                key=expanded(key) if key is not None else None,
                wheelhouse=wheelhouse,
                step=progress.step,
                sent=progress.bytes,
                note=out.say,
            )
    finally:
        transport.close()
    document = done.to_json()
    out.result(document, lambda: _render(document))


def _render(done: dict[str, Any]) -> None:
    from ..report.tables import key_values
    from ..report.text import byte_size

    if done["state"] == "current":
        key_values([("device", done["device"]), ("agent", f"{done['to_version']}, this very one already")])
        return
    pause = "not measured"
    if done["doors_ms"] is not None and done["models_ms"] is not None:
        pause = f"{done['doors_ms']:.0f} ms without an answer, {done['models_ms']:.0f} ms until every model served"
    key_values(
        [
            ("device", done["device"]),
            ("agent", f"{done['from_version']} → {done['to_version']}"),
            ("sent", f"{byte_size(done['wire_bytes'])}; it had {byte_size(done['skipped_bytes'])}"),
            ("signed", "yes" if done["signed"] else "no"),
            ("handover", pause),
        ]
    )

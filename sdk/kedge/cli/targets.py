"""`kedge targets`."""

from __future__ import annotations

import click

from .common import Output, output_options

__all__ = ["targets"]


@click.group()
def targets() -> None:
    """Profiles of what kinds of devices can do."""


@targets.command("list")
@output_options
def list_command(out: Output) -> None:
    """List the profiles."""
    from ..targets import list_targets, load_target

    profiles = [load_target(name) for name in list_targets()]

    def render() -> None:
        from ..report.tables import print_table

        rows = [[p.name, p.arch, ", ".join(p.runtimes), ", ".join(p.precisions), p.description] for p in profiles]
        print_table("", ["target", "arch", "runtimes", "precisions", ""], rows)

    out.result([profile.to_json() for profile in profiles], render)


@targets.command("show")
@click.argument("name")
@output_options
def show_command(name: str, out: Output) -> None:
    """Show one profile."""
    from ..targets import load_target

    profile = load_target(name).to_json()

    def render() -> None:
        from ..report.tables import key_values

        key_values((key, _text(value)) for key, value in profile.items())

    out.result(profile, render)


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items() if item is not None)
    return str(value)

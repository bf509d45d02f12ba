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
    from ..targets import FAMILIES, list_targets, load_target

    profiles = [load_target(name) for name in list_targets()]

    def render() -> None:
        from ..report.tables import print_table

        ordered = sorted(profiles, key=lambda profile: (FAMILIES.index(profile.family), profile.name))
        rows = [
            [
                each.name,
                each.description,
                each.compute_capability or "–",
                "–" if each.memory is None else f"{each.memory.size_gib:g} GiB",
                ", ".join(each.runtimes),
                ", ".join(each.precisions),
            ]
            for each in ordered
        ]
        print_table("", ["target", "", "CC", "memory", "runtimes", "precisions"], rows)

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

        rows: list[tuple[str, str]] = []
        for key, value in profile.items():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                rows += [(key if index == 0 else "", _text(each)) for index, each in enumerate(value)]
            else:
                rows.append((key, _text(value)))
        key_values(rows)

    out.result(profile, render)


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items() if item is not None)
    return str(value)

"""A snapshot that was taken, on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from .tables import key_values, print_table
from .text import byte_size, milliseconds, printable

__all__ = ["collected", "plain", "show_taken"]


def collected(told: Mapping[str, Any]) -> str:
    """One line on a collector that has ended, as a device tells it."""
    name, status = plain(told.get("collector"), 40), plain(told.get("status"), 20)
    return printable(name if status == "ok" else f"{name}: {status}")


def plain(value: Any, most: int = 200) -> str:
    """What a device told, as a text of at most so many characters; a dash where it told nothing."""
    text = "–" if value is None else str(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def show_taken(document: Mapping[str, Any]) -> None:
    """Print the document of `kedge snapshot --json` for people: what came of each collector, then where it lies."""
    manifest = document["manifest"]
    rows = manifest.get("collectors")
    if isinstance(rows, dict):
        told = [(name, each) for name, each in rows.items() if isinstance(each, dict)]
        print_table(
            "",
            ("collector", "result", "time", "files", "why"),
            [
                (
                    plain(name, 40),
                    plain(each.get("status"), 20),
                    milliseconds(each["ms"]) if isinstance(each.get("ms"), (int, float)) else "–",
                    str(len(each["members"])) if isinstance(each.get("members"), list) else "–",
                    "" if each.get("reason") is None else plain(each["reason"]),
                )
                for name, each in told
            ],
            right=(2, 3),
        )
    entries = [("snapshot", f"{document['file']} ({byte_size(document['bytes'])}), safe to send")]
    if document["map"] is not None:
        entries.append(("map", f"{document['map']}: PRIVATE, do not send"))
    elif document["cut"] is None:
        entries.append(("map", "the device sent none"))
    masked = manifest.get("redacted")
    if isinstance(masked, dict) and masked:
        entries.append(
            ("masked", ", ".join(f"{plain(count, 12)} × {plain(kind, 20)}" for kind, count in masked.items()))
        )
    key_values(entries)
    click.echo(f"\nnext: kedge doctor {document['file']}, or kedge snapshot open {document['file']}")

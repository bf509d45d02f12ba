"""A rollout on the terminal: what came of it, waves and gates, each device that is not well, the others as a count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from .history_events import duration, moment
from .rollout_words import SERVES, STATES, count_words, counts_of, gate_marks, headline, in_order, plural
from .tables import key_values, print_table
from .text import byte_size, milliseconds, one_line, printable

__all__ = ["MOST_WELL", "rollout_list", "rollout_tables", "wave_plan"]

#: Rows of devices that are well, beyond which they are told as a count.
MOST_WELL = 20
_SHORT = 12


def rollout_tables(document: Mapping[str, Any], *, every: bool = False) -> None:
    """The document of a rollout as tables.

    Args:
        every: a row for each device that is well or has not begun, however many.
    """
    rows = [
        ("rollout", document["id"]),
        ("release", f"{document['model']} version {document['version']}, {document['release'][:_SHORT]}"),
        ("result", headline(document)),
    ]
    if document["reason"]:
        rows.append(("because", one_line(document["reason"])))
    if document["hint"]:
        rows.append(("to do", one_line(document["hint"])))
    key_values(rows)
    print_table(
        "", ["wave", "devices", "state", "took", "gates"], [_wave(document, each) for each in document["waves"]]
    )
    for line in _gates(document["waves"]):
        click.echo(line)
    _devices(document["devices"], every=every)


def _wave(document: Mapping[str, Any], wave: Mapping[str, Any]) -> list[str]:
    counts = counts_of([each for each in document["devices"] if each["wave"] == wave["wave"]])
    begun, ended = wave["begun_s"], wave["ended_s"]
    took = "" if begun is None or ended is None else duration(ended - begun)
    return [str(wave["wave"]), count_words(counts), wave["state"], took, gate_marks(wave)]


def _gates(waves: Sequence[Mapping[str, Any]]) -> list[str]:
    """What did not hold, or could not be judged though a limit was asked for, and why: of several waves once."""
    found: dict[tuple[str, str], list[str]] = {}
    for wave in waves:
        for gate in wave["gates"]:
            asked = any(limit is not None for limit in gate["limits"].values())
            if gate["passed"] is False or (gate["passed"] is None and asked):
                word = "failed" if gate["passed"] is False else "not judged"
                found.setdefault((f"{gate['gate']} {word}", one_line(gate["why"])), []).append(str(wave["wave"]))
    return [
        f"wave{'' if len(numbers) == 1 else 's'} {', '.join(numbers)}: {gate}: {why}"
        for (gate, why), numbers in found.items()
    ]


def _devices(devices: Sequence[Mapping[str, Any]], *, every: bool) -> None:
    ordered = in_order(devices)
    amiss = [each for each in ordered if each["state"] not in SERVES and each["state"] != "waiting"]
    well = [each for each in ordered if each["state"] in SERVES]
    waiting = [each for each in ordered if each["state"] == "waiting"]
    if amiss:
        print_table("", ["device", "state", "wave", "reason", "to do"], [_amiss(each) for each in amiss])
    if well and (every or len(well) <= MOST_WELL):
        columns = ["device", "state", "wave", "took", "push", "sent", "p99"]
        print_table("", columns, [_well(each) for each in well], right=(3, 4, 5, 6))
    elif well:
        click.echo(f"{count_words(counts_of(well))} (each of them: --all)")
    if waiting and every:
        print_table("", ["device", "state", "wave"], [_of(each) for each in waiting])
    elif waiting:
        click.echo(f"{plural(len(waiting), 'device')} waiting")


def _of(device: Mapping[str, Any]) -> list[str]:
    state = STATES[device["state"]]
    return [device["device"], f"{state.sign} {state.word}", str(device["wave"])]


def _amiss(device: Mapping[str, Any]) -> list[str]:
    # The device is named in the first column already.
    reason = one_line(device["reason"] or device["step"] or "").removeprefix(f"{device['device']}: ")
    return [*_of(device), reason, one_line(device["hint"] or "")]


def _well(device: Mapping[str, Any]) -> list[str]:
    took, push, sent, p99 = (device[key] for key in ("seconds", "push_s", "wire_bytes", "p99_ms"))
    return [
        *_of(device),
        "–" if took is None else duration(took),
        "–" if push is None else duration(push),
        "–" if sent is None else byte_size(sent),
        "–" if p99 is None else milliseconds(p99),
    ]


def wave_plan(waves: Sequence[Mapping[str, Any]]) -> None:
    """Who is in which wave: each {wave, devices: names, count: of all until its end}."""
    rows = []
    for wave in waves:
        names = list(wave["devices"])
        shown = ", ".join(names[:MOST_WELL]) + (
            f" and {len(names) - MOST_WELL:,} more" if len(names) > MOST_WELL else ""
        )
        rows.append([str(wave["wave"]), f"{len(names):,}", f"{wave['count']:,}", shown])
    print_table("", ["wave", "devices", "in all", "who"], rows, right=(1, 2))


def rollout_list(rows: Sequence[Mapping[str, Any]]) -> None:
    """The rollouts of this host, the newest first: documents without their devices would do."""
    if not rows:
        click.echo("no rollout yet: kedge deploy RELEASE --to @GROUP")
        return
    print_table(
        "",
        ["rollout", "begun (UTC)", "release", "state", "devices"],
        [
            [
                row["id"],
                moment(row["created_s"]),
                f"{row['model']} version {row['version']}, {row['release'][:_SHORT]}",
                printable(row["state"]),
                count_words(row["counts"]),
            ]
            for row in rows
        ],
    )

"""Tables on the terminal, through rich."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .text import byte_size, milliseconds, printable, rate

__all__ = ["bench_tables", "key_values", "print_table"]

_COLUMNS = ("min", "mean", "median", "p90", "p95", "p99", "max")


def _console() -> Console:
    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        # A pipe has no width: cut nothing.
        console.width = 200
    return console


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[int] = ()
) -> None:
    """Print a table; `right` names the columns of figures."""
    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(printable, row))
    _console().print(table, markup=False)


def key_values(rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values in two columns."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(printable(name), printable(value))
    _console().print(table, markup=False)


def _latency_row(label: str, summary: dict[str, Any]) -> list[str]:
    return [label, *(milliseconds(summary[f"{column}_ms"]) for column in _COLUMNS)]


def bench_tables(report: dict[str, Any]) -> None:
    """A bench report as tables: latency as the host sees it, in the agent, memory, conditions."""
    conditions, end, inside = report["conditions"], report["end_to_end"], report["in_agent"]
    right = range(1, len(_COLUMNS) + 1)
    print_table(
        f"{report['model']} {report['precision']} on {report['device']}: end to end, as this host sees it"
        f" ({end['count']} requests in {end['seconds']:.1f} s, {rate(end['throughput_per_s'])})",
        ["", *_COLUMNS],
        [_latency_row("end to end", end["total"])]
        + [_latency_row(f"  {part}", end[part]) for part in ("transport", "queue", "input", "compute", "output")],
        right=right,
    )
    print_table(
        f"Inside the agent, no transport ({inside['count']} runs in {inside['seconds']:.1f} s,"
        f" {rate(inside['throughput_per_s'])})",
        ["", *_COLUMNS],
        [_latency_row("total", inside["total"])]
        + [_latency_row(f"  {part}", inside[part]) for part in ("queue", "input", "compute", "output")],
        right=right,
    )
    memory = report["memory"]
    load, now, agent = memory["load"], memory["now"], conditions["agent"]
    available = [byte_size(load[moment]["available_bytes"]) for moment in ("before", "after")]
    resident = [byte_size(now[key]) for key in ("rss_bytes", "pss_bytes", "peak_rss_bytes")]
    how = (
        f"closed loop, one request at a time, batch {conditions['batch']},"
        f" warm-up {conditions['warmup_ms']} ms ({end['warmup_runs']} + {inside['warmup_runs']} runs),"
        f" {agent['threads']} threads on {agent['cores']} cores,"
        f" {report['runtime']} {agent['runtimes'][report['runtime']]}"
    )
    key_values(
        [
            ("model on disk", byte_size(memory["model_bytes"])),
            ("agent RSS / PSS / peak", " / ".join(resident)),
            ("available memory before / after load", " / ".join(available)),
            ("load", milliseconds(load["load_ms"])),
            ("conditions", how),
        ]
    )

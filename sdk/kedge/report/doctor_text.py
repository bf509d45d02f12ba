"""What the doctor found, on the terminal: the first cause and its cure, then every check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .text import printable

__all__ = ["MARKS", "doctor_headline", "show_doctor"]

MARKS = {
    "ok": ("✓", "ok", "green"),
    "fault": ("✗", "fault", "bold red"),
    "warning": ("!", "warning", "yellow"),
    "unknown": ("–", "unknown", "bright_black"),
}
"""Of each result its sign, its word and its colour: never a colour alone."""

_WIDEST = 120
_MANY = 4
_CURE = "cure"


def doctor_headline(document: Mapping[str, Any]) -> str:
    """One sentence: what to mend first, or that nothing is at fault."""
    first, counts = document["first_cause"], _counts(document["findings"])
    device = document["device"]
    if first is not None:
        told = first["evidence"]
        return told if told.startswith(f"{device} ") else f"{device}: {told}"
    if document["problems"]:
        checks = _many(counts["unknown"], "check")
        return f"{device} has no fault in what is left of the file; of {checks} it is not known"
    if counts["warning"]:
        return f"{device} has no fault; {_many(counts['warning'], 'warning')}"
    rest = f"; of {counts['unknown']} it is not known" if counts["unknown"] else ""
    return f"{device} is well: nothing amiss in {_many(counts['ok'], 'check')}{rest}"


def show_doctor(document: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the document of `kedge doctor --json` for people."""
    out = console or Console(highlight=False)
    if console is None and not out.is_terminal:
        # A pipe has no width: cut nothing.
        out.width = 200
    findings = document["findings"]
    first = document["first_cause"]
    warned = _counts(findings)["warning"] or document["problems"]
    state = "fault" if first is not None else "warning" if warned else "ok"
    out.print()
    out.print(_marked(state, doctor_headline(document)), soft_wrap=False)
    if first is not None:
        _pairs(out, [("cause", first["cause"]), (_CURE, first["cure"])])
        if document["sentence"] and document["sentence"] != first["brief"]:
            _pairs(out, [("in all", document["sentence"])])
    out.print()
    out.print(_table(findings, out.width))
    amiss = [each for each in findings if each["result"] in ("fault", "warning") and each != first]
    out.print()
    for each in amiss:
        out.print(_marked(each["result"], each["title"], bold=True))
        _pairs(out, [("cause", each["cause"]), (_CURE, each["cure"])])
        out.print()
    out.print(Text(_summary(document), style="bright_black"))


def _table(findings: Sequence[Mapping[str, Any]], width: int) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, width=min(width, _WIDEST) if width < 200 else None)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for each in _together(findings):
        sign, word, style = MARKS[each["result"]]
        dim = "bright_black" if each["result"] == "unknown" else ""
        table.add_row(
            Text(f"{sign} {word}", style=style),
            Text(printable(each["title"]), style=dim),
            Text(printable(each["evidence"]), style=dim),
        )
    return table


def _together(findings: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Checks that could not be made for one and the same reason are one line, where they are many."""
    reasons = Counter(each["evidence"] for each in findings if each["result"] == "unknown")
    out: list[Mapping[str, Any]] = []
    for each in findings:
        many = reasons[each["evidence"]] if each["result"] == "unknown" else 0
        if many < _MANY:
            out.append(each)
        elif not any(each["evidence"] == other["evidence"] for other in out):
            out.append({**each, "title": f"{many} checks"})
    return out


def _pairs(out: Console, pairs: Sequence[tuple[str, str]]) -> None:
    for name, value in pairs:
        if name == _CURE and value:
            # To be pasted: the terminal may fold it, and nothing breaks it.
            out.print(Text.assemble((f"  {name:<7}", "bright_black"), (printable(value), "bold")), soft_wrap=True)
        elif value:
            table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
            table.add_column(style="bright_black", no_wrap=True, min_width=8)
            table.add_column(overflow="fold")
            table.add_row(f"  {name}", Text(printable(value)))
            out.print(table)


def _marked(result: str, text: str, *, bold: bool = False) -> Text:
    sign, word, style = MARKS[result]
    return Text.assemble((f"{sign} {word}: ", style), (printable(text), "bold" if bold else ""))


def _summary(document: Mapping[str, Any]) -> str:
    counts = _counts(document["findings"])
    parts = [f"{counts['ok']} ok", _many(counts["warning"], "warning"), _many(counts["fault"], "fault")]
    took = document["facts_seconds"]
    seconds = "" if took is None else f"; the device took {took:.1f} s"
    return f"{', '.join(parts)}, {counts['unknown']} unknown{seconds}"


def _counts(findings: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {result: sum(each["result"] == result for each in findings) for result in MARKS}


def _many(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"

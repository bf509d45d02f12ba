"""What a device did, on the terminal: a line for each deploy or rollback, and drawings of its recording."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from .history_events import Event, duration, events_of, marks_of, models_of, moment, notes_of
from .history_panels import Panel, device_panels, model_panels
from .tables import print_table
from .text import printable

__all__ = ["DEPLOY_COLUMNS", "deploys_of", "history_rows", "outcome_words", "show_history"]

DEPLOY_COLUMNS = ("device's clock (UTC)", "model", "version", "release", "outcome")

# The table says already which release, and what became of it.
_REPEATED = re.compile(r"^release [0-9a-f]{12} was (refused|taken back): ")
_MOST_MODELS = 3
# In less nothing that is drawn can be seen.
_LEAST_COLUMNS = 40
_REPLACED = "replaced"
_SWITCHED = ("switched", "committed", "reverted", "rolled-back")
_ENDS = {"committed": "live", "refused": "refused", "reverted": "taken back", "rolled-back": "rolled back"}
_UNDER_WAY = {
    "begun": "being staged",
    "gated": "being switched to",
    "switching": "being switched to",
    "switched": "on probation",
    "reverting": "being taken back",
}


def outcome_words(step: Any, reason: Any = None) -> str:
    """How a deploy ended, or where it is, from its last step in the journal."""
    known = {**_ENDS, **_UNDER_WAY, _REPLACED: "replaced before its probation had ended"}
    words = known.get(str(step), str(step))
    return f"{words}: {_REPEATED.sub('', reason)}" if isinstance(reason, str) and reason else words


def deploys_of(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The journal's entries, one a deploy or rollback: its first time, what is known of it, and its last step.

    Of a deploy whose first records the journal has dropped, the first that is left begins it.
    """
    out: list[dict[str, Any]] = []
    running: dict[tuple[Any, Any], dict[str, Any]] = {}
    for entry in entries:
        key, step = (entry.get("model"), entry.get("release")), entry.get("step")
        known = running.get(key)
        if known is None or step == "begun":
            known = running[key] = {"model": key[0], "release": key[1], "at_s": entry.get("at_s")}
            out.append(known)
        known |= {name: entry[name] for name in ("version", "reason", "to") if name in entry}
        known["step"] = step
        if step in _ENDS:
            running.pop(key)
    for index, each in enumerate(out):
        later = [other for other in out[index + 1 :] if other["model"] == each["model"]]
        if each["step"] in _UNDER_WAY and any(other["step"] in _SWITCHED for other in later):
            each["step"] = _REPLACED
    return out


def show_history(document: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the document of `kedge history --json` for people: drawings on a terminal, tables in a pipe."""
    out = console or Console(highlight=False)
    if console is None and not out.is_terminal:
        # A pipe has no width: cut nothing.
        out.width = 200
    rows = history_rows(document["entries"])
    if rows:
        print_table("", DEPLOY_COLUMNS, rows)
    else:
        why = document["entries_why"]
        _say(out, f"no deploy of {document['model'] or 'anything'} is known{f': {why}' if why else ''}")
    recording = document["recording"]
    if recording is None:
        _say(out, f"nothing to draw: {document['recording_why']}")
        return
    span = recording["to_s"] - recording["from_s"]
    out.print()
    out.print(
        Text.assemble(
            (printable(f"{document['device']}: {duration(span)} until {moment(recording['to_s'])} UTC"), "bold"),
            f", by the device's clock; a point is {duration(recording['step_s'])}",
        )
    )
    out.print()
    events = events_of(document)
    names = models_of(recording)
    panels = [panel for name in names[:_MOST_MODELS] for panel in model_panels(recording, name)]
    panels += [panel for panel in device_panels(recording) if not panel.minor]
    if out.is_terminal and out.width >= _LEAST_COLUMNS:
        _draw(out, recording, panels, events)
    else:
        for panel in panels:
            title = printable(f"{panel.title} ({panel.unit})")
            print_table(title, *_table(panel, recording), right=range(1, len(panel.lines) + 1))
    for event in events:
        style = "bold" if event.fault else ""
        out.print(Text.assemble((f"{moment(event.at_s)}  ", "bright_black"), (printable(event.text), style)))
    if events:
        out.print()
    for note in notes_of(recording):
        _say(out, note)
    if len(names) > _MOST_MODELS:
        more = ", ".join(names[_MOST_MODELS:])
        _say(out, f"not drawn: {more}; see: kedge history MODEL --on {document['device']}")


def _say(out: Console, line: str) -> None:
    out.print(Text(printable(line)))


def _draw(out: Console, recording: Mapping[str, Any], panels: Sequence[Panel], events: Sequence[Event]) -> None:
    from .history_charts import chart

    times = [step["at_s"] for step in recording["steps"]]
    span = (recording["from_s"], recording["to_s"])
    for panel in panels:
        marks = [event.at_s for event, _ in marks_of(panel, events)]
        out.print(chart(panel, times, span, recording["step_s"], marks, columns=out.width))
        out.print()


def _table(panel: Panel, recording: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: one a step, and one where there is a gap."""
    rows = []
    last = None
    for index, step in enumerate(recording["steps"]):
        begin = step["at_s"] - recording["step_s"]
        if last is not None and begin - last > 0.6 * recording["step_s"]:
            rows.append([moment(begin), *["not recorded"] * len(panel.lines)])
        last = step["at_s"]
        values = (line.values[index] for line in panel.lines)
        rows.append([moment(last), *("–" if value is None else f"{value:.4g}" for value in values)])
    return ["until (UTC)", *(printable(line.name) for line in panel.lines)], rows


def history_rows(entries: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Rows of the table: when, model, version, release, how it ended."""
    return [
        [
            moment(each["at_s"]),
            str(each["model"]),
            str(each.get("version", "–")),
            str(each["release"])[:12],
            outcome_words(each["step"], each.get("reason")) + _target(each.get("to")),
        ]
        for each in deploys_of(entries)
    ]


def _target(release: Any) -> str:
    return f" to {release[:12]}" if isinstance(release, str) else ""

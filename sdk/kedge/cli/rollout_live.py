"""The live display of a rollout: its waves, a bar by state, who is busy with what, and who failed and why.

It fits the terminal whether it shows 16 devices or 1,000: what does not is told as a count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from ..report.rollout_words import FAILED, STATES, count_words, counts_of, gate_marks, in_order, plural
from ..report.text import one_line, printable

if TYPE_CHECKING:
    from ..fleet.rollout.machine import Rollout

__all__ = ["RolloutView", "rollout_display"]

_A_SECOND = 4
_BAR = 60
# Of the terminal's lines that devices may take, those that failed have at least this share.
_FAILED_SHARE = 0.5
_HEAD_LINES = 4
_AT_WORK = ("building", "rolling_back", "running", "waits_for_engine")
_WAVES = {"passed": "green", "failed": "bold red", "aborted": "yellow", "waiting": "bright_black"}


@contextmanager
def rollout_display(view: RolloutView) -> Iterator[None]:
    """Show it on a terminal's standard error until the context ends; then it vanishes."""
    with Live(view, console=Console(stderr=True), refresh_per_second=_A_SECOND, transient=True):
        yield


class RolloutView:
    """What to draw: it asks for the rollout each time it is drawn.

    Args:
        rollout: as it is now; None: nothing is known yet.
        driven: somebody drives it.
    """

    def __init__(self, rollout: Callable[[], Rollout | None], *, driven: Callable[[], bool] = lambda: True) -> None:
        self._rollout = rollout
        self._driven = driven

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from ..fleet.rollout.decide import pause_left_s

        rollout = self._rollout()
        if rollout is None:
            yield Text("beginning")
            return
        now_s = time.time()
        lines = frame(
            rollout.to_json(driven=self._driven()),
            now_s,
            pause_left_s(rollout, now_s, 0.0),
            height=options.height or console.height,
        )
        for line in lines:
            line.truncate(options.max_width, overflow="ellipsis")
            yield line


def frame(document: Mapping[str, Any], now_s: float, pause_left_s: float | None, *, height: int) -> list[Text]:
    """The lines of one picture, `height` at most.

    Args:
        now_s: wall clock. pause_left_s: of the wave that is in its pause; None: none is.
    """
    devices = document["devices"]
    head = Text.assemble(
        (f"{document['model']} version {document['version']}", "bold"),
        f" to {plural(len(devices), 'device')}, rollout {document['id']}, {_clock(now_s - document['created_s'])}",
    )
    lines = [head, *_waves(document, pause_left_s, most=max(3, height // 4)), *_bar(document["counts"], len(devices))]
    busy = [each for each in devices if each["state"] in _AT_WORK]
    failed = [each for each in in_order(devices) if each["state"] in FAILED or each["state"] == "rollback_failed"]
    # A line each for what is left out, and one that the terminal keeps for its cursor.
    room = max(height - len(lines) - _HEAD_LINES, 2)
    for_failed = min(len(failed), max(int(room * _FAILED_SHARE), room - len(busy)))
    for_busy = min(len(busy), room - for_failed)
    oldest = sorted(busy, key=lambda each: (each["begun_s"] is None, each["begun_s"]))
    lines += [_busy(each, now_s) for each in oldest[:for_busy]]
    lines += _more(len(busy) - for_busy, "busy")
    lines += [_failed(each) for each in failed[:for_failed]]
    return lines + _more(len(failed) - for_failed, "failed")


def _waves(document: Mapping[str, Any], pause_left_s: float | None, *, most: int) -> list[Text]:
    waves = document["waves"]
    current = next((place for place, each in enumerate(waves) if each["state"] != "passed"), len(waves) - 1)
    first = max(0, min(current - 1, len(waves) - most))
    shown = waves[first : first + most]
    lines = []
    for wave in shown:
        own = [each for each in document["devices"] if each["wave"] == wave["wave"]]
        state = wave["state"]
        if state == "watching" and pause_left_s is not None:
            state = f"paused, {_clock(pause_left_s)} left"
        detail = plural(len(own), "device") if wave["state"] == "waiting" else count_words(counts_of(own))
        lines.append(
            Text.assemble(
                f"  wave {wave['wave']} of {len(waves)}  ",
                (f"{state:<20}", _WAVES.get(wave["state"], "cyan")),
                f" {detail}",
                (f"  {gate_marks(wave)}" if wave["gates"] else "", "dim"),
            )
        )
    return lines


def _bar(counts: Mapping[str, int], total: int) -> list[Text]:
    """A bar in which every state that there is has a part, and what its parts mean."""
    order = [state for state in list(STATES)[::-1] if counts.get(state)]
    order.sort(key=lambda state: (state in ("waiting", "not_begun"), state in _AT_WORK, state in FAILED))
    bar, words = Text("  "), Text("  ")
    widths = {state: max(1, round(counts[state] / total * _BAR)) for state in order}
    widest = max(order, key=lambda state: widths[state])
    widths[widest] += _BAR - sum(widths.values())
    for state in order:
        shown = STATES[state]
        bar.append(("░" if state in ("waiting", "not_begun") else "█") * max(widths[state], 1), style=shown.style)
        words.append(f"{shown.sign} {counts[state]:,} {shown.word}   ", style=shown.style)
    return [bar, words]


def _busy(device: Mapping[str, Any], now_s: float) -> Text:
    state = STATES[device["state"]]
    since = "" if device["begun_s"] is None else _clock(now_s - device["begun_s"])
    step = device["step"] or state.word
    return Text.assemble(
        ("  ● ", state.style), f"{printable(device['device']):<20} {printable(step):<18} ", (since, "dim")
    )


def _failed(device: Mapping[str, Any]) -> Text:
    state = STATES[device["state"]]
    reason = one_line(device["reason"] or "").removeprefix(f"{device['device']}: ")
    return Text.assemble(
        (f"  {state.sign} ", state.style),
        f"{printable(device['device']):<20} ",
        (f"{state.word:<18} ", state.style),
        reason,
    )


def _more(count: int, what: str) -> list[Text]:
    return [Text(f"    and {count:,} more {what}", style="dim")] if count > 0 else []


def _clock(seconds: float) -> str:
    """`0:42`, `12:05`, `1:02:03`."""
    whole = max(int(seconds), 0)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"

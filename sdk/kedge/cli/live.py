"""The live display on a terminal: the current step, its bar, the time that is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

from ..report.deploy_text import event_words
from ..report.text import byte_size, printable

__all__ = ["live_display"]

_SHOWN_S = 0.05
# On a slow link an acknowledged frame of 8 MiB is minutes after the one before it; rich forgets after 30 s.
_SPEED_WINDOW_S = 600.0


@contextmanager
def live_display(*, keep: bool = False) -> Iterator[Live]:
    """A display on standard error that vanishes when it ends.

    Args:
        keep: steps that have ended stay in sight until then, each with the time it took.
    """
    # What a step is called may come from a device: it is text, and no markup. `Live` sees that it steers nothing.
    name, note = (TextColumn(form, markup=False) for form in ("{task.description}", "{task.fields[note]}"))
    with Progress(
        SpinnerColumn(finished_text="✓"),
        name,
        _Bar(),
        note,
        _Left(),
        console=Console(stderr=True),
        transient=True,
        speed_estimate_period=_SPEED_WINDOW_S,
    ) as bars:
        yield Live(bars, keep=keep)


class _Bar(BarColumn):
    """Of what is not at its end yet."""

    def render(self, task: Task) -> Any:
        return Text("") if task.finished else super().render(task)


class _Left(ProgressColumn):
    """The time that is left of a step that does not count it itself, or that one took which has ended."""

    def render(self, task: Task) -> Text:
        if task.finished:
            took = task.finished_time or 0
            return Text(f"{took:.1f} s" if took >= _SHOWN_S else "")
        left = task.time_remaining if task.total and not task.fields["counted"] else None
        return Text("" if left is None else f"{int(left) // 60}:{int(left) % 60:02} left")


class Live:
    """A bar of the current step."""

    def __init__(self, bars: Progress, *, keep: bool = False) -> None:
        self._bars = bars
        self._keep = keep
        self._name = ""
        self._task: TaskID | None = None

    def step(self, name: str) -> None:
        """Begin a step of unknown length."""
        if self._task is not None and self._keep:
            self._bars.update(self._task, completed=1, total=1)
        elif self._task is not None:
            self._bars.remove_task(self._task)
        self._name = name
        self._task = self._bars.add_task(printable(name), total=None, note="", counted=False)

    def bytes(self, done: int, total: int) -> None:
        """Bytes of the current step."""
        if self._task is not None:
            self._bars.update(self._task, completed=done, total=total)
            speed = next((task.speed for task in self._bars.tasks if task.id == self._task), None)
            note = f"{byte_size(done)} of {byte_size(total)}" + (f", {byte_size(int(speed))}/s" if speed else "")
            self._bars.update(self._task, note=note if total else "nothing to send")

    def share(self, name: str, share: float) -> None:
        """A named step, and the part of it that is done, from 0 to 1."""
        if self._task is None or self._name != name:
            self.step(name)
        if self._task is not None:
            self._bars.update(self._task, completed=share, total=1.0)

    def event(self, event: Mapping[str, Any]) -> None:
        """What a device tells of its gates and of the probation: beside the current step, and a gate's below it."""
        words = event_words(event)
        if self._task is None or not words:
            return
        if event.get("event") == "gate":
            below = self._bars.add_task("", total=1, note=printable(words), counted=True)
            self._bars.update(below, completed=1)
            return
        elapsed, seconds = event.get("elapsed_s"), event.get("seconds")
        if isinstance(elapsed, (int, float)) and isinstance(seconds, (int, float)) and seconds > 0:
            left = max(seconds - elapsed, 0)
            self._bars.update(self._task, completed=min(elapsed, seconds), total=seconds, counted=True)
            words = f"{left:.0f} s left{', ' if words else ''}{words}"
        self._bars.update(self._task, note=printable(words))

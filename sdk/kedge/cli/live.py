"""The live display on a terminal: the current step, its bar, the time that is left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from ..report.text import byte_size

__all__ = ["live_display"]


@contextmanager
def live_display() -> Iterator[Live]:
    """A display on standard error that vanishes when it ends."""
    # What a step is called may come from a device: it is text, and no markup.
    name, note = (TextColumn(form, markup=False) for form in ("{task.description}", "{task.fields[note]}"))
    with Progress(
        SpinnerColumn(), name, BarColumn(), note, TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as bars:
        yield Live(bars)


class Live:
    """One bar, of the current step."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task: Any = None

    def step(self, name: str) -> None:
        """Begin a step of unknown length."""
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(name, total=None, note="")

    def bytes(self, done: int, total: int) -> None:
        """Bytes of the current step."""
        if self._task is not None:
            speed = self._bars.tasks[-1].speed
            note = f"{byte_size(done)} of {byte_size(total)}" + (f", {byte_size(int(speed))}/s" if speed else "")
            self._bars.update(self._task, completed=done, total=total, note=note)

    def share(self, name: str, share: float) -> None:
        """A named step, and the part of it that is done, from 0 to 1."""
        if self._task is None or self._bars.tasks[-1].description != name:
            self.step(name)
        self._bars.update(self._task, completed=share, total=1.0)

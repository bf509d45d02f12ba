"""What every command shares: --json, --quiet, progress on a terminal and none in a pipe."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from ..errors import BadInputError

__all__ = ["Output", "inventory_option", "on_option", "output_options", "path_type", "read_inventory"]

F = TypeVar("F", bound=Callable[..., Any])

path_type = click.Path(path_type=Path)


@dataclass(frozen=True)
class Output:
    """Where a command's result goes: one JSON document on standard output, or text for people."""

    as_json: bool
    quiet: bool

    def result(self, document: Any, render: Callable[[], None]) -> None:
        """Emit the result once: as JSON when asked for, else through `render`."""
        if self.as_json:
            click.echo(json.dumps(document, indent=2, allow_nan=False))
        elif not self.quiet:
            render()

    def say(self, line: str) -> None:
        """A line of news for people, on standard error."""
        if not self.quiet:
            click.echo(line, err=True)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A live display of steps and bars on a terminal's standard error; silent elsewhere."""
        if self.quiet or not sys.stderr.isatty():
            yield Progress(None)
            return
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
        with RichProgress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as live:
            yield Progress(live)


class Progress:
    """The current step and how far it is."""

    def __init__(self, live: Any) -> None:
        self._live = live
        self._task: Any = None

    def step(self, name: str) -> None:
        """Begin a step of unknown length."""
        if self._live is not None:
            if self._task is not None:
                self._live.remove_task(self._task)
            self._task = self._live.add_task(name, total=None, note="")

    def bytes(self, done: int, total: int) -> None:
        """Bytes of the current step."""
        if self._live is not None and self._task is not None:
            from ..report.text import byte_size

            speed = self._live.tasks[-1].speed
            note = f"{byte_size(done)} of {byte_size(total)}" + (f", {byte_size(int(speed))}/s" if speed else "")
            self._live.update(self._task, completed=done, total=total, note=note)

    def share(self, name: str, share: float) -> None:
        """A named step, and the part of it that is done, from 0 to 1."""
        if self._live is not None:
            if self._task is None or self._live.tasks[-1].description != name:
                self.step(name)
            self._live.update(self._task, completed=share, total=1.0)


def output_options(function: F) -> F:
    """Add --json and --quiet; the command gets them as `out`."""

    @click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
    @click.option("-q", "--quiet", is_flag=True, help="No text for people.")
    @functools.wraps(function)
    def wrapped(*args: Any, as_json: bool, quiet: bool, **kwargs: Any) -> Any:
        return function(*args, out=Output(as_json, quiet), **kwargs)

    return wrapped  # type: ignore[return-value]


def inventory_option(function: F) -> F:
    """Add --inventory FILE."""
    return click.option(
        "--inventory",
        "inventory_path",
        type=path_type,
        help="Inventory to use instead of ~/.config/kedge/devices.toml.",
    )(function)


def on_option(function: F) -> F:
    """Add --on DEVICE."""
    return click.option("--on", "device", required=True, metavar="DEVICE", help="A device of the inventory, or local.")(
        function
    )


def read_inventory(path: Path | None) -> Any:
    """The inventory at a path the user named, or the usual one.

    Raises:
        BadInputError: a named file does not exist, or is no inventory.
    """
    from ..fleet.inventory import Inventory

    if path is not None and not path.parent.is_dir():
        raise BadInputError(f"{path.parent} does not exist")
    return Inventory(path)

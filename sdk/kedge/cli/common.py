"""What every command shares: --json, --quiet, --events, progress on a terminal and none in a pipe."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click

from ..errors import BadInputError
from ..report.text import printable

__all__ = [
    "Output",
    "inventory_option",
    "long_output_options",
    "on_option",
    "output_options",
    "path_type",
    "read_inventory",
    "shapes_option",
]

_OURS = ("step", "progress", "result", "error")

F = TypeVar("F", bound=Callable[..., Any])

path_type = click.Path(path_type=Path)


@dataclass(frozen=True)
class Output:
    """Where a command's result goes: one JSON document on standard output, or text for people.

    events: what happens, as it happens, in lines of JSON on standard output; the result, or the error, is the last.
    """

    as_json: bool
    quiet: bool
    events: bool = False

    def result(self, document: Any, render: Callable[[], None]) -> None:
        """Emit the result once: as JSON when asked for, else through `render`."""
        if self.events:
            emit({"event": "result", "result": document})
        elif self.as_json:
            click.echo(json.dumps(document, indent=2, allow_nan=False))
        elif not self.quiet:
            render()

    def say(self, line: str) -> None:
        """A line of news for people, on standard error."""
        if not self.quiet:
            click.echo(line, err=True)

    def not_whole(self, problems: Iterable[str]) -> None:
        """What is wrong with a file that was read as far as it goes, on standard error."""
        for problem in problems:
            self.say(f"not whole: {printable(problem)}")

    @contextmanager
    def progress(self, *, keep: bool = False) -> Iterator[Progress]:
        """A live display of steps and bars on a terminal's standard error; events where asked for; else nothing.

        Args:
            keep: steps that have ended stay in sight while the others run.
        """
        if self.events:
            yield Progress(_Events())
            return
        if self.quiet or not sys.stderr.isatty():
            yield Progress(None)
            return
        from .live import live_display

        with live_display(keep=keep) as live:
            yield Progress(live)


def emit(event: dict[str, Any]) -> None:
    """One event: a line of JSON on standard output, seen at once also in a pipe."""
    click.echo(json.dumps(event, allow_nan=False))
    sys.stdout.flush()


class Display(Protocol):
    """Who is told of progress."""

    def step(self, name: str) -> None:
        """A step begins."""
        ...

    def bytes(self, done: int, total: int) -> None:
        """Bytes of the current step."""
        ...

    def share(self, name: str, share: float) -> None:
        """A named step, and the part of it that is done, from 0 to 1."""
        ...

    def event(self, event: Mapping[str, Any]) -> None:
        """What a device tells of its own work."""
        ...


class Progress:
    """The current step and how far it is."""

    def __init__(self, display: Display | None) -> None:
        self._display = display

    def step(self, name: str) -> None:
        """Begin a step of unknown length."""
        if self._display is not None:
            self._display.step(name)

    def bytes(self, done: int, total: int) -> None:
        """Bytes of the current step."""
        if self._display is not None:
            self._display.bytes(done, total)

    def share(self, name: str, share: float) -> None:
        """A named step, and the part of it that is done, from 0 to 1."""
        if self._display is not None:
            self._display.share(name, share)

    def event(self, event: Mapping[str, Any]) -> None:
        """What a device tells of its own work."""
        if self._display is not None:
            self._display.event(event)


class _Events:
    """Lines of JSON; of a step's many small advances one for each hundredth."""

    def __init__(self) -> None:
        self._step = ""
        self._told = -1.0

    def step(self, name: str) -> None:
        self._step, self._told = name, -1.0
        emit({"event": "step", "step": name})

    def bytes(self, done: int, total: int) -> None:
        if self._worth(done / total if total else 1.0):
            emit({"event": "progress", "step": self._step, "bytes": done, "total_bytes": total})

    def share(self, name: str, share: float) -> None:
        if name != self._step:
            self.step(name)
        if self._worth(share):
            emit({"event": "progress", "step": name, "share": round(share, 4)})

    def event(self, event: Mapping[str, Any]) -> None:
        # Its word for what happened may not be taken for one of ours.
        if event.get("event") not in (*_OURS, None):
            emit(dict(event))

    def _worth(self, share: float) -> bool:
        if self._told <= share < min(self._told + 0.01, 1.0) or share == self._told:
            return False
        self._told = share
        return True


def output_options(function: F) -> F:
    """Add --json and --quiet; the command gets them as `out`."""

    @click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
    @click.option("-q", "--quiet", is_flag=True, help="No text for people.")
    @functools.wraps(function)
    def wrapped(*args: Any, as_json: bool, quiet: bool, events: bool = False, **kwargs: Any) -> Any:
        if events and as_json:
            raise click.UsageError("--json and --events both want standard output")
        return function(*args, out=Output(as_json, quiet, events), **kwargs)

    return wrapped  # type: ignore[return-value]


def long_output_options(function: F) -> F:
    """Add --json, --quiet and --events, for commands that take their time."""
    events = click.option(
        "--events", is_flag=True, help="Lines of JSON as things happen; the last is the result or the error."
    )
    return events(output_options(function))


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


def shapes_option(function: F) -> F:
    """Add --shapes, which may be repeated; `build.shapes.parse_shapes` reads it."""
    return click.option(
        "--shapes",
        multiple=True,
        metavar="INPUT=MIN:OPT:MAX",
        help="Bounds of an input's free dimensions, each as 1x3x224x224; may be repeated.  [default: batch 1]",
    )(function)


def read_inventory(path: Path | None, *, new: bool = False) -> Any:
    """The inventory at a path the user named, or the usual one.

    Args:
        new: a named file need not exist yet.

    Raises:
        BadInputError: a named file does not exist, or is no inventory.
    """
    from ..fleet.inventory import Inventory

    if path is not None and not (path.parent.is_dir() if new else path.exists()):
        raise BadInputError(
            f"{path.parent if new else path} does not exist",
            hint="give the path of an inventory; kedge device add begins one, in a folder that exists",
        )
    return Inventory(path)

"""Which release each model serves. `state.json`, replaced by one rename, is the truth.

The link `current` beside it is derived, for people; `recovery` alone reads it, where state.json is lost.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import AgentError
from ..failpoints import reached
from ..formats.manifest import is_digest, is_model_name
from ..wire import WireError, parse_json
from .files import fsync_directory, make_directory, move_aside, read_bounded, write_atomic
from .layout import Layout

__all__ = [
    "ModelState",
    "go_back",
    "list_models",
    "named_releases",
    "prepare_back",
    "prepare_switch",
    "read_state",
    "state_to_come",
    "switch",
    "way_back",
    "write_state",
]

_MAX_STATE_BYTES = 64 * 1024
_MAX_NUMBER = 1 << 53


@dataclass(frozen=True)
class ModelState:
    """The release a model serves, and the one it served before (what a rollback returns to).

    floor: the least `manifest.version` that may go live, but for `previous`. downgrade: the serial number of the last
    downgrade that lowered it; an older one counts no more.
    """

    current: str
    previous: str | None
    floor: int = 0
    downgrade: int = 0


def read_state(layout: Layout, model: str) -> ModelState | None:
    """The recorded state of a model, or None when it never had one.

    Raises:
        AgentError: state.json is not readable as what we wrote (kind integrity).
    """
    return _read(layout.model(model) / "state.json", model)


def way_back(layout: Layout, model: str) -> ModelState | None:
    """The state that `go_back` would put in force, or None where none was prepared.

    Raises:
        AgentError: it is damaged (integrity).
    """
    return _read(layout.model(model) / "state.back", model)


def state_to_come(layout: Layout, model: str) -> ModelState | None:
    """The state that `switch` would put in force, or None where none is prepared. Raises as `way_back`."""
    return _read(layout.model(model) / "state.next", model)


def named_releases(layout: Layout, model: str) -> set[str]:
    """Releases that a model serves, may go back to, or is about to serve: by all that is written about it.

    Raises:
        AgentError: a part of it is damaged (integrity); nobody can then tell.
    """
    folder = layout.model(model)
    states = [_read(folder / name, model) for name in ("state.json", "state.back", "state.next", "state.undo")]
    named = {digest for state in states if state is not None for digest in (state.current, state.previous)}
    return {digest for digest in named if digest is not None}


def _read(path: Path, model: str) -> ModelState | None:
    try:
        body = parse_json(read_bounded(path, _MAX_STATE_BYTES))
        current, previous = body["current"], body["previous"]
        # Written before there was a floor: every version may go live.
        floor, downgrade = body.get("floor", 0), body.get("downgrade", 0)
        if not is_digest(current) or not (previous is None or is_digest(previous)):
            raise WireError("not a release digest")
        if not all(type(number) is int and 0 <= number <= _MAX_NUMBER for number in (floor, downgrade)):
            raise WireError("not a version")
    except FileNotFoundError:
        return None
    except (OSError, WireError, KeyError, TypeError, AttributeError) as error:
        raise AgentError(
            f"{path} is damaged: {error}", kind="integrity", hint=f"deploy a release of {model} again"
        ) from error
    return ModelState(current, previous, floor, downgrade)


def _bytes(state: ModelState) -> bytes:
    return json.dumps({"schema": 2, **asdict(state)}).encode()


def prepare_switch(layout: Layout, model: str, state: ModelState, back: ModelState | None) -> None:
    """Write the state that is to come, and the one to return to if it does not work out; nothing is switched.

    From then on both ways are a rename, which needs no room on the disk. So is what `way_back` tells until the switch.

    Raises:
        OSError: as the file system says.
    """
    folder = layout.model(model)
    make_directory(folder)
    # One that nobody put in force is not to stand beside another way back.
    for name in ("state.next", "state.undo"):
        move_aside(folder / name)
        (folder / name).unlink(missing_ok=True)
    if back is not None:
        write_atomic(folder / "state.undo", _bytes(back))
    write_atomic(folder / "state.next", _bytes(state))


def prepare_back(layout: Layout, model: str, back: ModelState | None) -> None:
    """Write the state to return to, of the one that is in force; None: there is none.

    Raises:
        OSError: as the file system says.
    """
    path = layout.model(model) / "state.back"
    if back is not None:
        write_atomic(path, _bytes(back))
    else:
        move_aside(path)
        path.unlink(missing_ok=True)


def switch(layout: Layout, model: str) -> None:
    """Put the prepared state in force, durably, by one rename; just before, its way back takes the last one's place.

    Raises:
        OSError: as the file system says. Which state then stands, `read_state` tells: the new one where only the fsync
            of the folder failed, and a power cut may bring the old one back. `go_back` is right either way.
    """
    folder = layout.model(model)
    (folder / "state.next").lstat()
    move_aside(folder / "state.back")
    try:
        os.replace(folder / "state.undo", folder / "state.back")
    except FileNotFoundError:
        (folder / "state.back").unlink(missing_ok=True)
    _rename(layout, model, "state.next", "deploy.renamed")


def go_back(layout: Layout, model: str) -> None:
    """Put the state that was prepared for this in force, durably, by one rename.

    Raises:
        OSError: as `switch`, or none was prepared (FileNotFoundError), and the state stands.
    """
    _rename(layout, model, "state.back", "revert.renamed")


def write_state(layout: Layout, model: str, state: ModelState, back: ModelState | None = None) -> None:
    """Prepare and switch in one step. Raises as both."""
    prepare_switch(layout, model, state, back)
    switch(layout, model)


def _rename(layout: Layout, model: str, name: str, place: str) -> None:
    folder = layout.model(model)
    target = folder / "state.json"
    move_aside(target)
    os.replace(folder / name, target)
    reached(place)
    fsync_directory(folder)
    # It is for people alone: nothing about it may undo a switch that has happened.
    with contextlib.suppress(AgentError):
        state = _read(target, model)
        assert state is not None
        _point_current(folder, Path("../../releases") / state.current)


def _point_current(folder: Path, destination: Path) -> None:
    link = folder / f".current.{os.getpid()}"
    with contextlib.suppress(OSError):
        move_aside(folder / "current")
        link.unlink(missing_ok=True)
        link.symlink_to(destination)
        link.replace(folder / "current")
        fsync_directory(folder)


def list_models(layout: Layout) -> list[str]:
    """Names of the models that have a folder, sorted."""
    try:
        names = os.listdir(layout.root / "models")
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name for name in names if is_model_name(name))

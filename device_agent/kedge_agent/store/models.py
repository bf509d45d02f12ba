"""Which release each model serves. `state.json`, replaced by one rename, is the truth.

The link `current` beside it is derived, for people; nothing reads it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import AgentError
from ..formats.manifest import is_digest, is_model_name
from ..wire import WireError, parse_json
from .files import fsync_directory, make_directory, read_bounded, write_atomic
from .layout import Layout

__all__ = ["ModelState", "interrupted_load", "list_models", "loading", "read_state", "write_state"]

_MAX_STATE_BYTES = 64 * 1024


@dataclass(frozen=True)
class ModelState:
    """The release a model serves, and the one it served before (what a rollback returns to)."""

    current: str
    previous: str | None


def read_state(layout: Layout, model: str) -> ModelState | None:
    """The recorded state of a model, or None when it never had one.

    Raises:
        AgentError: state.json is not readable as what we wrote (kind integrity).
    """
    path = layout.model(model) / "state.json"
    try:
        body = parse_json(read_bounded(path, _MAX_STATE_BYTES))
        current, previous = body["current"], body["previous"]
        if not is_digest(current) or not (previous is None or is_digest(previous)):
            raise WireError("not a release digest")
    except FileNotFoundError:
        return None
    except (OSError, WireError, KeyError, TypeError) as error:
        raise AgentError(
            f"{path} is damaged: {error}", kind="integrity", hint=f"deploy a release of {model} again"
        ) from error
    return ModelState(current, previous)


def write_state(layout: Layout, model: str, state: ModelState) -> None:
    """Switch a model to a state, durably, by one rename.

    Raises:
        OSError: as the file system says; the old state then stands.
    """
    folder = layout.model(model)
    make_directory(folder)
    body = {"schema": 1, "current": state.current, "previous": state.previous}
    write_atomic(folder / "state.json", json.dumps(body).encode())
    _point_current(folder, Path("../../releases") / state.current)


def _point_current(folder: Path, destination: Path) -> None:
    # For people only: a failure here must not undo a switch that has happened.
    link = folder / f".current.{os.getpid()}"
    with contextlib.suppress(OSError):
        link.unlink(missing_ok=True)
        link.symlink_to(destination)
        link.replace(folder / "current")
        fsync_directory(folder)


def interrupted_load(layout: Layout, model: str) -> bool:
    """Whether the agent ended while it loaded this model at its last start: by the model's doing, or by any other."""
    return (layout.model(model) / "loading").exists()


@contextlib.contextmanager
def loading(layout: Layout, model: str) -> Iterator[None]:
    """While the context is open, a mark lies beside the model's state that `interrupted_load` finds after a crash.

    Where it cannot be written, on a full disk say, there is none: a model must not fail to load for want of it.
    """
    mark = layout.model(model) / "loading"
    with contextlib.suppress(OSError):
        write_atomic(mark, b"")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            mark.unlink(missing_ok=True)
            fsync_directory(mark.parent)


def list_models(layout: Layout) -> list[str]:
    """Names of the models that have a folder, sorted."""
    try:
        names = os.listdir(layout.root / "models")
    except FileNotFoundError:
        return []
    return sorted(name for name in names if is_model_name(name))

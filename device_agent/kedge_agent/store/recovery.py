"""What a model served, where the record of it is gone: by the journal, the way back, and the link for people."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..errors import AgentError
from .journal import Entry, Journal
from .layout import Layout
from .models import ModelState, state_to_come, way_back
from .releases import has_release, read_acceptance, read_release

__all__ = ["recover_state"]


@dataclass(frozen=True)
class _Told:
    """What the journal tells: which release was live, which before it, and the floor that commits have set."""

    current: str | None = None
    previous: str | None = None
    floor: int = 0
    downgrade: int = 0


def recover_state(layout: Layout, model: str, journal: Journal) -> ModelState | None:
    """The last state of a model that can still be told when its state.json cannot be read, or is not there.

    The journal counts first, then the link `current`, then `state.back`. A release that is not in the store does not
    count; whether its files are whole, its loading finds. The floor never gets lower by it than what is told of it.
    Nothing is written.

    Returns:
        None: nothing tells of a release that is here.
    """
    back, coming = _readable(way_back, layout, model), _readable(state_to_come, layout, model)
    told = _replay(layout, journal.history(model), coming)
    beside = back or coming or ModelState("", None)
    floor, downgrade = told.floor, told.downgrade
    if beside.downgrade >= downgrade:
        floor = beside.floor if beside.downgrade > downgrade else max(floor, beside.floor)
        downgrade = beside.downgrade
    witnesses = (
        told.current,
        told.previous,
        _linked(layout, model),
        *((back.current, back.previous) if back is not None else ()),
        coming.previous if coming is not None else None,
    )
    here = [each for each in dict.fromkeys(witnesses) if each is not None and has_release(layout, each)]
    if not here:
        return None
    return ModelState(here[0], here[1] if len(here) > 1 else None, floor, downgrade)


def _replay(layout: Layout, entries: list[Entry], coming: ModelState | None) -> _Told:
    now = before = _Told()
    for entry in entries:
        step = entry.step
        if step == "committed" and entry.body.get("superseded"):
            # Another deploy has taken its place before its probation had ended: it proved nothing.
            continue
        if step == "switching" and entry is entries[-1] and (coming is None or coming.current != entry.release):
            # The state to come is there no more: it was put in force.
            step = "switched"
        to = entry.body.get("to") if step == "rolled-back" else entry.release
        if step in ("switched", "committed", "rolled-back") and isinstance(to, str) and now.current != to:
            before, now = now, replace(now, current=to, previous=now.current)
        elif step in ("reverted", "rolled-back") and now.current == entry.release:
            # Twice in a row, and nothing tells what was before.
            known = before.current not in (None, entry.release)
            now = replace(
                now,
                current=before.current if known else now.previous,
                previous=before.previous if known else None,
            )
        if step == "committed":
            now = _raised(layout, now, entry.release)
    return now


def _raised(layout: Layout, told: _Told, release: str) -> _Told:
    """With the floor that a commit of this release sets."""
    with contextlib.suppress(AgentError):
        version, accepted = read_release(layout, release).version, read_acceptance(layout, release)
        if accepted.downgrade_floor is not None and accepted.lowers(told.floor, told.downgrade):
            return replace(told, floor=accepted.downgrade_floor, downgrade=accepted.downgrade_serial)
        return replace(told, floor=max(told.floor, version))
    return told


def _readable(read: Callable[[Layout, str], ModelState | None], layout: Layout, model: str) -> ModelState | None:
    with contextlib.suppress(AgentError):
        return read(layout, model)
    return None


def _linked(layout: Layout, model: str) -> str | None:
    with contextlib.suppress(OSError, AgentError):
        digest = os.path.basename(os.readlink(layout.model(model) / "current"))
        layout.release(digest)
        return digest
    return None

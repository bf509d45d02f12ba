"""What a start does before it loads anything: deploys that the last agent left unfinished are settled.

`state.json` is the truth; the journal tells what was meant by it. Only renames are done here.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection

from ..errors import AgentError
from ..failpoints import reached
from ..store.crashes import Marks
from ..store.models import ModelState, list_models, read_state, way_back, write_state
from ..store.recovery import recover_state
from .reverting import take_back
from .site import Site, note, state_of

__all__ = ["MOST_CRASHES", "recover", "replay", "settle_crashes"]

_LOG = logging.getLogger("kedge.replay")

MOST_CRASHES = 2
"""Crashes in a row after which a release is not loaded."""


def recover(site: Site) -> dict[str, str]:
    """Write states anew that cannot be read or are gone, from what is told of them elsewhere.

    Returns:
        What was wrong with them, by model.
    """
    found: dict[str, str] = {}
    for model in list_models(site.layout):
        try:
            if read_state(site.layout, model) is not None:
                continue
            wrong = f"the record of what {model} serves was gone"
        except AgentError as error:
            wrong = error.message
        state = recover_state(site.layout, model, site.journal)
        if state is None:
            continue
        try:
            write_state(site.layout, model, state, _kept_way_back(site, model, state))
        except OSError as error:
            _LOG.error("the state of %s cannot be written anew: %s", model, error)
            continue
        _LOG.error("%s; release %s is taken to be the live one", wrong, state.current[:12])
        found[model] = f"{wrong}; release {state.current[:12]} was taken to be the live one"
    return found


def replay(site: Site, blamed: Collection[tuple[str, str]]) -> dict[str, str]:
    """Settle every unfinished deploy.

    Args:
        blamed: models and releases that the last agent was loading or running when it ended out of order.

    Returns:
        Releases that are on probation again, by model.
    """
    watched: dict[str, str] = {}
    for entry in site.journal.unfinished():
        state = state_of(site.layout, entry.model)
        live = state is not None and state.current == entry.release
        crashed = (entry.model, entry.release) in blamed
        if entry.step == "reverting" or (live and crashed and entry.step in ("switching", "switched")):
            reason = entry.body.get("reason", "the agent crashed while it loaded or ran the release on probation")
            take_back(site, entry.model, entry.release, str(reason))
        elif live and entry.step in ("switching", "switched"):
            if entry.step == "switching":
                note(site, entry.model, entry.release, "switched")
            watched[entry.model] = entry.release
        elif entry.step == "switched":
            note(site, entry.model, entry.release, "rolled-back")
        else:
            why = "crashed on the release" if crashed else "ended"
            note(site, entry.model, entry.release, "refused", reason=f"the agent {why} before the switch", kind="busy")
    reached("start.replayed")
    return watched


def settle_crashes(site: Site, marks: Marks) -> dict[str, AgentError]:
    """Take models back whose release crashed the agent again and again; those that are not to be loaded, and why."""
    held: dict[str, AgentError] = {}
    for model in list_models(site.layout):
        state = state_of(site.layout, model)
        if state is None or marks.crashes(model, state.current) < MOST_CRASHES:
            continue
        reason = f"release {state.current[:12]} crashed the agent {marks.crashes(model, state.current)} times in a row"
        good = state.previous is not None and marks.crashes(model, state.previous) < MOST_CRASHES
        if not good or not take_back(site, model, state.current, reason):
            more = ", and so did the one before" if state.previous is not None and not good else ""
            held[model] = AgentError(
                f"{reason}{more}", kind="incompatible", hint="deploy another release; the agent's log says more"
            )
    return held


def _kept_way_back(site: Site, model: str, state: ModelState) -> ModelState | None:
    """What was prepared to go back to, where it still is what going back would mean."""
    with contextlib.suppress(AgentError):
        back = way_back(site.layout, model)
        return back if back is not None and back.current == state.previous else None
    return None

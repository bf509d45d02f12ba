"""What a start does before it loads anything: deploys that the last agent left unfinished are settled.

`state.json` is the truth; the journal tells what was meant by it. Only renames are done here.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping

from ..errors import AgentError
from ..failpoints import reached
from ..store.crashes import Marks
from ..store.journal import Entry
from ..store.models import ModelState, list_models, read_state, way_back, write_state
from ..store.recovery import recover_state
from .reverting import take_back
from .site import Site, note, state_of

__all__ = ["MOST_CRASHES", "recover", "replay", "settle_crashes"]

_LOG = logging.getLogger("kedge.replay")

MOST_CRASHES = 2
"""Crashes in a row after which a release is not loaded."""

_MOST_DOUBTS = 2 * MOST_CRASHES
_MOST_DOUBTS_ON_PROBATION = 2


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


def replay(site: Site, marks: Marks | None) -> dict[str, str]:
    """Settle every unfinished deploy.

    Args:
        marks: what the last agent left; None: crashes are not told from one another.

    Returns:
        Releases that are on probation again, by model.
    """
    watched: dict[str, str] = {}
    for entry in site.journal.unfinished():
        state = state_of(site.layout, entry.model)
        live = state is not None and state.current == entry.release
        on_probation = live and entry.step in ("switching", "switched")
        fault = _fault_on_probation(marks, entry.model, entry.release) if on_probation and marks is not None else None
        if entry.step == "reverting" or fault is not None:
            reason = fault or str(entry.body.get("reason", "it was being taken back"))
            take_back(site, entry.model, entry.release, reason)
        elif on_probation:
            if entry.step == "switching":
                note(site, entry.model, entry.release, "switched")
            watched[entry.model] = entry.release
        elif entry.step == "switched" and state is not None and _switched_after(site, entry, state.current):
            note(site, entry.model, entry.release, "committed", superseded=True)
        elif entry.step == "switched":
            note(site, entry.model, entry.release, "rolled-back")
        else:
            crashed = marks is not None and (entry.model, entry.release) in marks.blamed
            why = "crashed on the release" if crashed else "ended"
            note(site, entry.model, entry.release, "refused", reason=f"the agent {why} before the switch", kind="busy")
    reached("start.replayed")
    return watched


def _fault_on_probation(marks: Marks, model: str, release: str) -> str | None:
    """That a release on probation is to go back for the end of the last agent, in one line; None: it is not.

    Where nobody knows which model it was, or whether it was one at all, two ends in a row are one too many.
    """
    if not marks.unclean:
        return None
    if marks.crashes(model, release):
        return "the agent crashed while it loaded or ran the release on probation"
    if not marks.blamed and (model, release) in marks.present:
        marks.doubt(model, release)
    doubts = marks.doubts(model, release)
    if doubts < _MOST_DOUBTS_ON_PROBATION:
        return None
    return f"the agent crashed {doubts} times in a row while the release was on probation"


def _switched_after(site: Site, entry: Entry, release: str) -> bool:
    """Whether a deploy put this release in the place of the one that the entry is of."""
    later = [each for each in site.journal.history(entry.model) if each.sequence > entry.sequence]
    return any(each.release == release and each.step in ("switching", "switched", "committed") for each in later)


def settle_crashes(site: Site, marks: Marks) -> tuple[dict[str, AgentError], dict[str, str]]:
    """Take models back whose release crashed the agent again and again.

    Where several were running each time, only the one that went live last is: it is what has changed.

    Returns:
        Models that are not to be loaded, and those that were taken back; and why.
    """
    held: dict[str, AgentError] = {}
    taken_back: dict[str, str] = {}
    states = {model: state for model in list_models(site.layout) if (state := state_of(site.layout, model)) is not None}
    faults = {model: fault for model, state in states.items() if (fault := _fault(marks, model, state.current))}
    if not faults:
        faults = _doubtful(site, marks, states)
    for model, fault in faults.items():
        state = states[model]
        reason = f"release {state.current[:12]} {fault}"
        good = state.previous is not None and not _bad(marks, model, state.previous)
        if good and take_back(site, model, state.current, reason):
            taken_back[model] = f"{reason}; the one before serves"
            continue
        more = ", and so did the one before" if state.previous is not None and not good else ""
        held[model] = AgentError(
            f"{reason}{more}", kind="incompatible", hint="deploy another release; the agent's log says more"
        )
    return held, taken_back


def _fault(marks: Marks, model: str, release: str) -> str | None:
    crashes = marks.crashes(model, release)
    return f"crashed the agent {crashes} times in a row" if crashes >= MOST_CRASHES else None


def _bad(marks: Marks, model: str, release: str) -> bool:
    crashes = marks.crashes(model, release)
    return crashes >= MOST_CRASHES or crashes + marks.doubts(model, release) >= _MOST_DOUBTS


def _doubtful(site: Site, marks: Marks, states: Mapping[str, ModelState]) -> dict[str, str]:
    """Of the models that were running whenever the agent crashed, the one that went live last; the others go free."""
    doubts = [model for model, state in states.items() if _bad(marks, model, state.current)]
    if not doubts:
        return {}
    switched = [entry.model for entry in site.journal.history() if entry.step == "switched" and entry.model in doubts]
    last = switched[-1] if switched else min(doubts)
    for model in doubts:
        if model != last:
            marks.pardon(model, states[model].current)
    return {last: "was one of those that were running whenever the agent crashed, again and again"}


def _kept_way_back(site: Site, model: str, state: ModelState) -> ModelState | None:
    """What was prepared to go back to, where it still is what going back would mean."""
    with contextlib.suppress(AgentError):
        back = way_back(site.layout, model)
        return back if back is not None and back.current == state.previous else None
    return None

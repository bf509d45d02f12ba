"""The way back to the release before: on disk, by one rename that needs no room."""

from __future__ import annotations

import logging

from ..errors import AgentError
from ..store.layout import Layout
from ..store.models import ModelState, go_back, prepare_switch, switch, way_back
from .site import Site, known_state, note, state_of

__all__ = ["back_of", "put_back", "take_back", "taken_back"]

_LOG = logging.getLogger("kedge.reverting")


def take_back(site: Site, model: str, release: str, reason: str) -> bool:
    """Rename the state back to the release before, if there is one and that has not happened already.

    Returns:
        Whether the release before is now the live one.
    """
    state = known_state(site, model)
    if state is not None and state.current == release:
        back = back_of(site.layout, model, state)
        if back is None:
            note(site, model, release, "refused", reason=f"{reason}; there is no release to go back to")
            return False
        note(site, model, release, "reverting", reason=reason)
        try:
            put_back(site, model, back)
        except (OSError, AgentError) as error:
            _LOG.error("%s cannot be taken back to %s: %s", model, back.current[:12], error)
            note(
                site, model, release, "refused", reason=f"{reason}; the release before cannot be put in force: {error}"
            )
            return False
    note(site, model, release, "reverted", reason=reason)
    return True


def back_of(layout: Layout, model: str, state: ModelState) -> ModelState | None:
    """The state to go back to: the one that was prepared, or one made of what the state itself names."""
    try:
        prepared = way_back(layout, model)
    except AgentError:
        prepared = None
    if prepared is not None and prepared.current == state.previous:
        return prepared
    if state.previous is None:
        return None
    return ModelState(state.previous, state.current, state.floor, state.downgrade)


def put_back(site: Site, model: str, back: ModelState) -> None:
    """Put the state that `back_of` found in force: by one rename, where it was prepared.

    Raises:
        AgentError: this agent makes way for another, and the store may be the other's by now (busy).
        OSError: as the file system says; the state then stands.
    """
    site.require_open()
    layout = site.layout
    try:
        prepared = way_back(layout, model)
    except AgentError:
        prepared = None
    try:
        if prepared == back:
            go_back(layout, model)
        else:
            prepare_switch(layout, model, back, None)
            site.require_open()
            switch(layout, model)
    except OSError as error:
        if state_of(layout, model) != back:
            raise
        _LOG.error("%s was taken back, and that may not outlive a power cut: %s", model, error)


def taken_back(digest: str, reason: str) -> str:
    """What is said of a release that the device took back by itself, by whoever did it and by the journal later."""
    return f"release {digest[:12]} was taken back: {reason}"

"""What deploys work on, and how they write down what they did."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import AgentError
from ..store.files import translate_os_error
from ..store.journal import Journal
from ..store.layout import Layout
from ..store.models import ModelState, read_state
from ..store.recovery import recover_state
from ..store.rules import ReleaseRules
from .repository import Repository

__all__ = ["Site", "fault_of", "is_unloaded", "known_state", "note", "state_of"]

_LOG = logging.getLogger("kedge.deploys")


@dataclass(frozen=True)
class Site:
    """What a deploy works on. rules: asked anew each time. closed: set when this agent makes way for another."""

    layout: Layout
    repository: Repository
    journal: Journal
    rules: Callable[[], ReleaseRules]
    closed: threading.Event = field(default_factory=threading.Event)

    def require_open(self) -> None:
        """Change nothing any more once this agent makes way: another may have the store by then.

        Raises:
            AgentError: it does (busy).
        """
        if self.closed.is_set():
            raise AgentError("the agent is ending", kind="busy", hint="run the command again in a moment")

    def write_down(self, model: str, release: str, step: str, **body: Any) -> None:
        """Append to the journal.

        Raises:
            AgentError: as `require_open`.
            OSError: as the file system says.
        """
        self.require_open()
        self.journal.append(model, release, step, **body)


def known_state(site: Site, model: str) -> ModelState | None:
    """The recorded state, or what can still be told of it where it is damaged, or gone while the model serves.

    Neither a floor nor the way back is to be lost by that.
    """
    wrong = f"the record of what {model} serves is gone"
    try:
        state = read_state(site.layout, model)
        if state is not None or site.repository.serving(model) is None:
            return state
    except AgentError as error:
        wrong = error.message
    _LOG.error("%s; it is made out from what is told of it elsewhere", wrong)
    return recover_state(site.layout, model, site.journal)


def state_of(layout: Layout, model: str) -> ModelState | None:
    """The recorded state; a damaged one counts as none."""
    try:
        return read_state(layout, model)
    except AgentError:
        _LOG.exception("the state of %s is damaged", model)
        return None


def is_unloaded(site: Site, model: str) -> bool:
    """Whether a user has unloaded it."""
    return any(row["model"] == model and row["state"] == "unloaded" for row in site.repository.status())


def fault_of(error: BaseException, doing: str) -> AgentError:
    """Any failure as the agent reports it."""
    if isinstance(error, AgentError):
        return error
    if isinstance(error, OSError):
        return translate_os_error(error, doing)
    return AgentError(f"{type(error).__name__}: {error}", kind="internal", hint="see the agent's log")


def note(site: Site, model: str, release: str, step: str, **body: Any) -> None:
    """Write down what has happened; that it cannot be written undoes none of it."""
    try:
        site.write_down(model, release, step, **body)
    except (OSError, AgentError) as error:
        _LOG.error("%s release %s: %s is not in the journal: %s", model, release[:12], step, error)

"""What a start loads of one model: what it last served, or what it served before."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from ..errors import AgentError
from ..store.models import ModelState
from .loading import LiveModel

__all__ = ["load_last_served"]

_LOG = logging.getLogger("kedge.starting")


def load_last_served(
    bring: Callable[..., LiveModel], model: str, state: ModelState, suspects: Collection[tuple[str, str]]
) -> tuple[LiveModel, AgentError | None]:
    """The release that the state names, or the one before.

    Args:
        bring: `Repository.bring`.
        suspects: models and releases that may have ended the agent.

    Returns:
        The model, and why it is not the live release.

    Raises:
        AgentError: neither can be loaded; what is wrong with both.
    """
    try:
        return bring(model, state.current, suspected=(model, state.current) in suspects), None
    except Exception as error:  # whatever keeps the current one from being served, the previous one may be
        if state.previous is None:
            raise
        _LOG.error("model %s: %s; falling back to %s", model, error, state.previous[:12])
        kind = error.kind if isinstance(error, AgentError) else "internal"
        try:
            live = bring(model, state.previous, suspected=(model, state.previous) in suspects)
        except Exception as worse:
            raise AgentError(f"{error}; nor can the previous release be served: {worse}", kind=kind) from worse
        return live, AgentError(f"{error}; serving the previous release instead", kind=kind)

"""What was deployed to a device, when, and how it ended: its own journal."""

from __future__ import annotations

from typing import Any

from kedge_agent.formats.manifest import is_model_name

from ..errors import BadInputError
from ..transport.base import Transport, agent_hint
from ..transport.client import AgentClient
from .told import require

__all__ = ["read_history"]


def read_history(transport: Transport, model: str | None = None, *, timeout_s: float = 60.0) -> list[dict[str, Any]]:
    """What was done to the models of a device, oldest first, as its journal tells it (docs/wire-protocol.md).

    Args:
        model: of this one alone; None: of all.
        timeout_s: how long the agent may take to answer.

    Raises:
        BadInputError: that names no model, or the agent is too old to keep a journal.
        KedgeError: the device cannot be reached, or what it tells makes no sense.
    """
    if model is not None and not is_model_name(model):
        raise BadInputError(f"{model!r} is no model's name", hint=f"see: kedge status --on {transport.name}")
    client = AgentClient(transport, timeout_s)
    try:
        query = "" if model is None else f"?model={model}"
        entries = client.get(f"/kedge/v1/history{query}", expect=("entries",))["entries"]
    except BadInputError as error:
        raise BadInputError(
            f"{transport.name}: the agent is of before there was a history",
            hint=agent_hint(transport.name),
        ) from error
    finally:
        client.close()
    found: list[dict[str, Any]] = require(transport.name, "history", entries)
    return found

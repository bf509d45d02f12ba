"""The way back: have a device switch a model to the release that it served before."""

from __future__ import annotations

from typing import Any

from ..transport.base import Deadline, Transport
from ..transport.client import AgentClient
from .told import require

__all__ = ["rollback"]

_ACTIVATE_S = 600.0


def rollback(transport: Transport, model: str, deadline: Deadline | None = None) -> dict[str, Any]:
    """Switch a model back to the release it served before; the agent's report of it.

    Args:
        deadline: by which it must have answered.

    Raises:
        KedgeError: there is nothing to go back to, or the device says why not.
    """
    client = AgentClient(transport, deadline=deadline)
    try:
        answer = client.post(f"/kedge/v1/models/{model}/rollback", timeout_s=_ACTIVATE_S)
    finally:
        client.close()
    told: dict[str, Any] = require(transport.name, "rollback", answer)
    return told

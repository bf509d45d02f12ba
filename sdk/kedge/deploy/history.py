"""What was deployed to a device, when, and how it ended: its own journal."""

from __future__ import annotations

from typing import Any

from ..transport.base import Transport
from ..transport.client import AgentClient

__all__ = ["read_history"]


def read_history(transport: Transport, model: str | None = None) -> list[dict[str, Any]]:
    """What was done to the models of a device, oldest first, as its journal tells it (docs/wire-protocol.md).

    Raises:
        KedgeError: the device cannot be reached, or keeps no journal.
    """
    client = AgentClient(transport)
    try:
        query = "" if model is None else f"?model={model}"
        entries = client.get(f"/kedge/v1/history{query}", expect=("entries",))["entries"]
    finally:
        client.close()
    return [entry for entry in entries if isinstance(entry, dict)]

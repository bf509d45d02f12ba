"""What a device is asked before anything is made for it: whether it answers, and takes the version."""

from __future__ import annotations

from ..deploy.releases import read_floor
from ..errors import IntegrityError
from ..fleet.served import what_serves
from ..transport.base import Transport
from ..transport.client import AgentClient

__all__ = ["ANSWER_S", "require_taken"]

ANSWER_S = 20.0
"""How long a device may take to tell what it serves, in seconds."""


def require_taken(transport: Transport, model: str, version: int) -> None:
    """That a device answers, and does not refuse what is new of this version.

    A version that it serves, after a rollback, is let pass: the release may come out the same.

    Raises:
        IntegrityError: the device has had a later version.
        KedgeError: the device cannot be reached.
    """
    floor, _ = read_floor(transport, model)
    if version >= floor:
        return
    client = AgentClient(transport, ANSWER_S)
    try:
        live = what_serves(client, transport.name, model)
    finally:
        client.close()
    if live.version != version:
        raise IntegrityError(
            f"version {version} of {model} is below {floor}, which {transport.name} has had",
            hint="raise it: --model-version, or version in [run]; back to what served before: kedge rollback",
        )

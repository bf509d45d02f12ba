"""The way to a device as plain JSON, so that a process which has no inventory can go it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from ..config import state_dir
from ..errors import BadInputError
from ..transport.address import SshAddress
from ..transport.base import LOCAL, Deadline, Transport
from ..transport.local import LocalAgent
from ..transport.ssh import SshTransport

__all__ = ["Opener", "local_way", "open_way"]

Opener = Callable[[str, Mapping[str, Any]], AbstractContextManager[Transport]]
"""Opens a transport to a device, by its name and its way."""

_START_S = 60.0


def local_way() -> dict[str, Any]:
    """The way to the agent of this machine."""
    return {"local": True}


@contextmanager
def open_way(device: str, way: Mapping[str, Any]) -> Iterator[Transport]:
    """A transport to a device; it connects when it is first needed, and is closed at the end.

    Args:
        device: its name, for messages.
        way: what `inventory.Device.way` gave: `{"local": true}`, or an `SshAddress` as JSON.

    Raises:
        BadInputError: that is no way.
        KedgeError: the local agent does not start.
    """
    if way == local_way():
        agent = LocalAgent(state_dir() / LOCAL)
        try:
            agent.start(Deadline.after(_START_S, "starting the local agent"))
            yield agent
        finally:
            agent.close()
        return
    if "local" in way:
        raise BadInputError(f"{device}: no way to a device", hint="begin the rollout anew")
    transport = SshTransport(device, SshAddress.from_json(way))
    try:
        yield transport
    finally:
        transport.close()

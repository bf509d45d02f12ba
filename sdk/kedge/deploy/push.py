"""`kedge deploy`: verify, push, activate; and the way back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ..release.bundle import Release
from ..transport.base import Deadline, Transport
from ..transport.client import AgentClient
from ..transport.upload import Progress, upload

__all__ = ["Deployed", "deploy", "rollback"]

_CONNECT_S = 30.0
_ACTIVATE_S = 600.0

States = Callable[[str], None]


@dataclass(frozen=True)
class Deployed:
    """What a deploy did.

    previous: the release a rollback would return to. parity: the gate's findings per output.
    load: time and memory of loading on the device (docs/bench-report.md, `memory.load`).
    """

    device: str
    model: str
    version: int
    release: str
    previous: str | None
    sent_bytes: int
    skipped_bytes: int
    push_s: float
    activate_s: float
    parity: list[dict[str, Any]]
    load: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def deploy(
    transport: Transport,
    release: Release,
    *,
    progress: Progress = lambda done, total: None,
    state: States = lambda name: None,
) -> Deployed:
    """Push a release to a device and switch its model to it, behind the parity gate.

    Args:
        progress: told of acknowledged bytes during the push.
        state: told of each state as it begins: verify, push, activate.

    Raises:
        KedgeError: the first thing that went wrong; whatever served before serves on.
    """
    state("verify")
    release.verify()
    state("push")
    begin = time.monotonic()
    channel, protocol = transport.open_receive(Deadline.after(_CONNECT_S, f"reaching {transport.name}"))
    pushed = upload(channel, transport.name, release.manifest_bytes, release.files(), progress, protocol=protocol)
    sent = time.monotonic()
    state("activate")
    client = AgentClient(transport)
    try:
        answer = client.post(
            f"/kedge/v1/releases/{release.digest}/activate",
            timeout_s=_ACTIVATE_S,
            expect=("previous", "parity", "load"),
        )
    finally:
        client.close()
    return Deployed(
        device=transport.name,
        model=release.manifest.model,
        version=release.manifest.version,
        release=release.digest,
        previous=answer["previous"],
        sent_bytes=pushed.sent_bytes,
        skipped_bytes=pushed.skipped_bytes,
        push_s=sent - begin,
        activate_s=time.monotonic() - sent,
        parity=answer["parity"],
        load=answer["load"],
    )


def rollback(transport: Transport, model: str) -> dict[str, Any]:
    """Switch a model back to the release it served before; the agent's report of it.

    Raises:
        KedgeError: there is nothing to go back to, or the device says why not.
    """
    client = AgentClient(transport)
    try:
        answer: dict[str, Any] = client.post(
            f"/kedge/v1/models/{model}/rollback",
            timeout_s=_ACTIVATE_S,
            expect=("model", "version", "release", "previous"),
        )
    finally:
        client.close()
    return answer

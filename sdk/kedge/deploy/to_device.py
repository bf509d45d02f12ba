"""A release to one device, whatever it takes: its engine from the cache or compiled there, then the deploy itself."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from kedge_agent.formats.offer import Signed

from ..release.bundle import Release
from ..targets import Target
from ..transport.base import Transport
from .deployed import Deployed
from .engines import prepared
from .push import deploy

__all__ = ["Sight", "deploy_to_device"]


class Sight(Protocol):
    """Who looks on."""

    def step(self, name: str) -> None:
        """A step begins."""
        ...

    def bytes(self, done: int, total: int) -> None:
        """Bytes of the current step."""
        ...

    def share(self, name: str, share: float) -> None:
        """A named step, and the part of it that is done, from 0 to 1."""
        ...

    def event(self, event: Mapping[str, Any]) -> None:
        """What a device tells of its own work."""
        ...


def deploy_to_device(
    transport: Transport,
    target: Target,
    release: Release,
    sight: Sight,
    *,
    downgrade: Signed | None = None,
    limit_bytes_per_s: int | None = None,
    wait: bool = True,
    reached: Callable[[str], None] = lambda step: None,
) -> Deployed:
    """Deploy a release to a device; where it has a build plan, with an engine from the cache, or compiled there.

    Args:
        target: of the device.
        downgrade, limit_bytes_per_s, wait: as `deploy.push.deploy` takes them.
        reached: told of each state of the deploy as it begins.

    Raises:
        KedgeError: as `deploy.engines.prepared` and `deploy.push.deploy`.
    """

    def state(name: str) -> None:
        reached(name)
        sight.step(name)

    with tempfile.TemporaryDirectory(prefix="kedge-deploy-") as folder:
        found = prepared(
            transport,
            target,
            release,
            Path(folder) / "release",
            sight.share,
            downgrade=downgrade,
            limit_bytes_per_s=limit_bytes_per_s,
        )
        return deploy(
            transport,
            found,
            progress=sight.bytes,
            state=state,
            event=sight.event,
            downgrade=downgrade,
            limit_bytes_per_s=limit_bytes_per_s,
            wait=wait,
        )

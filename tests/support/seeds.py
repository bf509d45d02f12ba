"""State folders of devices that were brought to where many tests begin, once; each test has a copy of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kedge.release.bundle import Release
from tests.support.agents import Device
from tests.support.deploys import must_deploy


@dataclass(frozen=True)
class Seed:
    """A state folder that no agent uses."""

    state: Path

    def device(self, folder: Path) -> Device:
        """A device on a copy under `folder`, with links where the seed has them; its agent is not started."""
        folder.mkdir(exist_ok=True)
        subprocess.run(["cp", "-a", str(self.state), str(folder / "state")], check=True)
        return Device(folder / "state")


def seed(folder: Path, deployed: Iterable[Release], pushed: Iterable[Release] = (), *, killed: bool = False) -> Seed:
    """Deploy these, in this order, then push those; the agent is stopped in order, or killed."""
    made = Device(folder / "state")
    made.start()
    try:
        for release in deployed:
            must_deploy(made, release)
        for release in pushed:
            made.push(release)
        if not killed:
            made.stop()
    finally:
        made.kill()
    return Seed(made.state)

"""Latency of candidate models as a device measures it: what a search ranks by with --measure-on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..build.gates import GateOptions
from ..build.release import BuildOptions, build_release
from ..deploy.push import deploy
from ..errors import IncompatibleError
from ..optimize.work import Latency
from ..targets import Target, load_target
from ..transport.base import Deadline, Transport
from ..transport.client import AgentClient
from ..transport.local import LocalAgent
from .inventory import LOCAL, Inventory, open_device

__all__ = ["DeviceProbe", "device_probe"]

_WARMUP_MS = 200
_ROUND_MS = 200
_ROUNDS = 3
_START_S = 60.0
# Candidates are compared in time here, not in accuracy: the gate of their deployment asks for nothing.
_NO_GATE = GateOptions(cosine_min="-1", relative_error_max="1000000", probation_s=0)


class DeviceProbe:
    """Deploys models to a device under names of their own and times them inside its agent, in alternation.

    Args:
        transport: an open way to the device. target: its profile.
    """

    def __init__(self, transport: Transport, target: Target) -> None:
        self._transport = transport
        self._target = target

    @property
    def name(self) -> str:
        """The device's."""
        return self._transport.name

    def measure(self, models: Mapping[str, Path]) -> dict[str, Latency]:
        """Latency by name: batch 1 where the model's batch is free, median of the rounds' medians.

        Raises:
            KedgeError: a model does not go live there, or the device stopped answering.
        """
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in models}
        with tempfile.TemporaryDirectory(prefix="kedge-probe-") as folder:
            for index, path in enumerate(models.values()):
                release = Path(folder) / f"{index}.release"
                options = BuildOptions(f"kedge-probe-{index}", 1, _NO_GATE)
                built = build_release(path, self._target, release, options)
                deploy(self._transport, built.release, remember=False)
        client = AgentClient(self._transport)
        try:
            for _ in range(_ROUNDS):
                for index, name in enumerate(models):
                    rows[name].append(
                        client.post(
                            f"/kedge/v1/models/kedge-probe-{index}/benchmark",
                            {"batch": 1, "warmup_ms": _WARMUP_MS, "duration_ms": _ROUND_MS, "min_runs": 10},
                            changes=False,
                            expect=("batch", "compute"),
                        )
                    )
        finally:
            client.close()
        return {name: self._summary(found) for name, found in rows.items()}

    def _summary(self, rounds: list[dict[str, Any]]) -> Latency:
        middle = sorted(rounds, key=lambda row: float(row["compute"]["median_ms"]))[len(rounds) // 2]
        conditions = (
            f"compute on {self._transport.name}, batch {middle['batch']}, warm-up {_WARMUP_MS} ms, "
            f"the middle one of {_ROUNDS} rounds of {_ROUND_MS} ms in alternation"
        )
        compute = middle["compute"]
        return Latency(float(compute["median_ms"]), float(compute["p90_ms"]), int(compute["count"]), conditions)


@contextmanager
def device_probe(device: str, target: str, inventory: Inventory | None = None) -> Iterator[DeviceProbe]:
    """A probe on a device by name. `local` is a fresh agent on this machine that leaves nothing behind.

    On another device the candidates stay in its store, as models named kedge-probe-0 and so on.

    Raises:
        IncompatibleError: the device's target is not the one that is optimised for.
        KedgeError: the device is not known or not reached.
    """
    wanted = load_target(target)
    if device == LOCAL:
        with tempfile.TemporaryDirectory(prefix="kedge-local-") as folder:
            agent = LocalAgent(Path(folder) / "state", ephemeral=True)
            try:
                agent.start(Deadline.after(_START_S, "starting the local agent"))
                yield DeviceProbe(agent, wanted)
            finally:
                agent.close()
        return
    with open_device(device, inventory) as (transport, profile):
        if profile.name != wanted.name:
            raise IncompatibleError(
                f"{device} is a {profile.name}, the model is optimised for {wanted.name}",
                hint=f"use --target {profile.name}",
            )
        yield DeviceProbe(transport, profile)

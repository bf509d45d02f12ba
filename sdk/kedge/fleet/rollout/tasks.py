"""The task of a device, as `fleet.task.run_task` takes it: plain JSON that names all a worker needs."""

from __future__ import annotations

from typing import Any

from .answers import ROLLBACK
from .device import DeviceState
from .machine import Rollout

__all__ = ["task_for"]


def task_for(rollout: Rollout, device: str, kind: str) -> dict[str, Any]:
    """What a worker is to do, after the event `task` was applied."""
    plan, each = rollout.plan, rollout.device(device)
    return {
        "rollout": plan.id,
        "device": device,
        "kind": kind,
        "address": dict(each.planned.way),
        "target": each.planned.target,
        "model": plan.model,
        "release": dict(plan.release),
        "engines": [dict(engine) for engine in rollout.builds.engines.values()],
        "build_own": plan.options.attest is None,
        "deadline_s": plan.options.deadline_s,
        "limit_bytes_per_s": plan.options.limit_bytes_per_s,
        "downgrade": None if plan.downgrade is None else dict(plan.downgrade),
        "first_s": _first_s(rollout, each, kind),
    }


def _first_s(rollout: Rollout, each: DeviceState, kind: str) -> float | None:
    """Since when a deploy that the device has begun is this task's; of a rollback, the rollout's: None: it said so."""
    if kind == ROLLBACK:
        return None if each.said_updated else each.begun_s
    return each.first_s if each.first_s is not None else rollout.begun_s

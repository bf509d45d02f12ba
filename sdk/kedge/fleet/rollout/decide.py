"""What follows from the state of a rollout: the next event that needs no worker, and the next task for one."""

from __future__ import annotations

from typing import Any

from .answers import ROLLBACK
from .device import DeviceState
from .gates import judge, too_many
from .machine import Rollout

__all__ = ["due", "next_task", "pause_left_s"]


def due(rollout: Rollout, now_s: float, paused_s: float = 0.0) -> dict[str, Any] | None:
    """The event that is to be written down now; None: there is none until a worker answers, or the pause is over.

    Args:
        now_s: wall clock.
        paused_s: how long the driver has seen the pause last, by a clock that nobody sets.
    """
    found = _due(rollout, now_s, paused_s)
    return None if found is None else {**found, "at_s": now_s}


def next_task(rollout: Rollout) -> tuple[str, str] | None:
    """Device and kind of the task that may begin now; None: none may."""
    if rollout.ended is not None or (rollout.stopped and not rollout.rolling_back):
        return None
    if len(rollout.flying) >= rollout.plan.options.concurrency:
        return None
    index = rollout.turns.peek()
    if index is None:
        return None
    each = rollout.devices[index]
    if each.queued is None or (rollout.rolling_back and each.queued != ROLLBACK):
        return None
    return each.planned.name, each.queued


def pause_left_s(rollout: Rollout, now_s: float, paused_s: float) -> float | None:
    """How long the pause of the wave still lasts; None: it is in none. A clock that was set back prolongs nothing."""
    wave = rollout.this_wave if rollout.wave else None
    if rollout.stopped or wave is None or wave.state != "watching" or wave.looked or wave.watched_s is None:
        return None
    return max(rollout.plan.options.pause_s - max(now_s - wave.watched_s, paused_s), 0.0)


def _due(rollout: Rollout, now_s: float, paused_s: float) -> dict[str, Any] | None:
    if rollout.ended is not None or rollout.begun_s is None:
        return None
    wave = rollout.this_wave if rollout.wave else None
    if rollout.stopped or (wave is not None and wave.state == "failed"):
        return _end(rollout)
    if wave is None or wave.state == "passed":
        if rollout.wave == len(rollout.waves):
            return {"event": "ended", "state": "done", "reason": None, "hint": None}
        return {"event": "wave", "wave": rollout.wave + 1}
    if rollout.open:
        return None
    if wave.state == "running" and _watches(rollout):
        return {"event": "watch", "wave": rollout.wave}
    if wave.state == "watching" and not wave.looked:
        if pause_left_s(rollout, now_s, paused_s):
            return None
        return {"event": "look", "wave": rollout.wave}
    return _gates(rollout)


def _end(rollout: Rollout) -> dict[str, Any] | None:
    """A halt or an abort, step by step: nothing more begins, what runs ends, the wave is judged, and taken back."""
    if rollout.aborted is None and not rollout.halted:
        return _halted(rollout)
    if rollout.flying:
        return None
    judged = not rollout.wave or rollout.this_wave.state in ("passed", "failed")
    if rollout.aborted is None and not judged:
        return _gates(rollout)
    takes_back = rollout.aborted or (rollout.aborted is None and rollout.plan.options.on_halt == "rollback")
    if takes_back and not rollout.rolling_back:
        return {"event": "rollback"}
    if rollout.rolling_back and rollout.open:
        return None
    if rollout.aborted is not None:
        return {"event": "ended", "state": "aborted", "reason": "somebody asked for its end", "hint": None}
    return {"event": "ended", "state": "halted", "reason": rollout.reason, "hint": rollout.hint}


def _halted(rollout: Rollout) -> dict[str, Any]:
    wave = rollout.this_wave
    if wave.state == "failed":
        why = "; ".join(f"{gate['gate']}: {gate['why']}" for gate in wave.gates if gate["passed"] is False)
        reason = f"wave {rollout.wave} does not hold: {why}"
        hint = f"see why; then watch it again: kedge rollout resume {rollout.plan.id}"
    else:
        reason = too_many(rollout.failures, rollout.plan.options.max_failures)
        hint = f"see why; then kedge rollout resume {rollout.plan.id} tries them again, with --skip-failed it does not"
    return {"event": "halted", "reason": reason, "hint": hint}


def _watches(rollout: Rollout) -> bool:
    """Whether the wave is looked at once more: there is a pause or a limit, and a device that can be asked."""
    options = rollout.plan.options
    asks = options.pause_s > 0 or options.max_error_rate is not None or options.max_p99_drift is not None
    return asks and any(each.round == rollout.wave and each.serves_release for each in _reached(rollout))


def _gates(rollout: Rollout) -> dict[str, Any]:
    found = judge(
        _reached(rollout), rollout.wave, rollout.failures, rollout.plan.options, looked=rollout.this_wave.looked
    )
    return {"event": "gates", "wave": rollout.wave, "gates": found}


def _reached(rollout: Rollout) -> list[DeviceState]:
    return rollout.devices[: rollout.plan.waves[rollout.wave - 1]]

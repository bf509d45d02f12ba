"""The document of a rollout (docs/rollout-report.md)."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .machine import Rollout

__all__ = ["document"]


def document(rollout: Rollout, *, driven: bool) -> dict[str, Any]:
    """All there is to say of a rollout. It is a function of its plan and events, but for the steps that are under way.

    Args:
        driven: somebody drives it now.
    """
    plan = rollout.plan
    state, reason, hint = _state(rollout, driven=driven)
    begun_s, ended_s = rollout.begun_s, rollout.ended_s
    return {
        "kedge_rollout": 1,
        "id": plan.id,
        "model": plan.model,
        "version": plan.version,
        "release": plan.release["digest"],
        "source": plan.release["source"],
        "state": state,
        "reason": reason,
        "hint": hint,
        "created_s": plan.created_s,
        "ended_s": ended_s,
        "seconds": None if begun_s is None or ended_s is None else max(ended_s - begun_s, 0.0),
        "waves": [
            {
                "wave": number,
                "count": count,
                "state": wave.state,
                "begun_s": wave.begun_s,
                "watched_s": wave.watched_s,
                "ended_s": wave.ended_s,
                "gates": [dict(gate) for gate in wave.gates],
            }
            for number, (count, wave) in enumerate(zip(plan.waves, rollout.waves, strict=True), 1)
        ],
        "devices": [each.to_json() for each in rollout.devices],
        "counts": dict(sorted(Counter(each.state for each in rollout.devices).items())),
        "options": plan.options.to_json(),
        "cluster": plan.options.cluster,
    }


def _state(rollout: Rollout, *, driven: bool) -> tuple[str, str | None, str | None]:
    go_on = f"kedge rollout resume {rollout.plan.id}"
    if rollout.ended is not None:
        return rollout.ended, rollout.reason, rollout.hint
    if rollout.interrupted is not None:
        return "interrupted", rollout.interrupted["reason"], rollout.interrupted["hint"] or go_on
    if not driven:
        return "interrupted", "whoever drove it has gone, and it has not ended", go_on
    if rollout.aborted is not None:
        return "aborted", "somebody asked for its end; what runs is waited for", None
    if rollout.halted:
        return "halted", rollout.reason, rollout.hint
    watches = rollout.wave > 0 and rollout.this_wave.state == "watching" and not rollout.this_wave.looked
    return ("paused" if watches else "running"), None, None

"""What becomes of the devices of a rollout that halts or is ended: who is taken back, what is said of the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...errors import ExitCode
from .answers import ROLLBACK

if TYPE_CHECKING:
    from .machine import Rollout

__all__ = ["name_ends", "take_back", "taken_back"]


def take_back(rollout: Rollout) -> None:
    """Apply the event `rollback`: whatever may serve the release by this rollout is asked to return.

    A wave that halted is taken back; one that had passed is not, unless somebody asked for an end. Of a device whose
    end is not known the task itself finds out whether there is anything to be taken back.
    """
    rollout.rolling_back = True
    rollout.open.clear()
    rollout.turns.clear()
    for index, each in enumerate(rollout.devices):
        each.queued = None
        if each.given and (rollout.aborted or each.round == rollout.wave):
            rollout.queue(index, ROLLBACK)


def taken_back(reason: str | None, answer: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """State and words of a device that was asked to return.

    Args:
        reason: what was said of it before.
    """
    state = "rolled_back" if answer["state"] == "rolled_back" else "rollback_failed"
    said = [each for each in (reason, answer["reason"]) if each]
    return state, {**answer, "reason": "; ".join(said) or None}


def name_ends(rollout: Rollout, at_s: float) -> None:
    """A rollout was aborted: devices that have come to no end get one."""
    for each in rollout.devices:
        if each.state not in ("waiting", "waits_for_engine", "rolling_back"):
            continue
        if not each.given:
            why = "the rollout was aborted before its turn"
            each.end("not_begun", at_s, {"reason": why, "hint": None, "exit_code": None})
            continue
        what = "it was being taken back" if each.state == "rolling_back" else "a worker had begun with it"
        said = {
            "reason": f"{each.reason or what}; the rollout was aborted before its end was known",
            "hint": f"kedge status --on {each.planned.name}",
            "exit_code": int(ExitCode.OUTCOME_UNKNOWN),
        }
        each.end("unknown", at_s, said)

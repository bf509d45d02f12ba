"""What it means that another driver takes a rollout over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...errors import ExitCode
from .answers import BUILD, DEPLOY, LOOK
from .reading import UnreadableError

if TYPE_CHECKING:
    from .machine import Rollout

__all__ = ["take_up"]


def take_up(rollout: Rollout, event: Mapping[str, Any]) -> None:
    """Apply the event `resumed`: whatever halted the rollout, it goes on.

    What was under way is done again, before anything else: a device that did it already says so. A device that failed
    is tried again likewise, or, with `skip_failed`, left out and no longer counted. A wave that failed is watched and
    judged anew; of one that was in its pause, the rest of the pause is waited. Of a rollout that somebody ended, only
    what remains of the end is done.

    Raises:
        UnreadableError: it has been aborted.
    """
    if rollout.ended == "aborted":
        raise UnreadableError("a rollout is resumed that was aborted")
    at_s = event["at_s"]
    rollout.begun_s = at_s if rollout.begun_s is None else rollout.begun_s
    rollout.interrupted = None
    rollout.turns.clear()
    rollout.builds.clear()
    rollout.open.clear()
    rollout.rolling_back = False
    if rollout.aborted is None:
        rollout.ended = rollout.ended_s = rollout.reason = rollout.hint = None
        rollout.halted = False
        again = _renew(rollout, skip_failed=event["skip_failed"])
        _go_on(rollout, again)
    else:
        _give_up(rollout, at_s)
    rollout.failures = sum(each.fails for each in rollout.devices)


def _renew(rollout: Rollout, *, skip_failed: bool) -> set[int]:
    """Devices of which the end is not known, or not the one that is wanted; those among them that go first."""
    again = set()
    for index in rollout.flying:
        rollout.devices[index].lose()
    for index, each in enumerate(rollout.devices):
        if each.state in ("rolling_back", "rolled_back"):
            each.renew()
        elif each.fails or each.skipped or each.state == "rollback_failed":
            each.skipped = skip_failed
            if not skip_failed:
                each.renew()
                again.add(index)
        elif each.state in ("running", "building", "waits_for_engine"):
            again.add(index)
            each.renew()
        each.queued = None
    rollout.flying.clear()
    return again


def _go_on(rollout: Rollout, again: set[int]) -> None:
    if rollout.wave == 0:
        return
    wave, reached = rollout.this_wave, range(rollout.plan.waves[rollout.wave - 1])
    todo = [index for index in reached if rollout.devices[index].state == "waiting"]
    if todo or wave.state == "failed":
        wave.state, wave.ended_s, wave.watched_s, wave.looked, wave.gates = "running", None, None, False, []
        for index in todo:
            rollout.devices[index].round = rollout.wave
            rollout.queue(index, DEPLOY, first=index in again)
    elif wave.looked and wave.state == "watching":
        for index in reached:
            each = rollout.devices[index]
            if each.round == rollout.wave and each.serves_release and each.look is None:
                rollout.queue(index, LOOK)


def _give_up(rollout: Rollout, at_s: float) -> None:
    """What was under way when the last driver of an aborted rollout died: nobody will be told its end."""
    for index in rollout.flying:
        each = rollout.devices[index]
        if each.flying in (DEPLOY, BUILD):
            said = {
                "reason": "the host died while it was at work, and the rollout was aborted",
                "hint": f"kedge status --on {each.planned.name}",
                "exit_code": int(ExitCode.OUTCOME_UNKNOWN),
            }
            each.end("unknown", at_s, said)
        each.lose()
    rollout.flying.clear()

"""What an answer says of how a task ended that did not do all it was to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ExitCode, GateRefusedError, KedgeError, OutcomeUnknownError, UnreachableError
from ..report.text import one_line

__all__ = ["NOTHING", "ended", "late"]

NOTHING: Mapping[str, Any] = {
    "state": "failed",
    "reason": None,
    "hint": None,
    "exit_code": int(ExitCode.OK),
    "deployed": None,
    "engine": None,
    "look": None,
}
"""An answer that says nothing yet."""

_MAX_TEXT = 1000
_STATES = (
    (GateRefusedError, "refused"),
    (UnreachableError, "unreachable"),
    (OutcomeUnknownError, "unknown"),
)


def ended(kind: str, error: KedgeError) -> dict[str, Any]:
    """An answer to a task of this kind that ended with an error."""
    state = next((state for type_, state in _STATES if isinstance(error, type_)), "failed")
    return {
        **NOTHING,
        "state": "rollback_failed" if kind == "rollback" else state,
        "reason": one_line(error.message)[:_MAX_TEXT],
        "hint": one_line(error.hint)[:_MAX_TEXT] or None,
        "exit_code": int(error.exit_code),
    }


def late(kind: str, device: str, step: str, deadline_s: float, *, goes_on: bool) -> dict[str, Any]:
    """An answer to a task whose deadline has passed.

    Args:
        step: what it was at.
        goes_on: the device does by itself what it was at.
    """
    reason = f"not done after {deadline_s:g} s: {step}"
    if step == "probation":
        reason = f"not done after {deadline_s:g} s: the deadline lies within its probation"
    hint = "the device goes on by itself, and a resume asks it" if goes_on else "what has arrived is not sent again"
    # A rollout's options are those that it was begun with.
    longer = "or begin the rollout anew with a longer --deadline: devices that serve the release are left"
    return {
        **NOTHING,
        "state": "rollback_failed" if kind == "rollback" else "late",
        "reason": reason,
        "hint": f"kedge status --on {device}" if kind == "rollback" else f"{hint}; {longer}",
        "exit_code": int(ExitCode.OUTCOME_UNKNOWN if goes_on else ExitCode.UNREACHABLE),
    }

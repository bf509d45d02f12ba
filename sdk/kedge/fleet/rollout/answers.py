"""What a worker answers: checked where it comes in, for it was made on another machine; kept as far as it is needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...errors import ExitCode
from .reading import Fields, UnreadableError

__all__ = ["BUILD", "DEPLOY", "FAILURES", "LOOK", "ROLLBACK", "made_answer", "read_answer"]

DEPLOY, BUILD, LOOK, ROLLBACK = "deploy", "build", "look", "rollback"

FAILURES = ("refused", "unreachable", "late", "unknown", "failed", "reverted")
"""States that count against --max-failures."""

_TROUBLE = ("unreachable", "late", "unknown", "failed")
_STATES: Mapping[str, tuple[str, ...]] = {
    DEPLOY: ("updated", "current", "refused", "needs_engine", *_TROUBLE),
    BUILD: ("built", "refused", *_TROUBLE),
    LOOK: ("looked", *_TROUBLE),
    ROLLBACK: ("rolled_back", "rollback_failed", *_TROUBLE),
}
_MAX_REASON = 2000
_MAX_STEPS = 64
_MAX_ENGINE_BYTES = 256 * 1024


def read_answer(told: Any, device: str, kind: str) -> dict[str, Any]:
    """The answer to a task: what the rollout keeps of it.

    Args:
        device, kind: of the task.

    Raises:
        UnreadableError: it makes no sense, or answers another task.
    """
    answer = Fields(told, "the answer")
    if (answer.exact("device"), answer.exact("kind")) != (device, kind):
        raise UnreadableError("the answer is to another task")
    state = answer.one_of("state", _STATES[kind])
    steps = answer.fields("steps")
    names = list(answer.object("steps"))
    if len(names) > _MAX_STEPS or any(len(name) > 80 for name in names):
        raise UnreadableError("the answer has too many steps")
    engine = answer.maybe("engine", answer.object)
    if state in ("needs_engine", "built"):
        Fields(engine, "the engine").exact("key", 200)
        if len(json.dumps(engine)) > _MAX_ENGINE_BYTES:
            raise UnreadableError("the answer says too much of an engine")
    look = answer.maybe("look", answer.fields)
    if state == "looked" and look is None:
        raise UnreadableError("the answer is of a look at nothing")
    return {
        "device": device,
        "kind": kind,
        "state": state,
        "reason": answer.maybe("reason", lambda key: answer.text(key, _MAX_REASON)),
        "hint": answer.maybe("hint", lambda key: answer.text(key, _MAX_REASON)),
        "exit_code": answer.count("exit_code", 0, 255),
        "seconds": answer.number("seconds"),
        "steps": {name: steps.number(name) for name in names},
        "cpu_s": answer.maybe("cpu_s", answer.number),
        "worker": answer.maybe("worker", answer.text),
        "deployed": _deployed(answer.maybe("deployed", answer.fields)),
        "engine": engine,
        "look": _looked(look),
    }


def made_answer(device: str, kind: str, state: str, reason: str, hint: str, code: ExitCode) -> dict[str, Any]:
    """An answer in the place of one that did not come, or makes no sense."""
    return {
        "device": device,
        "kind": kind,
        "state": state,
        "reason": reason,
        "hint": hint,
        "exit_code": int(code),
        "seconds": 0.0,
        "steps": {},
        "cpu_s": None,
        "worker": None,
        "deployed": None,
        "engine": None,
        "look": None,
    }


def _deployed(told: Fields | None) -> dict[str, Any] | None:
    """Of a whole report (docs/deploy-report.md), or of what this made of one."""
    if told is None:
        return None
    after = told.maybe("after", told.fields)
    own = told.maybe("p99_ms", told.number)
    return {
        "release": told.digest("release"),
        "previous": told.maybe("previous", told.digest),
        "push_s": told.number("push_s"),
        "wire_bytes": told.count("wire_bytes"),
        "p99_ms": after.maybe("p99_ms", after.number) if after is not None else own,
    }


def _looked(told: Fields | None) -> dict[str, Any] | None:
    if told is None:
        return None
    return {
        "release": told.maybe("release", told.digest),
        "requests": told.maybe("requests", told.count),
        "errors": told.maybe("errors", told.count),
        "p99_ms": told.maybe("p99_ms", told.number),
        "why": told.maybe("why", lambda key: told.text(key, _MAX_REASON)),
    }

"""What can happen to a rollout: the lines of its ledger.

| event | keys | what |
|---|---|---|
| begun | | the first driver begins |
| resumed | skip_failed | a driver takes over: what was under way is done again |
| wave | wave | its deploys begin |
| task | device, kind | it is handed to a worker |
| answer | answer | what the worker answered |
| lost | device, reason | the worker is gone, through no fault of the device |
| engine | device, engine | one that a device built may go to all of its passport |
| engine_refused | device, key, reason, hint, exit_code | one that a device built is not what it should be |
| watch | wave | its deploys have ended, and its pause begins |
| look | wave | its pause has ended, and each of its devices is looked at |
| gates | wave, gates | they are judged |
| halted | reason, hint | nothing more begins |
| abort | rollback | somebody asked for an end |
| rollback | | what this rollout has updated is taken back |
| interrupted | reason, hint, exit_code | the driver goes, and the rollout can be resumed |
| ended | state, reason, hint | it is over |

Each has `event` and `at_s`, the wall clock, as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...errors import IncompatibleError
from .answers import read_answer
from .reading import Fields

__all__ = ["ENDS", "read_event", "read_gates"]

ENDS = frozenset(
    {
        "answer",
        "engine",
        "engine_refused",
        "gates",
        "halted",
        "abort",
        "rollback",
        "interrupted",
        "ended",
        "watch",
        "resumed",
    }
)
"""Events that end something: they are on the disk before anything follows from them."""

_MAX_TEXT = 4000


def read_event(value: Any) -> dict[str, Any]:
    """A line of a ledger, checked.

    Raises:
        UnreadableError: it is none. IncompatibleError: a later kedge wrote it.
    """
    told = Fields(value, "the event")
    name = told.exact("event", 64)
    if name not in _READERS:
        raise IncompatibleError(
            f"the rollout's ledger holds {name!r}, which this kedge does not know",
            hint="a later kedge drove it: go on with that one",
        )
    return {"event": name, "at_s": told.number("at_s"), **_READERS[name](told)}


def read_gates(told: Fields) -> list[dict[str, Any]]:
    """What the gates of a wave found."""
    found = []
    for each in told.items("gates", 16):
        gate = Fields(each, "a gate")
        found.append(
            {
                "gate": gate.text("gate"),
                "passed": gate.maybe("passed", gate.flag),
                "why": gate.text("why", _MAX_TEXT),
                "figures": gate.object("figures"),
                "limits": gate.object("limits"),
            }
        )
    return found


def _wave(told: Fields) -> dict[str, Any]:
    return {"wave": told.count("wave", 1)}


def _device(told: Fields) -> dict[str, Any]:
    return {"device": told.exact("device", 64)}


def _why(told: Fields) -> dict[str, Any]:
    return {
        "reason": told.maybe("reason", lambda key: told.text(key, _MAX_TEXT)),
        "hint": told.maybe("hint", lambda key: told.text(key, _MAX_TEXT)),
    }


def _blamed(told: Fields) -> dict[str, Any]:
    return {**_why(told), "exit_code": told.count("exit_code", 0, 255)}


def _task(told: Fields) -> dict[str, Any]:
    return {**_device(told), "kind": told.one_of("kind", ("deploy", "build", "look", "rollback"))}


def _answer(told: Fields) -> dict[str, Any]:
    answer = told.fields("answer")
    kind = answer.one_of("kind", ("deploy", "build", "look", "rollback"))
    return {"answer": read_answer(told.object("answer"), answer.exact("device", 64), kind)}


def _engine(told: Fields) -> dict[str, Any]:
    engine = told.fields("engine")
    engine.exact("key", 200)
    engine.object("passport")
    release = engine.fields("release")
    release.digest("digest")
    release.exact("source")
    return {**_device(told), "engine": told.object("engine")}


_READERS: Mapping[str, Callable[[Fields], dict[str, Any]]] = {
    "begun": lambda told: {},
    "resumed": lambda told: {"skip_failed": told.flag("skip_failed")},
    "wave": _wave,
    "task": _task,
    "answer": _answer,
    "lost": lambda told: {**_device(told), "reason": told.text("reason", _MAX_TEXT)},
    "engine": _engine,
    "engine_refused": lambda told: {**_device(told), "key": told.exact("key", 200), **_blamed(told)},
    "watch": _wave,
    "look": _wave,
    "gates": lambda told: {**_wave(told), "gates": read_gates(told)},
    "halted": _why,
    "abort": lambda told: {"rollback": told.flag("rollback")},
    "rollback": lambda told: {},
    "interrupted": _blamed,
    "ended": lambda told: {"state": told.one_of("state", ("done", "halted", "aborted")), **_why(told)},
}

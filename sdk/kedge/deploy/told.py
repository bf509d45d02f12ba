"""What a device tells of itself, looked at once where it arrives: whatever shows it may rely on its types.

Of a deploy, `deployed` does the same.

Keys that are not named here are let pass: a later agent tells more, and an earlier one less where a key may be missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from .pull_engine import nonsense

__all__ = ["Told", "require"]

Told = Literal["rollback", "models", "info", "history"]
Check = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _or_null(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _each(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _object(must: Mapping[str, Check], **may: Check) -> Check:
    return lambda value: (
        isinstance(value, dict)
        and all(key in value and check(value[key]) for key, check in must.items())
        and all(check(value[key]) for key, check in may.items() if key in value)
    )


_ROLLBACK = _object({"model": _text, "version": _number, "release": _text, "previous": _or_null(_text)})
_MODELS = _each(
    _object(
        {
            "model": _text,
            "state": _text,
            "version": _or_null(_number),
            **dict.fromkeys(("precision", "release", "current", "previous", "problem"), _or_null(_text)),
        },
        probation=_or_null(_object({"elapsed_s": _number, "seconds": _number})),
    )
)
_INFO = _object(
    {
        **dict.fromkeys(("version", "python", "os", "arch", "state"), _text),
        "uptime_s": _number,
        "cores": _number,
        "runtimes": _object({}),
        "memory": _object({"rss_bytes": _or_null(_number)}),
    }
)
_HISTORY = _each(_object(dict.fromkeys(("model", "release", "step"), _text)))

_SHAPES: Mapping[Told, Check] = {
    "rollback": _ROLLBACK,
    "models": _MODELS,
    "info": _INFO,
    "history": _HISTORY,
}


def require(device: str, told: Told, value: Any) -> Any:
    """What a device tells, as it came.

    Args:
        told: what it is: what came of a rollback, the rows of `status`, `info`, or the entries of a journal.

    Raises:
        IncompatibleError: its types are not the documented ones.
    """
    if not _SHAPES[told](value):
        raise nonsense(device, f"its {told} is {str(value)[:160]}")
    return value

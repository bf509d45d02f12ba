"""Which settings a snapshot may tell: those that the agent knows; of others it says that they are there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from ..settings import Settings

__all__ = ["LEFT_OUT", "allowed_settings"]

LEFT_OUT = "<left out>"

# Of a model; the class that has them brings runtimes along.
_RULES = ("workers", "queue", "deadline_ms", "drop_stale", "max_batch", "max_delay_us")


def allowed_settings(body: Any) -> Any:
    """The settings of a file, as they stand in it, where the agent knows their names (docs/agent.md).

    What is unknown, or not of the form that a setting of its name has, is left out.
    """
    if not isinstance(body, dict):
        return LEFT_OUT
    return _known(body, Settings())


def _known(body: dict[str, Any], pattern: Any) -> dict[str, Any]:
    names = {each.name for each in fields(pattern)}
    return {key: _value(key, value, getattr(pattern, key)) if key in names else LEFT_OUT for key, value in body.items()}


def _value(key: str, value: Any, pattern: Any) -> Any:
    if isinstance(value, dict) and is_dataclass(pattern):
        return _known(value, pattern)
    if isinstance(value, dict) and isinstance(pattern, Mapping):
        return {name: _plain(each, _RULES if key == "models" else ()) for name, each in value.items()}
    return _plain(value, ())


def _plain(value: Any, names: Collection[str]) -> Any:
    if isinstance(value, dict) and names:
        return {key: _plain(each, ()) if key in names else LEFT_OUT for key, each in value.items()}
    return LEFT_OUT if isinstance(value, (dict, list)) else value

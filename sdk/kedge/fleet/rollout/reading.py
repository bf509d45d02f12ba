"""Reading JSON that was written elsewhere, or long ago: each field is bounded and checked where it is taken out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from kedge_agent.formats.manifest import is_digest

from ...report.text import one_line

__all__ = ["Fields", "UnreadableError"]

T = TypeVar("T")

_MOST_COUNT = 2**53


class UnreadableError(ValueError):
    """A document is not what it should be."""


class Fields:
    """The fields of an object of JSON.

    Args:
        value: what was parsed.
        what: its name, for messages.

    Raises:
        UnreadableError: it is no object; and, of every method, the field is missing or not of its kind.
    """

    def __init__(self, value: Any, what: str) -> None:
        if not isinstance(value, dict):
            raise UnreadableError(f"{what} is {_shown(value)}")
        self._value = value
        self._what = what

    def text(self, key: str, most: int = 200) -> str:
        """Characters that may be printed on one line, `most` at the most."""
        value = self._of(key)
        if not isinstance(value, str) or len(value) > most:
            raise self._wrong(key)
        return one_line(value)

    def exact(self, key: str, most: int = 4096) -> str:
        """Text that is compared or opened, and therefore stays as it is."""
        value = self._of(key)
        if not isinstance(value, str) or not value or len(value) > most:
            raise self._wrong(key)
        return value

    def one_of(self, key: str, choices: Sequence[str]) -> str:
        """One of some words."""
        value = self._of(key)
        if not isinstance(value, str) or value not in choices:
            raise self._wrong(key)
        return value

    def digest(self, key: str) -> str:
        """A sha256 in lower-case hexadecimal digits."""
        value = self._of(key)
        if not isinstance(value, str) or not is_digest(value):
            raise self._wrong(key)
        return value

    def count(self, key: str, least: int = 0, most: int = _MOST_COUNT) -> int:
        """A whole number between bounds."""
        value = self._of(key)
        if type(value) is not int or not least <= value <= most:
            raise self._wrong(key)
        return value

    def number(self, key: str, least: float = 0.0, most: float = math.inf) -> float:
        """A finite number between bounds."""
        value = self._of(key)
        if type(value) not in (int, float) or not math.isfinite(value) or not least <= value <= most:
            raise self._wrong(key)
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self._of(key)
        if not isinstance(value, bool):
            raise self._wrong(key)
        return value

    def items(self, key: str, most: int) -> list[Any]:
        """A list, `most` long at the most."""
        value = self._of(key)
        if not isinstance(value, list) or len(value) > most:
            raise self._wrong(key)
        return value

    def object(self, key: str) -> dict[str, Any]:
        """An object, as it is."""
        value = self._of(key)
        if not isinstance(value, dict):
            raise self._wrong(key)
        return value

    def fields(self, key: str) -> Fields:
        """An object, to be read on."""
        return Fields(self._of(key), f"{self._what}.{key}")

    def maybe(self, key: str, read: Callable[[str], T]) -> T | None:
        """What `read`, a method of this object, takes out; None where the field is null or missing."""
        return None if self._value.get(key) is None else read(key)

    def _of(self, key: str) -> Any:
        if key not in self._value:
            raise UnreadableError(f"{self._what} has no {key}")
        return self._value[key]

    def _wrong(self, key: str) -> UnreadableError:
        return UnreadableError(f"{self._what}.{key} is {_shown(self._value[key])}")


def _shown(value: Any) -> str:
    return one_line(repr(value)[:60])

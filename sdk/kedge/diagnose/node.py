"""A part of a document that a device sent: whatever it holds, looking into it raises nothing and is bounded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ..report.text import one_line

__all__ = ["NOTHING", "Node"]

_MOST_ITEMS = 2000
_MOST_TEXT = 400
_LARGEST = 1e18
# Linux, proc_sys_kernel(5): pid_max of 64-bit systems.
_LARGEST_PID = 1 << 22


class Node:
    """A value of a received JSON document. What is absent, or of another kind than asked for, is None or empty."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __bool__(self) -> bool:
        return isinstance(self._value, dict) and bool(self._value)

    @property
    def value(self) -> Any:
        """As it was received."""
        return self._value

    def child(self, *keys: str) -> Node:
        """What lies below, key by key."""
        found = self._value
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return Node(found)

    def number(self, key: str) -> float | None:
        """A finite number; a boolean is none."""
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return value if math.isfinite(value) and abs(value) <= _LARGEST else None

    def amount(self, key: str) -> float | None:
        """A number that is not negative: a size, a count, a time."""
        value = self.number(key)
        return value if value is not None and value >= 0 else None

    def size(self, key: str) -> int | None:
        """A whole number that is not negative, of bytes or of things."""
        value = self.amount(key)
        return None if value is None else int(value)

    def pid(self, key: str = "pid") -> int | None:
        """The number of a process that may be ended: not the first one's."""
        value = self.size(key)
        return value if value is not None and 1 < value <= _LARGEST_PID else None

    def text(self, key: str) -> str | None:
        """A text of one line, cut, without what could steer a terminal."""
        return _line(self._get(key))

    def flag(self, key: str) -> bool | None:
        """True or false."""
        value = self._get(key)
        return value if isinstance(value, bool) else None

    def nodes(self, key: str) -> list[Node]:
        """The objects of a list."""
        value = self._get(key)
        return [Node(each) for each in value[:_MOST_ITEMS] if isinstance(each, dict)] if isinstance(value, list) else []

    def texts(self, key: str) -> list[str]:
        """The texts of a list."""
        value = self._get(key)
        lines = map(_line, value[:_MOST_ITEMS]) if isinstance(value, list) else ()
        return [line for line in lines if line]

    def items(self) -> Iterator[tuple[str, Node]]:
        """Keys, as texts of one line, and what lies below each."""
        if isinstance(self._value, dict):
            for count, (key, value) in enumerate(self._value.items()):
                if count == _MOST_ITEMS:
                    return
                yield _line(key) or "", Node(value)

    def numbers(self) -> dict[str, float]:
        """What of it are numbers that are not negative, by name."""
        if not isinstance(self._value, dict):
            return {}
        names = list(self._value)[:_MOST_ITEMS]
        return {_line(name) or "": value for name in names if (value := self.amount(name)) is not None}

    def _get(self, key: str) -> Any:
        return self._value.get(key) if isinstance(self._value, dict) else None


NOTHING = Node(None)


def _line(value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    return one_line(value[: 4 * _MOST_TEXT])[:_MOST_TEXT]

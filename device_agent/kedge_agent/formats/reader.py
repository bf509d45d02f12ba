"""Read received JSON strictly: every key is taken, none is left over, and a message says where it went wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["ManifestError", "Reader"]

T = TypeVar("T")


class ManifestError(Exception):
    """The manifest is malformed; the message says where."""


class Reader:
    """A JSON object with a path for messages; every key must be taken, none may be left over."""

    def __init__(self, value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise ManifestError(f"{path} is not an object")
        self._left = dict(value)
        self.path = path

    def __contains__(self, key: str) -> bool:
        """Whether a key is there and was not taken yet."""
        return key in self._left

    def take(self, key: str, kind: type[T]) -> T:
        """The value of a key, which must be of this very type."""
        if key not in self._left:
            raise ManifestError(f"{self.path}.{key} is missing")
        value = self._left.pop(key)
        if type(value) is not kind:
            raise ManifestError(f"{self.path}.{key} is not {kind.__name__}")
        return value

    def text(self, key: str, allowed: Callable[[str], object] | None = None, limit: int = 256) -> str:
        """A short text."""
        value = self.take(key, str)
        if len(value) > limit or (allowed is not None and not allowed(value)):
            raise ManifestError(f"{self.path}.{key} is not acceptable: {value[:80]!r}")
        return value

    def option(self, key: str, absent: str, allowed: tuple[str, ...]) -> str:
        """One of a few texts, or `absent` where the key is not there."""
        # What is absent may not be written too: one content, one manifest, one digest.
        return self.text(key, allowed.__contains__) if key in self._left else absent

    def integer(self, key: str, low: int, high: int) -> int:
        """A whole number within bounds."""
        value = self.take(key, int)
        if not low <= value <= high:
            raise ManifestError(f"{self.path}.{key} is outside {low}..{high}: {value}")
        return value

    def decimal(self, key: str, low: float, high: float) -> float:
        """A number written as text, within bounds."""
        from decimal import Decimal, InvalidOperation

        value = self.text(key, limit=40)
        try:
            number = Decimal(value)
        except InvalidOperation:
            raise ManifestError(f"{self.path}.{key} is not a decimal number: {value!r}") from None
        if not number.is_finite() or not low <= float(number) <= high:
            raise ManifestError(f"{self.path}.{key} is outside {low:g}..{high:g}: {value}")
        return float(number)

    def items(self, key: str, limit: int, *, least: int = 0) -> list[Any]:
        """A list of bounded length."""
        value: list[Any] = self.take(key, list)
        if not least <= len(value) <= limit:
            raise ManifestError(f"{self.path}.{key} has {len(value)} entries, allowed {least}..{limit}")
        return value

    def objects(self, key: str, limit: int, *, least: int = 0) -> list[Reader]:
        """A list of objects."""
        return [Reader(value, f"{self.path}.{key}[{i}]") for i, value in enumerate(self.items(key, limit, least=least))]

    def child(self, key: str) -> Reader:
        """An object."""
        return Reader(self.take(key, dict), f"{self.path}.{key}")

    def done(self) -> None:
        """Refuse what is left over."""
        if self._left:
            raise ManifestError(f"{self.path} has unknown keys: {', '.join(sorted(self._left))[:200]}")

"""Which of thousands of known values stand in a line, in time that grows with the line alone.

Each value, and each of its encoded forms, is filed under three letters of it that few others have; a line is asked for
the threes of letters in it, and only what is filed under these is looked for.
"""

from __future__ import annotations

from typing import NamedTuple

from .encoded import Forms

__all__ = ["Needles", "Present"]

_LETTERS = 3


class Present(NamedTuple):
    """A known value that stands in a text. forms: its encoded ones that do."""

    value: str
    kind: str
    forms: tuple[str, ...]


class _Needle(NamedTuple):
    """text: what is looked for. form: it is another than the value, and its case counts."""

    text: str
    form: bool
    value: str
    kind: str


class Needles:
    """Known values, as they are added."""

    def __init__(self) -> None:
        self._filed: dict[str, list[_Needle]] = {}
        self._letters: set[str] = set()
        self._others: list[_Needle] = []

    def add(self, value: str, kind: str, forms: Forms) -> None:
        """Look for a value from now on: itself in any case, its forms as they are written."""
        self._file(_Needle(value.lower(), False, value, kind))
        for form in forms.packed | forms.escaped:
            self._file(_Needle(form, True, value, kind))

    def found(self, line: str) -> list[Present]:
        """The known values in a line, the longest first: one may hold another."""
        lower = line.lower()
        needles = [needle for letters in self._letters & _threes(lower) for needle in self._filed[letters]]
        present: dict[tuple[str, str], list[str]] = {}
        for needle in (*needles, *self._others):
            if needle.text in (line if needle.form else lower):
                forms = present.setdefault((needle.value, needle.kind), [])
                if needle.form:
                    forms.append(needle.text)
        found = [Present(value, kind, tuple(sorted(forms))) for (value, kind), forms in present.items()]
        return sorted(found, key=lambda each: (-len(each.value), each.value))

    def _file(self, needle: _Needle) -> None:
        threes = _threes(needle.text.lower())
        letters = min(threes, key=lambda each: (len(self._filed.get(each, ())), each), default=None)
        if letters is None:
            self._others.append(needle)
            return
        self._letters.add(letters)
        self._filed.setdefault(letters, []).append(needle)


def _threes(text: str) -> set[str]:
    return {text[at : at + _LETTERS] for at in range(len(text) - _LETTERS + 1)}

"""When memory that one large request needed is worth giving back."""

from __future__ import annotations

__all__ = ["Peak"]

_USUAL_RUNS = 64
_LEAST_BYTES = 1 << 20


class Peak:
    """Watches what requests need, in bytes, each in its turn.

    Memory is given back after 64 requests in a row that needed less than half of the largest: at once would cost those
    who send large and small ones in turns, and never would keep one request's peak for years.
    """

    def __init__(self) -> None:
        self._largest = 0
        self._smaller = 0
        self._recent = 0

    def passed(self, need: int) -> bool:
        """Whether the peak has passed, with this request; the largest of the recent ones is then the new one."""
        if 2 * need > self._largest or self._largest < _LEAST_BYTES:
            self._largest = max(self._largest, need)
            self._smaller = self._recent = 0
            return False
        self._smaller += 1
        self._recent = max(self._recent, need)
        if self._smaller < _USUAL_RUNS:
            return False
        self._largest, self._smaller, self._recent = self._recent, 0, 0
        return True

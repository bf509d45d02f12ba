"""What the recorder itself costs: processor time of its own thread, and how often it may read sensors because of it."""

from __future__ import annotations

from collections import deque

__all__ = ["CPU_SHARE", "Cost"]

CPU_SHARE = 0.01
"""Of one core: where its thread takes more, it reads sensors less often."""

_WINDOW = 60
_MOST_EVERY = 16


class Cost:
    """Shares of one core over the last 60 seconds that were recorded.

    every: sensors are read in one of so many seconds.
    """

    def __init__(self) -> None:
        self._window: deque[tuple[float, float]] = deque(maxlen=_WINDOW)
        self._since = 0
        self.every = 1

    def add(self, processor_s: float, seconds: float) -> None:
        """What one second cost."""
        self._window.append((processor_s, seconds))
        self._since += 1
        share = self.cpu_share
        if self._since < _WINDOW or share is None:
            return
        # Each step is judged by a window of its own.
        self._since = 0
        if share > CPU_SHARE:
            self.every = min(2 * self.every, _MOST_EVERY)
        elif share < CPU_SHARE / 4:
            # Twice the readings cost at most twice as much: still below.
            self.every = max(self.every // 2, 1)

    @property
    def cpu_share(self) -> float | None:
        """Of one core; None: nothing was recorded yet."""
        seconds = sum(each for _, each in self._window)
        return sum(each for each, _ in self._window) / seconds if seconds else None

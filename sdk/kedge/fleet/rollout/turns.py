"""Whose turn it is: devices in an order, of which a group's limit may hold some back while others go first."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Sequence

from ..inventory import Limit

__all__ = ["Turns"]


class Turns:
    """A queue that knows limits. Each step costs the logarithm of its length, and one look at each set of limits.

    Args:
        names: of all devices; their places are their indices.
    """

    def __init__(self, names: Sequence[str], limits: Sequence[Limit]) -> None:
        self._most = [limit.concurrency for limit in limits]
        held: defaultdict[str, list[int]] = defaultdict(list)
        for place, limit in enumerate(limits):
            for name in limit.devices:
                held[name].append(place)
        self._limits = [tuple(held.get(name, ())) for name in names]
        self.clear()

    def clear(self) -> None:
        """Nobody waits, and nobody has a turn."""
        self._used: Counter[int] = Counter()
        self._queued: dict[int, tuple[int, int]] = {}
        # Devices that the same limits hold: where the first of them is held back, all are.
        self._heaps: dict[tuple[int, ...], list[tuple[int, int]]] = {}

    def push(self, index: int, *, first: bool = False) -> None:
        """A device waits for its turn; `first`: before all that are not."""
        entry = (0 if first else 1, index)
        self._queued[index] = entry
        heapq.heappush(self._heaps.setdefault(self._limits[index], []), entry)

    def peek(self) -> int | None:
        """The next device that no limit holds back; None: there is none."""
        found: tuple[int, int] | None = None
        for limits, heap in self._heaps.items():
            # One that was taken, or pushed anew, leaves its entry behind.
            while heap and self._queued.get(heap[0][1]) != heap[0]:
                heapq.heappop(heap)
            if not heap or any(self._used[each] >= self._most[each] for each in limits):
                continue
            if found is None or heap[0] < found:
                found = heap[0]
        return None if found is None else found[1]

    def take(self, index: int) -> None:
        """A device has its turn."""
        self._queued.pop(index, None)
        self._used.update(self._limits[index])

    def give_back(self, index: int) -> None:
        """Its turn is over."""
        self._used.subtract(self._limits[index])

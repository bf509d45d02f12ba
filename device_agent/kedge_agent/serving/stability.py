"""When crashes are forgotten: a release that answers requests again has not crashed in a row."""

from __future__ import annotations

import threading

from ..store.crashes import Marks
from .repository import Repository

__all__ = ["Stability"]

_STABLE_S = 60.0
# A run that lasts as long may be one that hangs, as the last one did.
_LONG_S = 10.0


class Stability:
    """Looks every minute, for as long as crashes are counted, which models do their work again."""

    def __init__(self, marks: Marks, repository: Repository) -> None:
        self._marks = marks
        self._repository = repository
        self._end = threading.Event()
        threading.Thread(target=self._watch, name="stability", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._end.set()

    def look(self) -> None:
        """Forget the crashes of models that have answered requests, and no run of which takes long now."""
        self._marks.calm()
        for live in self._repository.live():
            if live.statistics.outcomes()[0] and live.pool.stuck_s() < _LONG_S:
                self._marks.forget(live.manifest.model)

    def _watch(self) -> None:
        while not self._end.wait(_STABLE_S):
            self.look()
            if not self._marks.suspects:
                return

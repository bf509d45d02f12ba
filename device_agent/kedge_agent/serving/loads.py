"""What is being loaded now, and which loads take so long that nobody expects their end."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from .staging import Staged

__all__ = ["Loads"]


class Loads:
    """Loads that go on in this process, from any thread."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._going: dict[int, tuple[Staged, float]] = {}

    @contextlib.contextmanager
    def going(self, staged: Staged) -> Iterator[None]:
        """It is being loaded while the context is open."""
        thread = threading.get_ident()
        with self._guard:
            self._going[thread] = staged, time.monotonic()
        try:
            yield
        finally:
            with self._guard:
                del self._going[thread]

    def late(self) -> dict[tuple[str, str], float]:
        """Model and release of loads that take longer than one may (`Staged.patience_s`); for how many seconds."""
        now = time.monotonic()
        with self._guard:
            going = list(self._going.values())
        over = {
            (staged.manifest.model, staged.manifest.digest): now - begin - staged.patience_s for staged, begin in going
        }
        return {name: seconds for name, seconds in over.items() if seconds > 0}

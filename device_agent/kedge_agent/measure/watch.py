"""The device's conditions while something is measured, read alongside by a thread that costs little."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from ..formats.trust import Conditions
from .sensors.clocks import read_clocks
from .sensors.processor import read_processor_time
from .sensors.throttle import read_throttles

__all__ = ["read_conditions", "watch"]

_ROOT = Path("/")
# A reading takes some 20 µs a file: about a thousandth of the time, on one processor.
_EVERY_S = 0.2
_MOST_READINGS = 8192


def read_conditions(root: Path = _ROOT) -> Conditions:
    """What the sensors say now."""
    clocks, no_clocks = read_clocks(root)
    throttled, no_throttles = read_throttles(root)
    processor = read_processor_time(root)
    no_processor = [] if processor is not None else ["other processes: /proc/stat cannot be read"]
    return Conditions(
        {clock.name: clock.hz for clock in clocks},
        {clock.name: clock.locked for clock in clocks},
        throttled,
        processor,
        (*no_clocks, *no_throttles, *no_processor),
    )


@contextlib.contextmanager
def watch(root: Path = _ROOT) -> Iterator[list[Conditions]]:
    """Read conditions at the beginning, every 200 ms, and when the context ends; the list is whole then."""
    readings = [read_conditions(root)]
    enough = threading.Event()

    def read_on() -> None:
        while not enough.wait(_EVERY_S) and len(readings) < _MOST_READINGS:
            readings.append(read_conditions(root))

    thread = threading.Thread(target=read_on, daemon=True, name="kedge-watch")
    thread.start()
    try:
        yield readings
    finally:
        enough.set()
        thread.join()
        readings.append(read_conditions(root))

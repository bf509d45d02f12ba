"""The device's conditions while something is measured, read alongside by a thread that costs little."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from ..formats.trust import Conditions
from .sensors.clocks import Clock, find_clocks
from .sensors.processor import read_processor_time
from .sensors.throttle import read_throttles

__all__ = ["read_conditions", "watch"]

_ROOT = Path("/")
# A reading of clocks takes some 7 µs a file, and it takes turns with what is measured.
_EVERY_S = 0.2
_MOST_READINGS = 8192


def read_conditions(root: Path = _ROOT) -> Conditions:
    """What the sensors say now."""
    clocks, no_clocks = find_clocks(root)
    throttled, no_throttles = read_throttles(root)
    processor = read_processor_time(root)
    no_processor = [] if processor is not None else ["other processes: /proc/stat cannot be read"]
    return Conditions(
        _hertz(clocks),
        {clock.name: clock.locked() for clock in clocks},
        throttled,
        processor,
        (*no_clocks, *no_throttles, *no_processor),
    )


@contextlib.contextmanager
def watch(root: Path = _ROOT) -> Iterator[list[Conditions]]:
    """Read all conditions at the beginning and when the context ends, and the clocks every 200 ms in between.

    The list is whole when the context has ended.
    """
    readings = [read_conditions(root)]
    clocks, _ = find_clocks(root)
    enough = threading.Event()

    def read_on() -> None:
        while not enough.wait(_EVERY_S) and len(readings) < _MOST_READINGS:
            readings.append(Conditions(_hertz(clocks)))

    thread = threading.Thread(target=read_on, daemon=True, name="kedge-watch")
    if clocks:
        thread.start()
    try:
        yield readings
    finally:
        enough.set()
        if clocks:
            thread.join()
        readings.append(read_conditions(root))


def _hertz(clocks: list[Clock]) -> dict[str, int]:
    return {clock.name: hz for clock in clocks if (hz := clock.hz()) is not None}

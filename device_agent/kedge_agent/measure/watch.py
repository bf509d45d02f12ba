"""The device's conditions while something is measured, read alongside by a thread that costs little."""

from __future__ import annotations

import contextlib
import os
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
_NO_STAT = "/proc/stat cannot be read"
_UNTOLD = "an emulated process is not told what it took itself"


def read_conditions(root: Path = _ROOT) -> Conditions:
    """What the sensors say now."""
    clocks, no_clocks = find_clocks(root)
    throttled, no_throttles = read_throttles(root)
    emulated = _emulator(root)
    # qemu answers for /proc/self/stat, and leaves the processor's time out.
    processor = read_processor_time(root) if emulated is None else None
    no_processor = [] if processor is not None else [f"other processes: {_UNTOLD if emulated else _NO_STAT}"]
    return Conditions(
        _hertz(clocks),
        {clock.name: clock.locked() for clock in clocks},
        throttled,
        processor,
        (*no_clocks, *no_throttles, *no_processor),
        emulated,
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


def _emulator(root: Path) -> str | None:
    """The program that stands between this process and the processor, or None.

    An emulator of programs (qemu's user mode) answers for /proc/self/exe as the program would see it, and does not for
    /proc/thread-self/exe (linux-user/syscall.c, `do_openat` and `do_readlink`): where they differ, the latter is it.
    """
    try:
        seen, true = (os.readlink(root / "proc" / each / "exe") for each in ("self", "thread-self"))
    except OSError:
        return None
    return Path(true).name if seen != true else None


def _hertz(clocks: list[Clock]) -> dict[str, int]:
    return {clock.name: hz for clock in clocks if (hz := clock.hz()) is not None}

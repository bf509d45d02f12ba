"""Where a channel's figure stands: numbers in files, or several in one table, each with the unit it is told in.

A channel is called `kind.name`, and its kind says its unit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["UNITS", "Figure", "Found", "Table", "channel_name", "unit_of"]

UNITS: Mapping[str, str] = {
    "temperature": "°C",
    "clock": "Hz",
    "load": "ratio",
    "power": "W",
    "voltage": "V",
    "current": "A",
    "memory": "bytes",
    "swap": "bytes",
    "pressure": "ratio",
    "fan": "ratio",
    "throttle": "count",
    "limit": "ratio",
}
"""By kind; a ratio is 0 to 1."""

_ENDINGS = {"_rpm": "rpm", "_per_s": "bytes/s"}
"""Of names whose unit is another than their kind's."""

_LONGEST_NAME = 48


@dataclass(frozen=True)
class Figure:
    """A figure that is one number of a file, or made of one number of each of several that can be read.

    scale: from the files' unit to the channel's. least: what is below it is no reading. tally: the figure is how often
    it was read and above 0, since that began. every_s: it is not read more often, where reading is slow.
    """

    channel: str
    paths: tuple[Path, ...]
    scale: float = 1.0
    combine: Callable[[Iterable[int]], float] = max
    least: int = -(1 << 62)
    tally: bool = False
    every_s: float = 0.0

    @property
    def channels(self) -> tuple[str, ...]:
        """The one."""
        return (self.channel,)


@dataclass(frozen=True)
class Table:
    """Several figures of one file, or of several that belong together.

    parse: what each file says, None for one that cannot be read, and the time in seconds by a clock that only goes
    forward, to figures by channel, in the channels' units; what makes no sense is left out.
    """

    paths: tuple[Path, ...]
    channels: tuple[str, ...]
    parse: Callable[[tuple[str | None, ...], float], Mapping[str, float]]
    every_s: float = 0.0


@dataclass(frozen=True)
class Found:
    """What a reader found under a root. missing: a line for each thing that is not there, with the reason."""

    sources: tuple[Figure | Table, ...] = ()
    missing: tuple[str, ...] = ()


def channel_name(kind: str, name: str) -> str:
    """A channel's name; what a device calls it is cut down to letters, digits, `_`, `-`, `.` and single spaces."""
    return f"{kind}.{re.sub(r'[^A-Za-z0-9_.-]+', ' ', name).strip()[:_LONGEST_NAME]}"


def unit_of(channel: str) -> str:
    """The unit in which a channel is told."""
    for ending, unit in _ENDINGS.items():
        if channel.endswith(ending):
            return unit
    return UNITS[channel.partition(".")[0]]

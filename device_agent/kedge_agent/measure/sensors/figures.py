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
}
"""By kind; a fan whose turns are counted is in rpm instead, and called `fan.…_rpm`. A ratio is 0 to 1."""

_LONGEST_NAME = 48


@dataclass(frozen=True)
class Figure:
    """A figure that is one number of a file, or made of one number of each of several.

    combine: of those numbers that can be read; needs_all: it says nothing unless all can. scale: from the files' unit
    to the channel's. every_s: not read more often, where reading is slow.
    """

    channel: str
    paths: tuple[Path, ...]
    scale: float = 1.0
    combine: Callable[[Iterable[int]], float] = max
    needs_all: bool = False
    every_s: float = 0.0


@dataclass(frozen=True)
class Table:
    """Several figures of one file. parse: the text to figures by channel, in the channels' units; what makes no sense is
    left out."""

    path: Path
    channels: tuple[str, ...]
    parse: Callable[[str], Mapping[str, float]]


@dataclass(frozen=True)
class Found:
    """What a reader found under a root. missing: a line for each thing that is not there, with the reason."""

    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    missing: tuple[str, ...] = ()


def channel_name(kind: str, name: str) -> str:
    """A channel's name; what a device calls it is cut down to letters, digits, `_`, `-`, `.` and single spaces."""
    return f"{kind}.{re.sub(r'[^A-Za-z0-9_.-]+', ' ', name).strip()[:_LONGEST_NAME]}"


def unit_of(channel: str) -> str:
    """The unit in which a channel is told."""
    return "rpm" if channel.startswith("fan.") and channel.endswith("_rpm") else UNITS[channel.partition(".")[0]]

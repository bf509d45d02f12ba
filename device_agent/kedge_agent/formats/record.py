"""What the flight recorder writes down of a second, or of a longer time that seconds were merged into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .histogram import Histogram

__all__ = ["COUNT", "ModelRecord", "Record", "Start"]

COUNT = "count"
"""Unit of channels that count from the system's start on: their differences tell, and no mean."""


@dataclass(frozen=True)
class ModelRecord:
    """What one release of a model did.

    total, compute: times of the requests that were answered, from head to response and of the run alone.
    failures: requests that were not answered, by kind of fault.
    waiting: requests that waited for their turn, at the most.
    """

    release: str
    version: int
    total: Histogram = field(default_factory=Histogram)
    compute: Histogram = field(default_factory=Histogram)
    failures: Mapping[str, int] = field(default_factory=dict)
    waiting: int = 0


@dataclass(frozen=True)
class Start:
    """A daemon began. how: `start`, `takeover` of a running one, or `after-crash` of one that did not end in order."""

    version: str
    pid: int
    how: str


@dataclass(frozen=True)
class Record:
    """One second, or a longer time.

    at_s: wall clock at its end. boot: which start of the system. monotonic_s: seconds since then, sleep counted
        (CLOCK_BOOTTIME); so jumps of the wall clock are seen.
    seconds: how long it lasted that was recorded. 0: it is a start, or what a release did that was replaced meanwhile.
    models: by name.
    channels: readings by name; means, of those that were merged, and the last of those that count. What could not be
        read is not there.
    lows, highs: least and most of each channel, where seconds were merged; else empty.
    units: of channels.
    throttled: share of the time in which a counter of throttling rose; None: there is none, or it was not read.
    start: None in all but records of starts.
    """

    at_s: float
    boot: str
    monotonic_s: float
    seconds: float
    models: Mapping[str, ModelRecord] = field(default_factory=dict)
    channels: Mapping[str, float] = field(default_factory=dict)
    lows: Mapping[str, float] = field(default_factory=dict)
    highs: Mapping[str, float] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    throttled: float | None = None
    start: Start | None = None

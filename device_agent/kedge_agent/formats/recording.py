"""A recording of the flight recorder: read, merged into longer steps, and summed up.

On a device and on a host alike; of what a device sent, nothing is believed: `read_records` is bounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from .histogram import Histogram
from .record import COUNT, ModelRecord, Record, Start
from .recording_bytes import Encoder, read_boots, read_ends, read_records, read_starts
from .recording_frames import Skipped, pack

__all__ = [
    "THROTTLE",
    "Encoder",
    "Histogram",
    "Merger",
    "ModelRecord",
    "Record",
    "Skipped",
    "Start",
    "Summary",
    "latest_models",
    "pack",
    "read_boots",
    "read_ends",
    "read_records",
    "read_starts",
    "resample",
    "summarise",
]

THROTTLE = "throttle."
"""Channels that begin so count what slowed the device down."""

_GAP_S = 1.5
_JUMP_S = 2.0


class _Readings:
    """Channels of many records as one's."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.lasts: dict[str, float] = {}
        self.lows: dict[str, float] = {}
        self.highs: dict[str, float] = {}
        self.units: dict[str, str] = {}
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}
        self._throttled = self._watched = 0.0

    def add(self, record: Record) -> None:
        seconds = record.seconds
        self.seconds += seconds
        self.units.update(record.units)
        for name, value in record.channels.items():
            self._sums[name] = self._sums.get(name, 0.0) + value * seconds
            self._weights[name] = self._weights.get(name, 0.0) + seconds
            self.lasts[name] = value
            self.lows[name] = min(self.lows.get(name, math.inf), record.lows.get(name, value))
            self.highs[name] = max(self.highs.get(name, -math.inf), record.highs.get(name, value))
        if record.throttled is not None:
            self._throttled += record.throttled * seconds
            self._watched += seconds

    def means(self) -> dict[str, float]:
        """By channel; of those that count, the newest."""
        return {name: self._mean(name) for name in self.lasts}

    @property
    def throttled(self) -> float | None:
        """Share of the time."""
        return self._throttled / self._watched if self._watched else None

    def _mean(self, name: str) -> float:
        weight = self._weights[name]
        return self.lasts[name] if self.units.get(name) == COUNT or not weight else self._sums[name] / weight


class Merger:
    """Many records as one; where a model's release changes, the last one names what all of them did."""

    def __init__(self) -> None:
        self._last: Record | None = None
        self._models: dict[str, ModelRecord] = {}
        self._readings = _Readings()

    @property
    def seconds(self) -> float:
        """How much has been recorded of the time."""
        return self._readings.seconds

    def add(self, record: Record) -> None:
        """Merge one, which is no start."""
        self._last = record
        for name, each in record.models.items():
            self._models[name] = _joined(self._models.get(name), each, late=not record.seconds)
        self._readings.add(record)

    def merged(self) -> Record | None:
        """All that were added; None: none was."""
        if self._last is None:
            return None
        readings = self._readings
        return Record(
            self._last.at_s,
            self._last.boot,
            self._last.monotonic_s,
            readings.seconds,
            self._models,
            readings.means(),
            readings.lows,
            readings.highs,
            readings.units,
            readings.throttled,
        )


def _joined(sofar: ModelRecord | None, each: ModelRecord, *, late: bool) -> ModelRecord:
    """late: it is of a release that has been replaced."""
    if sofar is None:
        # A merger writes into its own histograms alone.
        total, compute = Histogram(), Histogram()
        failures: dict[str, int] = {}
        waiting = 0
    else:
        total, compute, failures, waiting = sofar.total, sofar.compute, dict(sofar.failures), sofar.waiting
    total.merge(each.total)
    compute.merge(each.compute)
    for kind, count in each.failures.items():
        failures[kind] = failures.get(kind, 0) + count
    named = sofar if late and sofar is not None else each
    return ModelRecord(named.release, named.version, total, compute, failures, max(waiting, each.waiting))


def resample(records: Iterable[Record], step_s: float) -> Iterator[Record]:
    """Records merged into steps of the wall clock, in order; a step of which nothing was recorded is not there.

    Starts are passed on as they come.
    """
    merger = Merger()
    step: int | None = None
    for record in records:
        if record.start is not None:
            yield record
            continue
        # A record tells of the time that ends with it.
        now = math.ceil(record.at_s / step_s) - 1
        if step is not None and now != step and (merged := merger.merged()) is not None:
            yield merged
            merger = Merger()
        step = now
        merger.add(record)
    if (merged := merger.merged()) is not None:
        yield merged


def latest_models(records: Iterable[Record]) -> dict[str, ModelRecord]:
    """What the last release of each model did, by name."""
    models: dict[str, ModelRecord] = {}
    for record in records:
        _follow(models, record)
    return models


def _follow(models: dict[str, ModelRecord], record: Record) -> None:
    for name, each in record.models.items():
        sofar = models.get(name)
        if sofar is None or sofar.release == each.release:
            models[name] = _joined(sofar, each, late=False)
        elif record.seconds:
            # What a release did that has been replaced is no part of the one that replaced it.
            models[name] = _joined(None, each, late=False)


class Summary:
    """What happened in all, of records that are added one at a time, in order."""

    def __init__(self) -> None:
        self._readings = _Readings()
        self._models: dict[str, ModelRecord] = {}
        self._throttles: dict[str, float] = {}
        self._counted: dict[str, float] = {}
        self._from_s: float | None = None
        self._last: Record | None = None
        self._gaps = self._jumps = 0

    @property
    def seconds(self) -> float:
        """How much has been recorded of the time."""
        return self._readings.seconds

    def add(self, record: Record) -> None:
        """The next; starts count for nothing."""
        if record.start is not None:
            return
        _follow(self._models, record)
        if record.seconds == 0:
            return
        last = self._last
        if last is None:
            self._from_s = record.at_s - record.seconds
        else:
            same = last.boot == record.boot
            passed = record.monotonic_s - last.monotonic_s
            self._gaps += not same or passed - record.seconds > _GAP_S
            self._jumps += same and abs(record.at_s - last.at_s - passed) >= _JUMP_S
            if not same:
                self._counted = {}
        for name, value in record.channels.items():
            if name.startswith(THROTTLE):
                rise = max(value - self._counted.get(name, value), 0.0)
                self._throttles[name] = self._throttles.get(name, 0.0) + rise
                self._counted[name] = value
        self._last = record
        self._readings.add(record)

    def to_json(self) -> dict[str, Any]:
        """As `summarise` tells it."""
        return {
            "from_s": self._from_s,
            "to_s": None if self._last is None else self._last.at_s,
            "seconds": self.seconds,
            "models": {name: _figures(each) for name, each in self._models.items()},
            "channels": _channels(self._readings),
            "throttled_share": self._readings.throttled,
            "throttles": {name.removeprefix(THROTTLE): int(count) for name, count in self._throttles.items()},
            "gaps": self._gaps,
            "clock_jumps": self._jumps,
        }


def summarise(records: Iterable[Record]) -> dict[str, Any]:
    """What happened in all, as JSON: times in seconds of the wall clock, latencies in milliseconds.

    {from_s, to_s, seconds (recorded), models: {name: {release, version, requests, failures: {kind: n}, waiting,
    total_p50_ms, total_p99_ms, compute_p50_ms, compute_p99_ms}}, channels: {name: {min, mean, max, last, unit}},
    throttled_share, throttles: {name: count}, gaps, clock_jumps}. What is not known is None.

    A model's figures are those of its last release; `requests` are those that were answered, and percentiles are of
    these. `gaps` are times of more than 1.5 s that nobody recorded, and starts of the system; `clock_jumps` moved the
    wall clock by 2 s or more.
    """
    summary = Summary()
    for record in records:
        summary.add(record)
    return summary.to_json()


def _figures(each: ModelRecord) -> dict[str, Any]:
    total, compute = (histogram.percentiles_ns((50, 99)) for histogram in (each.total, each.compute))
    return {
        "release": each.release,
        "version": each.version,
        "requests": each.total.count,
        "failures": dict(each.failures),
        "waiting": each.waiting,
        "total_p50_ms": _ms(total[0]),
        "total_p99_ms": _ms(total[1]),
        "compute_p50_ms": _ms(compute[0]),
        "compute_p99_ms": _ms(compute[1]),
    }


def _ms(ns: float | None) -> float | None:
    return None if ns is None else ns / 1e6


def _channels(readings: _Readings) -> dict[str, Any]:
    return {
        name: {
            "min": readings.lows[name],
            "mean": mean,
            "max": readings.highs[name],
            "last": readings.lasts[name],
            "unit": readings.units.get(name, ""),
        }
        for name, mean in readings.means().items()
    }

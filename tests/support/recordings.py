"""Two hours of an Orin's recording, made up: a deploy, a time of throttling, a crash, ten minutes that are missing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

from kedge_agent.formats.recording import Encoder, Histogram, ModelRecord, Record, Start

#: 2026-11-26 05:00:00 UTC.
BEGIN_S = 1_795_669_200.0
SECONDS = 7200
BOOT = "c0ffee00-1234-4321-abcd-123456789abc"
OLD, NEW, OTHER = "ab" * 32, "cd" * 32, "ef" * 32

DEPLOYED, THROTTLED, LOST, REVERTED = 2000, range(3000, 3900), range(5600, 6200), 6900

UNITS = {
    "temperature": "°C",
    "clock": "Hz",
    "load": "ratio",
    "power": "W",
    "memory": "bytes",
    "swap": "bytes",
    "throttle": "count",
    "pressure": "ratio",
    "fan": "ratio",
    "recorder": "ratio",
}


def histogram(*ms: float) -> Histogram:
    out = Histogram()
    for each in ms:
        out.record(int(each * 1e6))
    return out


def recorded(second: int) -> Record:
    """What was recorded of a second."""
    slow = second in THROTTLED
    wave = math.sin(second / 900)
    ms = [3 + wave + (second * 7919 % 17 + index) / 10 + (6 if slow else 0) for index in range(5)]
    release, version = (OLD, 3) if second < DEPLOYED else (NEW, 4)
    failures = {"busy": 1} if second % 500 == 0 else {}
    models = {
        "digits": ModelRecord(release, version, histogram(*ms), histogram(*(each - 0.5 for each in ms)), failures)
    }
    if 5000 < second < REVERTED:
        models["detector"] = ModelRecord(OTHER, 1, histogram(20 + second % 9), histogram(19), {})
    channels = {
        "temperature.cpu": 50 + 10 * wave,
        "temperature.gpu": 48 + 12 * wave,
        "temperature.tj": 62 + 12 * wave,
        "clock.cpu": 0.9e9 if slow else 1.5e9,
        "clock.gpu": 3.0e8 if slow else 6.2e8,
        "load.cpu": 0.4,
        "load.gpu": 0.8,
        "power.VDD_IN": 9 + 3 * wave,
        "power.VDD_CPU_GPU_CV": 4.2,
        "memory.available": 3.1e9 - second * 1e5,
        "memory.total": 8e9,
        "memory.agent_rss": 4.1e8,
        "swap.used": 0.0,
        "pressure.memory_some": 0.25 if slow else 0.0,
        "fan.pwm": 0.5,
        "throttle.over-current oc1": float(max(0, min(second, THROTTLED.stop - 1) - THROTTLED.start + 1)),
        "recorder.cpu_share": 0.004,
        "recorder.bytes": 8.2e6,
    }
    units = {name: UNITS[name.partition(".")[0]] for name in channels} | {"recorder.bytes": "bytes"}
    return Record(
        BEGIN_S + second, BOOT, 1000.0 + second, 1.0, models, channels, units=units, throttled=1.0 if slow else 0.0
    )


def started(second: int, how: str) -> Record:
    return Record(BEGIN_S + second, BOOT, 1000.0 + second, 0.0, start=Start("0.1.0", 4711, how))


def encoded(records: list[Record], boot: str = BOOT) -> bytes:
    encoder = Encoder(boot)
    return b"".join(encoder.start(each) if each.start else encoder.encode(each) for each in records)


@cache
def two_hours() -> bytes:
    """The recording as it lies on the disk."""

    def records() -> Iterator[Record]:
        yield started(0, "start")
        for second in range(1, SECONDS + 1):
            if second == LOST.stop:
                yield started(second, "after-crash")
            if second not in LOST:
                yield recorded(second)

    return encoded(list(records()))


def entries() -> list[dict[str, Any]]:
    """The journal of that device."""

    def entry(second: int, model: str, release: str, step: str, **more: Any) -> dict[str, Any]:
        return {"model": model, "release": release, "step": step, "at_s": int(BEGIN_S) + second, **more}

    return [
        entry(-9000, "digits", OLD, "begun", version=3),
        entry(-8990, "digits", OLD, "switched"),
        entry(-8900, "digits", OLD, "committed"),
        entry(DEPLOYED - 10, "digits", NEW, "begun", version=4),
        entry(DEPLOYED, "digits", NEW, "switched"),
        entry(DEPLOYED + 60, "digits", NEW, "committed"),
        entry(4960, "detector", OTHER, "begun", version=1),
        entry(5000, "detector", OTHER, "switched"),
        entry(REVERTED, "detector", OTHER, "reverted", reason="latency gate: p99 is 28 ms, above 12 ms"),
    ]

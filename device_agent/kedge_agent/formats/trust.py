"""Can a latency be trusted? What is held against it, each reason with its figures, and what could not be looked at.

Host and agent judge by the same rules; where the readings come from is `measure.sensors`' matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .latency import summarize

__all__ = ["THRESHOLDS", "Conditions", "ProcessorTime", "Reason", "Verdict", "judge"]

THRESHOLDS: Mapping[str, float] = {
    "cov": 0.01,
    "drift": 0.05,
    "samples": 101,
    "clock": 0.05,
    "other_cores": 0.2,
}
"""From where on a figure is a reason.

cov: coefficient of variation; trtexec warns above the same 1 %. drift: of the second half's median over the first's.
samples: with fewer of them p99 is the largest one (trtexec's percentile rule). clock: by this share a clock's lowest
reading lies below its highest. other_cores: processors that other processes, or the hypervisor, kept busy.
"""

# Below this the halves' medians say nothing.
_FEWEST_FOR_DRIFT = 20
_LEAST_S = 1.0


@dataclass(frozen=True)
class ProcessorTime:
    """Seconds since the system started, summed over all its processors.

    at_s: when it was read, by a clock that only goes forward. busy_s: not idle, by this system's own doing. stolen_s:
    taken away by a hypervisor. own_s: this process's part of busy_s.
    """

    at_s: float
    busy_s: float
    stolen_s: float
    own_s: float


@dataclass(frozen=True)
class Conditions:
    """What a device's sensors say at one moment.

    clocks_hz: by name. locked: for each clock, whether it is held at one frequency; None where the system does not say.
    throttled: counters of events that slowed the device down, by name. unavailable: what could not be read, and why.
    emulated: the program that runs this agent's instructions in the place of a processor; None: a processor does.
    """

    clocks_hz: Mapping[str, int] = field(default_factory=dict)
    locked: Mapping[str, bool | None] = field(default_factory=dict)
    throttled: Mapping[str, int] = field(default_factory=dict)
    processor: ProcessorTime | None = None
    unavailable: tuple[str, ...] = ()
    emulated: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: Any) -> Conditions:
        """The reading that `to_json` gave.

        Raises:
            ValueError: it is none.
        """
        try:
            processor = body["processor"]
            return cls(
                clocks_hz={str(name): int(value) for name, value in body["clocks_hz"].items()},
                locked={str(name): None if value is None else bool(value) for name, value in body["locked"].items()},
                throttled={str(name): int(value) for name, value in body["throttled"].items()},
                processor=None
                if processor is None
                else ProcessorTime(*(float(processor[key]) for key in ("at_s", "busy_s", "stolen_s", "own_s"))),
                unavailable=tuple(str(line) for line in body["unavailable"]),
                # An agent of before does not tell.
                emulated=None if body.get("emulated") is None else str(body["emulated"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"not a reading of sensors: {error!r}") from error


@dataclass(frozen=True)
class Reason:
    """Why a result is not stable. what: cov, drift, samples, clock, throttle, others, stolen, emulated, or overload."""

    what: str
    text: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Verdict:
    """What is held against a result; nothing: it is stable, as far as could be seen.

    unavailable: what could not be looked at. clocks: range of each clock meanwhile.
    """

    reasons: tuple[Reason, ...]
    unavailable: tuple[str, ...]
    clocks: tuple[Mapping[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, documented in docs/bench-report.md."""
        return {
            "stable": not self.reasons,
            "reasons": [asdict(reason) for reason in self.reasons],
            "unavailable": list(self.unavailable),
            "clocks": [dict(clock) for clock in self.clocks],
            "thresholds": dict(THRESHOLDS),
        }


def judge(
    samples_ms: Sequence[float], readings: Sequence[Conditions], *, others: bool = True, more: Sequence[Reason] = ()
) -> Verdict:
    """Hold samples and the device's conditions meanwhile against the thresholds.

    Args:
        samples_ms: in the order in which they were taken; at least one.
        readings: the first before the first sample, the last after the last one; none: nothing was read.
        others: whether time that other processes took is a reason.
        more: reasons that the caller found.
    """
    reasons = [*more, *_of_samples(samples_ms)]
    unavailable = dict.fromkeys(line for reading in readings for line in reading.unavailable)
    clocks, moved = _of_clocks(readings)
    reasons += moved
    if readings:
        if readings[0].emulated is not None:
            text = f"{readings[0].emulated} emulates the processor: this says nothing of a device"
            reasons.insert(0, Reason("emulated", text, {}))
        reasons += _of_throttles(readings[0], readings[-1])
        taken = _of_processors(readings[0], readings[-1])
        if taken is None:
            unavailable["other processes: it was too short a time for the kernel's ticks"] = None
        reasons += [reason for reason in taken or () if others or reason.what != "others"]
    else:
        unavailable["clocks, throttling and other processes: nothing was read"] = None
    if not others:
        unavailable["other processes: the way from the host is itself made of them"] = None
    return Verdict(tuple(reasons), tuple(unavailable), tuple(clocks))


def _of_samples(samples_ms: Sequence[float]) -> list[Reason]:
    summary, out = summarize(samples_ms), []
    if summary.count < THRESHOLDS["samples"]:
        text = f"{summary.count} samples are too few for p99, which is then the largest of them"
        out.append(Reason("samples", text, {"count": summary.count}))
    if summary.cov > THRESHOLDS["cov"]:
        text = f"samples scatter: the coefficient of variation is {summary.cov * 100:.1f} %"
        out.append(Reason("cov", text, {"cov": summary.cov}))
    if summary.count >= _FEWEST_FOR_DRIFT:
        middle = summary.count // 2
        first, second = summarize(samples_ms[:middle]).median_ms, summarize(samples_ms[middle:]).median_ms
        if first > 0 and abs(second / first - 1) > THRESHOLDS["drift"]:
            text = f"it drifts: the second half's median is {(second / first - 1) * 100:+.1f} % of the first half's"
            out.append(Reason("drift", text, {"first_median_ms": first, "second_median_ms": second}))
    return out


def _of_clocks(readings: Sequence[Conditions]) -> tuple[list[Mapping[str, Any]], list[Reason]]:
    clocks: list[Mapping[str, Any]] = []
    reasons = []
    for name in dict.fromkeys(name for reading in readings for name in reading.clocks_hz):
        seen = [reading.clocks_hz[name] for reading in readings if name in reading.clocks_hz]
        low, high = min(seen), max(seen)
        locked = next((reading.locked.get(name) for reading in readings if name in reading.clocks_hz), None)
        clocks.append({"name": name, "min_hz": low, "max_hz": high, "readings": len(seen), "locked": locked})
        if low < high * (1 - THRESHOLDS["clock"]):
            text = f"the clock of the {name} moved between {low / 1e6:.0f} and {high / 1e6:.0f} MHz"
            reasons.append(Reason("clock", text, {"min_hz": low, "max_hz": high}))
    return clocks, reasons


def _of_throttles(first: Conditions, last: Conditions) -> list[Reason]:
    out = []
    for name, before in first.throttled.items():
        after = last.throttled.get(name, before)
        if after > before:
            text = f"it was throttled: {name} counted {after - before} more"
            out.append(Reason("throttle", text, {"before": before, "after": after}))
    return out


def _of_processors(first: Conditions, last: Conditions) -> list[Reason] | None:
    """None: the kernel counts in hundredths of a second, which say nothing of less than one."""
    before, after = first.processor, last.processor
    if before is None or after is None:
        return []
    seconds = after.at_s - before.at_s
    if seconds < _LEAST_S:
        return None
    others = (after.busy_s - before.busy_s - (after.own_s - before.own_s)) / seconds
    stolen = (after.stolen_s - before.stolen_s) / seconds
    out = []
    if others > THRESHOLDS["other_cores"]:
        text = f"other processes kept {others:.2f} processors busy"
        out.append(Reason("others", text, {"cores": others, "seconds": seconds}))
    if stolen > THRESHOLDS["other_cores"]:
        text = f"the hypervisor took {stolen:.2f} processors away"
        out.append(Reason("stolen", text, {"cores": stolen, "seconds": seconds}))
    return out

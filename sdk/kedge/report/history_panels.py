"""What of a recording is drawn or tabled: one panel each of latency, requests and every kind of reading."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .svg import BLUE, GREEN, GREY, ORANGE, PURPLE, RED

__all__ = ["COLOURS", "Line", "Panel", "device_panels", "model_panels", "points"]

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, GREY, RED)
"""Of a panel's lines, in this order."""

_MOST_LINES = len(COLOURS)
# Disks are read each 30 s, the rest at least each 16 s (docs/sensors.md, docs/recorder.md).
_HOLDS_S = 35.0
_STEPS_APART = 1.6
_GIGA, _MEGA = 1e9, 1e6

Step = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """values: one a step, in the panel's unit; None where nothing is known. low, high: the least and most of each."""

    name: str
    values: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None


@dataclass(frozen=True)
class Panel:
    """title: what is shown. lines: at least one. model: whose; None: of the whole device. from_zero: whether the axis
    begins at 0. minor: not shown where there is little room. left_out: lines that are not shown. holds_s: for how long
    nothing need be known of what goes on; not everything is read at each step."""

    title: str
    unit: str
    lines: Sequence[Line]
    model: str | None = None
    from_zero: bool = True
    minor: bool = False
    left_out: int = 0
    holds_s: float = 0.0


@dataclass(frozen=True)
class _Kind:
    """Channels that are drawn together: of a kind, or of these names."""

    title: str
    unit: str
    prefix: str
    names: Sequence[str] = ()
    scale: float = 1.0
    from_zero: bool = True
    minor: bool = False


_KINDS = (
    _Kind("temperature", "°C", "temperature.", from_zero=False),
    _Kind("clocks", "Hz", "clock."),
    _Kind("load", "%", "load.", scale=0.01),
    _Kind("power", "W", "power."),
    _Kind(
        "memory", "bytes", "", ("memory.available", "memory.agent_rss", "memory.cgroup", "memory.gpu_used", "swap.used")
    ),
    _Kind("pressure: time that something waited", "%", "pressure.", scale=0.01, minor=True),
    _Kind("fans", "%", "", ("fan.pwm",), scale=0.01, minor=True),
    _Kind("the recorder itself: share of one core", "%", "", ("recorder.cpu_share",), scale=0.01, minor=True),
)


def model_panels(recording: Mapping[str, Any], model: str) -> list[Panel]:
    """Latency and requests of one model."""
    steps = recording["steps"]
    p50, p99 = (_of_model(steps, model, key) for key in ("total_p50_ms", "total_p99_ms"))
    answered = [_rate(step, model, lambda each: each["requests"]) for step in steps]
    failed = [_rate(step, model, lambda each: sum(each["failures"].values())) for step in steps]
    lines = [Line("answered", answered)]
    if any(failed):
        lines.append(Line("failed", failed))
    panels = []
    if any(each is not None for each in p99):
        panels.append(Panel(f"latency of {model}", "ms", [Line("p50", p50, p50, p99), Line("p99", p99)], model))
    return [*panels, Panel(f"requests of {model} a second", "/s", lines, model)]


def device_panels(recording: Mapping[str, Any]) -> list[Panel]:
    """Throttling, where there was any, and readings of each kind that there are."""
    steps = recording["steps"]
    panels = []
    shares = [step["throttled_share"] for step in steps]
    if any(shares):
        throttled = [None if share is None else share * 100 for share in shares]
        panels.append(Panel("throttled: share of the time", "%", [Line("throttled", throttled)], holds_s=_HOLDS_S))
    known = recording["summary"]["channels"]
    for kind in _KINDS:
        names = [name for name in known if name in kind.names or (kind.prefix and name.startswith(kind.prefix))]
        # What counts, and what is no reading of this unit, is not drawn with the others.
        names = [name for name in names if known[name]["unit"] not in ("count", "rpm")]
        if names and not (kind.title.startswith("pressure") and not any(known[name]["max"] for name in names)):
            panels.append(_panel(kind, sorted(names, key=_importance(kind, known)), steps, known))
    return panels


def points(
    line: Line, times_s: Sequence[float], step_s: float, holds_s: float
) -> tuple[list[float], list[tuple[float | None, float | None, float | None]]]:
    """Times, and value, low and high at each, as they are to be joined: None stands where the line breaks off alone.

    It does where a step is missing, and where nothing is known for longer than `holds_s`.

    Args:
        times_s: at the end of each step, as many as the line has values.
        step_s: the length of a step.
    """
    nothing = [None] * len(times_s)
    times: list[float] = []
    known: list[tuple[float | None, float | None, float | None]] = []
    breaks = False
    before: float | None = None
    rows = zip(line.values, line.low or nothing, line.high or nothing, strict=True)
    for at_s, row in zip(times_s, rows, strict=True):
        breaks |= before is not None and at_s - before > _STEPS_APART * step_s
        before = at_s
        if row[0] is None:
            breaks |= holds_s == 0
            continue
        if times and (breaks or at_s - times[-1] > max(holds_s, _STEPS_APART * step_s)):
            times.append((times[-1] + at_s) / 2)
            known.append((None, None, None))
        times.append(at_s)
        known.append(row)
        breaks = False
    return times, known


def _importance(kind: _Kind, known: Mapping[str, Any]) -> Callable[[str], tuple[float, str]]:
    """Names that are given in their order, others by what they came to."""
    return lambda name: (kind.names.index(name) if name in kind.names else -known[name]["max"], name)


def _panel(kind: _Kind, names: Sequence[str], steps: Sequence[Step], known: Mapping[str, Any]) -> Panel:
    shown = names[:_MOST_LINES]
    scale, unit = kind.scale, kind.unit
    if unit in ("Hz", "bytes"):
        most = max(known[name]["max"] for name in shown)
        scale, prefix = (_GIGA, "G") if most >= _GIGA else (_MEGA, "M")
        unit = prefix + ("Hz" if unit == "Hz" else "B")
    lines = []
    for name in shown:
        mean, low, high = (
            [_scaled(step["channels"].get(name), key, scale) for step in steps] for key in ("mean", "min", "max")
        )
        lines.append(Line(name.removeprefix(kind.prefix) if kind.prefix else name, mean, low, high))
    title = f"{kind.title}: {lines[0].name}" if kind.prefix and len(lines) == 1 else kind.title
    return Panel(title, unit, lines, None, kind.from_zero, kind.minor, len(names) - len(shown), _HOLDS_S)


def _scaled(figures: Mapping[str, Any] | None, key: str, scale: float) -> float | None:
    return None if figures is None else figures[key] / scale


def _of_model(steps: Sequence[Step], model: str, key: str) -> list[float | None]:
    return [step["models"][model][key] if model in step["models"] else None for step in steps]


def _rate(step: Step, model: str, count: Callable[[Mapping[str, Any]], int]) -> float | None:
    """0 where it served and was not asked; None where it did not serve."""
    each = step["models"].get(model)
    return None if each is None else count(each) / step["seconds"]

"""How fast the device is allowed to be: its power mode, and the limits of its clocks.

Sources: NVIDIA, Jetson Linux Developer Guide, "Platform Power and Performance" (`nvpmodel -m`, `jetson_clocks`);
Linux, Documentation/admin-guide/pm/cpufreq.rst (`scaling_max_freq`, `cpuinfo_max_freq`).
"""

from __future__ import annotations

import math
import re

from ..evidence import Evidence
from ..finding import Finding, fault, ok, unknown, warning
from ..node import Node
from ..thresholds import limit
from .releases import live_releases
from .words import share

__all__ = ["clocks", "power_mode"]

_MODE = re.compile(r"[0-9]{1,4}")
_WATTS = re.compile(r"(?<!\d)(\d{1,4})W")


def power_mode(evidence: Evidence) -> Finding:
    """The power mode, against the one that engines were built in, or the highest."""
    name, section = "power-mode", evidence.section("sensors")
    if section.why:
        return unknown(name, section.why)
    mode = section.data.child("facts", "power_mode")
    if not mode:
        if not _jetson(evidence):
            return ok(name, "this kind of device has none")
        return unknown(name, _missing(section.data, "power mode") or "nvpmodel's state cannot be read")
    now, modes = _id(mode, "id"), _modes(mode)
    called = mode.text("name") or modes.get(now or "", now) or "?"
    highest = _id(mode, "highest")
    was = _built_in(evidence)
    best = was if was is not None and was in modes else highest
    figures = {"id": now, "name": called, "was": None if was is None else modes.get(was, was), "highest": highest}
    if now is None:
        return unknown(name, f"power mode {called}; its number is not known", **figures)
    if was is not None and was != now and _mode_below(evidence, now, was):
        before = modes.get(was, f"number {was}")
        return fault(
            name,
            f"power mode {called}, was {before} when what is live was built",
            brief=f"power mode {called}, was {before}",
            cause="somebody chose a lower mode, or an update of Jetson Linux set its default again",
            cure=evidence.shell(f"sudo nvpmodel -m {best}"),
            figures=figures,
        )
    if was is None and highest is not None and highest != now:
        top = modes.get(highest, f"number {highest}")
        return warning(
            name,
            f"power mode {called}, the highest is {top}",
            brief=f"power mode {called}, not {top}",
            cause="the device's default, or chosen to save power: clocks and cores are limited",
            cure=evidence.shell(f"sudo nvpmodel -m {highest}"),
            figures=figures,
        )
    return ok(name, f"power mode {called}{', the highest' if now == highest else ''}", **figures)


def clocks(evidence: Evidence) -> Finding:
    """Whether a clock may not go as high as the hardware can."""
    name, section = "clocks", evidence.section("sensors")
    if section.why:
        return unknown(name, section.why)
    facts = section.data.child("facts")
    found, locked = facts.nodes("clocks"), facts.flag("jetson_clocks")
    lowered = [
        each for each in found if (part := _part(each)) is not None and part < limit("clock_limit_warning_share")
    ]
    figures = {
        "clocks": [{key: each.number(key) for key in ("hz", "high_hz", "hardware_high_hz")} for each in found[:16]],
        "jetson_clocks": locked,
    }
    if not found:
        return unknown(name, _missing(section.data, "clock") or "no clock can be read", **figures)
    jetson, mode = _jetson(evidence), facts.child("power_mode").text("name")
    # Of a Jetson's modes only MAXN caps nothing.
    capped = jetson and mode is not None and not mode.startswith("MAXN")
    if lowered and not capped:
        clock = min(lowered, key=lambda each: _part(each) or 0)
        high, most = clock.amount("high_hz") or 0, clock.amount("hardware_high_hz") or 0
        return warning(
            name,
            f"the clock of the {clock.text('name')} is limited to {high / 1e6:,.0f} of {most / 1e6:,.0f} MHz",
            brief=f"{clock.text('name')} limited to {share(high / most)} of its clock",
            cause="somebody lowered its limit, or heat did"
            if jetson
            else "a tool, a power profile, or the firmware lowered its limit",
            cure=evidence.shell(_raise(jetson, clock.text("name") == "processor", most)),
            figures=figures,
        )
    words = [
        f"{each.text('name')} up to {high / 1e6:,.0f} MHz{', locked' if each.flag('locked') else ''}"
        for each, high in ((each, each.amount("high_hz")) for each in found)
        if high is not None
    ]
    by = f", as power mode {mode} has it" if lowered else ""
    return ok(name, ("; ".join(words[:4]) or "no limit is lowered") + by, **figures)


def _raise(jetson: bool, processor: bool, most_hz: float) -> str:
    if jetson:
        return "sudo nvpmodel -q && sudo jetson_clocks --show"
    if processor:
        return f"echo {most_hz / 1e3:.0f} | sudo tee /sys/devices/system/cpu/cpufreq/policy*/scaling_max_freq"
    return "sudo nvidia-smi --reset-gpu-clocks"


def _mode_below(evidence: Evidence, now: str, other: str) -> bool:
    """Whether a power mode is lower than another, by its budget; where that is not known: it is not the highest.

    nvpmodel's numbers are in no order.
    """
    mode = evidence.data("sensors").child("facts", "power_mode")
    modes = _modes(mode)
    mine, theirs = (_budget(evidence, modes.get(number, "")) for number in (now, other))
    if mine is not None and theirs is not None:
        return mine < theirs
    return now != _id(mode, "highest")


def _budget(evidence: Evidence, called: str) -> float | None:
    """Watts of a mode: of the profile, or of its name; MAXN has no limit."""
    known = () if evidence.target is None else evidence.target.power_modes
    for each in known:
        if each.name == called:
            return math.inf if each.watts is None else each.watts
    if called.startswith("MAXN"):
        return math.inf
    watts = _WATTS.search(called)
    return float(watts[1]) if watts is not None else None


def _built_in(evidence: Evidence) -> str | None:
    """The number of the power mode in which a live engine was built."""
    live = live_releases(evidence)
    for engine in evidence.data("engines").nodes("engines"):
        mode = _id(engine.child("passport"), "power_mode")
        if mode is not None and (not live or engine.text("release") in live):
            return mode
    return None


def _id(node: Node, key: str) -> str | None:
    number = node.size(key)
    said = node.text(key) if number is None else str(number)
    return said if said is not None and _MODE.fullmatch(said) else None


def _modes(mode: Node) -> dict[str, str]:
    return {
        number: called for each in mode.nodes("modes") if (number := _id(each, "id")) and (called := each.text("name"))
    }


def _part(clock: Node) -> float | None:
    high, most = clock.amount("high_hz"), clock.amount("hardware_high_hz")
    return high / most if high is not None and most else None


def _jetson(evidence: Evidence) -> bool:
    if evidence.target is not None:
        return evidence.target.family == "jetson"
    facts = evidence.data("sensors").child("facts")
    return bool(facts.text("l4t") or evidence.data("system").text("l4t"))


def _missing(sensors: Node, what: str) -> str | None:
    return next((line for line in sensors.texts("unavailable") if what in line.lower()), None)

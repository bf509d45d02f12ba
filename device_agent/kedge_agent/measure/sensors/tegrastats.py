"""Lines that NVIDIA's tegrastats printed on a Jetson, as channels: for logs that hold them.

Source: NVIDIA, Jetson Linux Developer Guide, "Tegrastats Utility" (L4T 32.5: AppendixTegraStats; DRIVE OS 6.0.9,
"Reported Statistics", which has `GR3D_FREQ X%@[Y,Y,…]`). What is printed differs by JetPack, by module and by who runs
it: rails without a unit (JetPack 4), in mW now and on average (5 and 6), and at most (7); temperatures by upper-case
names (4 and 5) or as the kernel calls zones (6 and 7), from 7 on with the highest so far; clocks for root alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .figures import channel_name

__all__ = ["parse_tegrastats"]

_MOST_CHARACTERS = 4096
_MEGABYTE = 1 << 20
_NUMBER = r"-?\d{1,9}(?:\.\d{1,6})?"
_MEMORY = re.compile(r"\b(RAM|SWAP) (\d{1,9})/(\d{1,9})MB\b")
_PROCESSORS = re.compile(r"\bCPU \[([^\]]{0,2048})\](?:@(\d{1,6}))?")
_ENGINE = re.compile(r"\b(EMC|GR3D)_FREQ (?:(\d{1,3})%)?(?:@(?:(\d{1,6})|\[([\d,]{0,64})\]))?")
_TEMPERATURE = re.compile(rf"(?<!\S)([A-Za-z][\w-]{{0,47}})@({_NUMBER})C(?:/{_NUMBER}C)?(?!\S)")
_RAIL = re.compile(
    rf"(?<!\S)([A-Za-z]\w{{0,47}}) ({_NUMBER})(?:mW(?:/{_NUMBER}(?:mW)?){{0,2}}|(?:/{_NUMBER}){{1,2}})(?!\S)"
)
_ENGINES = {"EMC": "emc", "GR3D": "gpu"}
# A sensor whose unit is off is told as -256 °C; PMIC is a constant.
_COLDEST = -200.0
_NO_SENSORS = ("pmic",)


def parse_tegrastats(line: str) -> dict[str, float]:
    """Figures by channel, in the channels' units; empty where it is no such line.

    `memory.used` and `memory.total`, `swap.used` and `swap.total`; `load.cpu`, the mean of the cores that are on, and
    `clock.cpu`, the fastest of them; `load.gpu`, `clock.gpu`, `load.emc`, `clock.emc`; `temperature.…`; `power.…`, now.
    """
    line = line[:_MOST_CHARACTERS]
    out: dict[str, float] = {}
    for what, used, total in _MEMORY.findall(line):
        kind = "memory" if what == "RAM" else "swap"
        out |= {f"{kind}.used": float(used) * _MEGABYTE, f"{kind}.total": float(total) * _MEGABYTE}
    if not out:
        return {}
    out |= _processors(line)
    for engine, percent, one, several in _ENGINE.findall(line):
        name = _ENGINES[engine]
        if percent:
            out[f"load.{name}"] = int(percent) / 100
        clocks = [int(word) for word in (one, *several.split(",")) if word]
        if clocks:
            out[f"clock.{name}"] = max(clocks) * 1e6
    for name, celsius in _TEMPERATURE.findall(line):
        if float(celsius) > _COLDEST and name.lower() not in _NO_SENSORS:
            out[channel_name("temperature", name.lower())] = float(celsius)
    return out | dict(_rails(line))


def _processors(line: str) -> dict[str, float]:
    found = _PROCESSORS.search(line)
    if found is None:
        return {}
    cores = re.findall(r"(\d{1,3})%(?:@(\d{1,6}))?", found[1])
    loads = [int(load) / 100 for load, _ in cores]
    clocks = [int(clock) for clock in (*(clock for _, clock in cores), found[2]) if clock]
    out = {"load.cpu": sum(loads) / len(loads)} if loads else {}
    return out | ({"clock.cpu": max(clocks) * 1e6} if clocks else {})


def _rails(line: str) -> Iterator[tuple[str, float]]:
    for name, milliwatts in _RAIL.findall(line):
        if name not in ("RAM", "SWAP", "IRAM", "NC"):
            yield channel_name("power", name), float(milliwatts) / 1000

"""Counters of what slowed a device down.

Sources: Linux, arch/x86 (`thermal_throttle/*_throttle_count` of each processor); NVIDIA, Jetson Linux Developer Guide,
"Over-Current Event Handling" (`oc*_event_cnt` of hwmon `soctherm_oc`). They count from the system's start on: their
differences tell.
"""

from __future__ import annotations

from pathlib import Path

from .figures import Figure, Found, channel_name
from .files import number, text

__all__ = ["read_throttles", "throttle_figures"]

_X86 = "sys/devices/system/cpu"
_HWMON = "sys/class/hwmon"


def read_throttles(root: Path) -> tuple[dict[str, int], list[str]]:
    """Counters by name, and a line where there are none.

    Cores are summed. The package's own counter stands in each of its cores: the largest counts.
    """
    counters: dict[str, int] = {}
    for figure in _figures(root):
        values = [value for path in figure.paths if (value := number(path)) is not None]
        if values:
            counters[figure.channel.partition(".")[2]] = int(figure.combine(values))
    return counters, [] if counters else [_NONE]


def throttle_figures(root: Path) -> Found:
    """The same counters as channels, `throttle.` and a counter's name."""
    figures = _figures(root)
    return Found(tuple(figures), missing=() if figures else (_NONE,))


_NONE = "throttling: no counter here"


def _figures(root: Path) -> list[Figure]:
    out = []
    cores = tuple(sorted((root / _X86).glob("cpu*/thermal_throttle/core_throttle_count")))
    packages = tuple(sorted((root / _X86).glob("cpu*/thermal_throttle/package_throttle_count")))
    if cores:
        out.append(Figure(channel_name("throttle", "thermal throttling of cores"), cores, combine=sum))
    if packages:
        out.append(Figure(channel_name("throttle", "thermal throttling of the package"), packages))
    for folder in sorted((root / _HWMON).glob("hwmon*")):
        if text(folder / "name") == "soctherm_oc":
            for path in sorted(folder.glob("oc*_event_cnt")):
                name = path.name.removesuffix("_event_cnt")
                out.append(Figure(channel_name("throttle", f"over-current {name}"), (path,)))
    return out

"""What slowed a device down: counters of its hardware, and cooling devices that are at work.

Sources: Linux, arch/x86 (`thermal_throttle/*_throttle_count` of each processor); NVIDIA, Jetson Linux Developer Guide,
"Over-Current Event Handling" (`oc*_event_cnt` of hwmon `soctherm_oc`). They count from the system's start on: their
differences tell. A cooling device that slows something down has a `cur_state` above 0 while it does (Linux,
Documentation/driver-api/thermal/sysfs-api.rst).
"""

from __future__ import annotations

from pathlib import Path

from .clocks import GPU_NAMES
from .figures import Figure, Found, channel_name
from .files import number, text
from .thermal import slows_down

__all__ = ["read_throttles", "throttle_figures", "throttling_now"]

_X86 = "sys/devices/system/cpu"
_HWMON = "sys/class/hwmon"
_THERMAL = "sys/class/thermal"
_NONE = "throttling: no counter here"


def read_throttles(root: Path) -> tuple[dict[str, int], list[str]]:
    """Counters by name, and a line where there are none.

    Cores are summed. The package's own counter stands in each of its cores: the largest counts.
    """
    counters: dict[str, int] = {}
    for figure in _counters(root):
        values = [value for path in figure.paths if (value := number(path)) is not None]
        if values:
            counters[figure.channel.partition(".")[2]] = int(figure.combine(values))
    return counters, [] if counters else [_NONE]


def throttle_figures(root: Path) -> Found:
    """The same counters as channels, `throttle.` and a counter's name; and how often a cooling device was seen at work.

    A cooling device is called by its type; those of all processors are one, and those of a GPU's clocks.
    """
    counters = _counters(root)
    tallies = [
        Figure(channel_name("throttle", name), tuple(folder / "cur_state" for folder in folders), tally=True)
        for name, folders in _cooling(root).items()
    ]
    return Found((*counters, *tallies), () if counters or tallies else (_NONE,))


def throttling_now(root: Path) -> list[str]:
    """Which cooling devices slow something down now, by the names of their channels."""
    return [
        name
        for name, folders in _cooling(root).items()
        if any((number(folder / "cur_state") or 0) > 0 for folder in folders)
    ]


def _counters(root: Path) -> list[Figure]:
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


def _cooling(root: Path) -> dict[str, list[Path]]:
    out: dict[str, list[Path]] = {}
    for folder in sorted((root / _THERMAL).glob("cooling_device*")):
        kind = text(folder / "type") or ""
        if not slows_down(kind):
            continue
        if kind.startswith("cpufreq-") or kind.lower() == "processor":
            kind = "processor slowed by heat"
        elif kind.startswith("devfreq-") and any(name in kind for name in GPU_NAMES):
            kind = "GPU slowed by heat"
        out.setdefault(kind, []).append(folder)
    return out

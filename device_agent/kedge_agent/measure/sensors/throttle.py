"""Counters of what slowed a device down.

Sources: Linux, arch/x86 (`thermal_throttle/*_throttle_count` of each processor); NVIDIA, Jetson Linux Developer Guide,
"Over-Current Event Handling" (`oc*_event_cnt` of hwmon `soctherm_oc`). They count from the system's start on: their
differences tell.
"""

from __future__ import annotations

from pathlib import Path

from .files import number, text

__all__ = ["read_throttles"]

_X86 = "sys/devices/system/cpu"
_HWMON = "sys/class/hwmon"


def read_throttles(root: Path) -> tuple[dict[str, int], list[str]]:
    """Counters by name, and a line where there are none.

    Cores are summed. The package's own counter stands in each of its cores: the largest counts.
    """
    counters: dict[str, int] = {}
    cores = _numbers(root / _X86, "cpu*/thermal_throttle/core_throttle_count")
    packages = _numbers(root / _X86, "cpu*/thermal_throttle/package_throttle_count")
    if cores:
        counters["thermal throttling of cores"] = sum(cores)
    if packages:
        counters["thermal throttling of the package"] = max(packages)
    for folder in sorted((root / _HWMON).glob("hwmon*")):
        if text(folder / "name") == "soctherm_oc":
            for path in sorted(folder.glob("oc*_event_cnt")):
                value = number(path)
                if value is not None:
                    counters[f"over-current {path.name.removesuffix('_event_cnt')}"] = value
    return counters, [] if counters else ["throttling: no counter here"]


def _numbers(folder: Path, pattern: str) -> list[int]:
    return [value for path in folder.glob(pattern) if (value := number(path)) is not None]

"""Clocks of processor and GPU, from Linux's cpufreq and devfreq.

Sources: Linux, Documentation/admin-guide/pm/cpufreq.rst (`scaling_*_freq`, kHz) and
Documentation/ABI/testing/sysfs-class-devfreq (`*_freq`, Hz).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .files import number

__all__ = ["Clock", "read_clocks"]

_CPUFREQ = "sys/devices/system/cpu/cpufreq"
_DEVFREQ = "sys/class/devfreq"
# How Tegra's GPUs are named there: by function (JetPack 6 and 7), or by chip (JetPack 4 and 5).
_GPUS = ("gpu", "gp10b", "gv11b", "ga10b", "gb10b")
_MOST_POLICIES = 64


@dataclass(frozen=True)
class Clock:
    """hz: now. locked: it can have this one frequency only; None where its limits cannot be read."""

    name: str
    hz: int
    locked: bool | None


def read_clocks(root: Path) -> tuple[list[Clock], list[str]]:
    """Every clock that can be read, and a line for each that cannot.

    Of processors that are clocked apart the fastest counts: those that idle are slow, and say nothing of a model.
    """
    clocks, missing = [], []
    policies = sorted((root / _CPUFREQ).glob("policy*"))[:_MOST_POLICIES]
    found = [clock for policy in policies if (clock := _clock(policy, "scaling_{}_freq", 1000)) is not None]
    if found:
        fastest = max(found, key=lambda clock: clock.hz)
        locked = None if any(clock.locked is None for clock in found) else all(clock.locked for clock in found)
        clocks.append(Clock("processor", fastest.hz, locked))
    else:
        missing.append("clock of the processor: no cpufreq here")
    gpus = [path for path in sorted((root / _DEVFREQ).glob("*")) if any(part in path.name for part in _GPUS)]
    several = len(gpus) > 1
    for path in gpus:
        clock = _clock(path, "{}_freq", 1)
        if clock is not None:
            name = f"GPU {path.name}" if several else "GPU"
            clocks.append(Clock(name, clock.hz, clock.locked))
    if not any(clock.name.startswith("GPU") for clock in clocks):
        missing.append("clock of a GPU: none in devfreq here")
    return clocks, missing


def _clock(folder: Path, name: str, unit_hz: int) -> Clock | None:
    now = number(folder / name.format("cur"))
    if now is None:
        return None
    low, high = number(folder / name.format("min")), number(folder / name.format("max"))
    return Clock(folder.name, now * unit_hz, None if low is None or high is None else low == high)

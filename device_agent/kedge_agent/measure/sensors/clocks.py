"""Clocks of processor and GPU, from Linux's cpufreq and devfreq.

Sources: Linux, Documentation/admin-guide/pm/cpufreq.rst (`scaling_*_freq`, kHz) and
Documentation/ABI/testing/sysfs-class-devfreq (`*_freq`, Hz).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .figures import Figure, Found, channel_name
from .files import number

__all__ = ["Clock", "clock_figures", "find_clocks"]

_CPUFREQ = "sys/devices/system/cpu/cpufreq"
_DEVFREQ = "sys/class/devfreq"
# How Tegra's GPUs are named there: by function (JetPack 6 and 7), or by chip (JetPack 4 and 5).
_GPUS = ("gpu", "gp10b", "gv11b", "ga10b", "gb10b")
_MOST_POLICIES = 64


@dataclass(frozen=True)
class Clock:
    """A clock, and the files that tell of it; of several that are clocked apart the fastest counts.

    current: files with a frequency in units of unit_hz. limits: a pair of files for each, its lowest and highest.
    """

    name: str
    current: tuple[Path, ...]
    limits: tuple[tuple[Path, Path], ...]
    unit_hz: int

    def hz(self) -> int | None:
        """What it runs at now; None where no file says."""
        told = [value for path in self.current if (value := number(path)) is not None]
        return max(told) * self.unit_hz if told else None

    def locked(self) -> bool | None:
        """Whether it can have one frequency only; None where its limits cannot be read."""
        told = [(number(low), number(high)) for low, high in self.limits]
        return None if any(None in pair for pair in told) else all(low == high for low, high in told)


def find_clocks(root: Path) -> tuple[list[Clock], list[str]]:
    """Every clock that can be read, and a line for each that cannot.

    Of processors that are clocked apart, those that idle are slow, and say nothing of a model: they are one clock.
    """
    clocks, missing = [], []
    policies = sorted((root / _CPUFREQ).glob("policy*"))[:_MOST_POLICIES]
    processor = _clock("processor", policies, "scaling_{}_freq", 1000)
    if processor.hz() is None:
        missing.append("clock of the processor: no cpufreq here")
    else:
        clocks.append(processor)
    folders = [path for path in sorted((root / _DEVFREQ).glob("*")) if any(part in path.name for part in _GPUS)]
    gpus = [_clock("GPU" if len(folders) == 1 else f"GPU {path.name}", [path], "{}_freq", 1) for path in folders]
    found = [clock for clock in gpus if clock.hz() is not None]
    if not found:
        missing.append("clock of a GPU: none in devfreq here")
    return [*clocks, *found], missing


def clock_figures(root: Path) -> Found:
    """The same clocks as channels: `clock.cpu`, `clock.gpu`."""
    clocks, missing = find_clocks(root)
    names = {"processor": "cpu", "GPU": "gpu"}
    figures = [
        Figure(channel_name("clock", names.get(clock.name, clock.name)), clock.current, float(clock.unit_hz))
        for clock in clocks
    ]
    return Found(tuple(figures), missing=tuple(missing))


def _clock(name: str, folders: list[Path], file: str, unit_hz: int) -> Clock:
    current = tuple(folder / file.format("cur") for folder in folders)
    limits = tuple((folder / file.format("min"), folder / file.format("max")) for folder in folders)
    return Clock(name, current, limits, unit_hz)

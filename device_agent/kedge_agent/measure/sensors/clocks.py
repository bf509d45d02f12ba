"""Clocks of processor, GPU and memory, from Linux's cpufreq and devfreq, and from Tegra's firmware.

Sources: Linux, Documentation/admin-guide/pm/cpufreq.rst (`scaling_*_freq`, `cpuinfo_max_freq`, kHz) and
Documentation/ABI/testing/sysfs-class-devfreq (`*_freq`, `available_frequencies`, Hz). The memory's clock (EMC) stands
in the debug files of Tegra's power firmware, which root alone may read (`bpmp/debug/clk/emc`: `rate`, `max_rate`,
`mrq_rate_locked`; the paths of tegrastats), and on Thor in devfreq as `bwmgr`: jetson_stats, jtop/core/memory.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .figures import Figure, Found, channel_name
from .files import number, parse_number, text

__all__ = ["GPU_NAMES", "Clock", "clock_figures", "find_clocks", "find_memory_clock"]

_CPUFREQ = "sys/devices/system/cpu/cpufreq"
_DEVFREQ = "sys/class/devfreq"
_FIRMWARE = "sys/kernel/debug/bpmp/debug/clk/emc"
GPU_NAMES = ("gpu", "gp10b", "gv11b", "ga10b", "gb10b")
"""What is in the names of Tegra's GPUs in devfreq: the function (JetPack 6 and 7), or the chip (JetPack 4 and 5)."""

_MOST_POLICIES = 64


@dataclass(frozen=True)
class Clock:
    """A clock, and the files that tell of it; of several that are clocked apart the fastest counts.

    current: files with a frequency in units of unit_hz. limits: a pair of files for each, its lowest and highest.
    hardware: files with all frequencies, or the highest, that the hardware can have. lock: a file that says 1 where
    the clock is held. governors: files that say who sets it.
    """

    name: str
    current: tuple[Path, ...]
    limits: tuple[tuple[Path, Path], ...]
    unit_hz: int
    hardware: tuple[Path, ...] = ()
    lock: Path | None = None
    governors: tuple[Path, ...] = ()

    def hz(self) -> int | None:
        """What it runs at now; None where no file says."""
        return self._highest(self.current)

    def low_hz(self) -> int | None:
        """The lowest that it may be set to; None where no file says."""
        told = [value for low, _ in self.limits if (value := number(low)) is not None]
        return min(told) * self.unit_hz if told else None

    def high_hz(self) -> int | None:
        """The highest that it may be set to; None where no file says."""
        return self._highest(tuple(high for _, high in self.limits))

    def hardware_high_hz(self) -> int | None:
        """The highest that the hardware can have; None where no file says."""
        said = " ".join(told for path in self.hardware if (told := text(path)) is not None)
        values = [value for word in said.split() if (value := parse_number(word)) is not None]
        return max(values) * self.unit_hz if values else None

    def locked(self) -> bool | None:
        """Whether it can have one frequency only; None where its limits cannot be read."""
        if self.lock is not None:
            held = number(self.lock)
            return None if held is None else held == 1
        told = [(number(low), number(high)) for low, high in self.limits]
        return None if any(None in pair for pair in told) else all(low == high for low, high in told)

    def governor(self) -> str | None:
        """Who sets it, as the kernel calls that; None where no file says."""
        told = dict.fromkeys(said for path in self.governors if (said := text(path)))
        return ", ".join(told) or None

    def _highest(self, paths: tuple[Path, ...]) -> int | None:
        told = [value for path in paths if (value := number(path)) is not None]
        return max(told) * self.unit_hz if told else None


def find_clocks(root: Path) -> tuple[list[Clock], list[str]]:
    """Every clock of processor and GPU that can be read, and a line for each that cannot.

    Of processors that are clocked apart, those that idle are slow, and say nothing of a model: they are one clock.
    """
    clocks, missing = [], []
    policies = sorted((root / _CPUFREQ).glob("policy*"))[:_MOST_POLICIES]
    processor = Clock(
        "processor",
        tuple(folder / "scaling_cur_freq" for folder in policies),
        tuple((folder / "scaling_min_freq", folder / "scaling_max_freq") for folder in policies),
        1000,
        hardware=tuple(folder / "cpuinfo_max_freq" for folder in policies),
        governors=tuple(folder / "scaling_governor" for folder in policies),
    )
    if processor.hz() is None:
        missing.append("clock of the processor: no cpufreq here")
    else:
        clocks.append(processor)
    folders = [path for path in sorted((root / _DEVFREQ).glob("*")) if any(part in path.name for part in GPU_NAMES)]
    gpus = [_devfreq("GPU" if len(folders) == 1 else f"GPU {path.name}", path) for path in folders]
    found = [clock for clock in gpus if clock.hz() is not None]
    if not found:
        missing.append("clock of a GPU: none in devfreq here")
    return [*clocks, *found], missing


def find_memory_clock(root: Path) -> Clock | None:
    """The clock of a Tegra's memory (EMC); None where it cannot be read."""
    firmware = root / _FIRMWARE
    clocks = (
        _devfreq("EMC", root / _DEVFREQ / "bwmgr"),
        Clock(
            "EMC",
            (firmware / "rate",),
            ((firmware / "min_rate", firmware / "max_rate"),),
            1,
            hardware=(firmware / "max_rate",),
            lock=firmware / "mrq_rate_locked",
        ),
    )
    return next((clock for clock in clocks if clock.hz() is not None), None)


def clock_figures(root: Path) -> Found:
    """The same clocks as channels: `clock.cpu`, `clock.gpu`, `clock.emc`."""
    clocks, missing = find_clocks(root)
    memory = find_memory_clock(root)
    if memory is not None:
        clocks.append(memory)
    else:
        missing.append("clock of the memory: not in devfreq, and root alone may read the firmware's, if there is one")
    figures = [Figure(channel_name("clock", _short(clock.name)), clock.current, clock.unit_hz) for clock in clocks]
    return Found(tuple(figures), tuple(missing))


def _short(name: str) -> str:
    # Thor's GPU has a clock for its processors (gpc), and one for its video units (nvd).
    if name == "GPU gpu-gpc-0":
        return "gpu"
    return {"processor": "cpu", "GPU": "gpu", "EMC": "emc"}.get(name, name.removeprefix("GPU "))


def _devfreq(name: str, folder: Path) -> Clock:
    return Clock(
        name,
        (folder / "cur_freq",),
        ((folder / "min_freq", folder / "max_freq"),),
        1,
        hardware=(folder / "available_frequencies",),
        governors=(folder / "governor",),
    )

"""Every figure that a device has, once a second, for little: files are found once and kept open."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from .cgroup import cgroup_figures
from .clocks import clock_figures
from .figures import Figure, Found, Table, unit_of
from .files import KeptFile, parse_number
from .nvml import Gpus, find_gpus
from .rails import find_rails
from .system import find_system
from .tegra import find_fan, find_gpu_load
from .thermal import zone_figures
from .throttle import throttle_figures

__all__ = ["Sampler"]

_FINDERS: tuple[Callable[[Path], Found], ...] = (
    find_system,
    cgroup_figures,
    clock_figures,
    find_gpu_load,
    zone_figures,
    find_rails,
    throttle_figures,
    find_fan,
)
# Drivers may be loaded after the agent has started, and cores switched on: it looks again soon, and then seldom.
_FIRST_LOOK_S = 30.0
_LOOK_S = 300.0
# A machine with a hundred cores has more counters than a process should have files.
_MOST_KEPT = 256
# So much earlier than its time may a slow figure be read: who samples once a second does not do so to the millisecond.
_SLACK_S = 0.5


class Sampler:
    """Reads figures by channel; what cannot be read at a time is left out of that sample, and is never 0.

    For one thread at a time. Close it.
    """

    def __init__(self, root: Path = Path("/"), *, gpus: Callable[[Path], Gpus | str] = find_gpus) -> None:
        """Find what there is.

        Args:
            root: of the tree with /proc, /sys and /etc.
            gpus: gives what NVIDIA's driver tells, or why it tells nothing.
        """
        self._root = root
        self._find_gpus = gpus
        self._gpus: Gpus | str = ""
        self._gpus_silent = False
        self._files: dict[Path, KeptFile] = {}
        self._read_at: dict[str, float] = {}
        self._tallies: dict[str, int] = {}
        self._sources: dict[tuple[str, ...], Figure | Table] = {}
        self._missing: tuple[str, ...] = ()
        self._look_at_s: float | None = None
        self._look()

    @property
    def channels(self) -> Mapping[str, str]:
        """Unit by the name of each channel that a sample may have; more may come, as drivers are loaded."""
        own = {name: unit_of(name) for names in self._sources for name in names}
        return own if isinstance(self._gpus, str) else self._gpus.channels | own

    @property
    def missing(self) -> tuple[str, ...]:
        """A line for each thing that is not there, with the reason."""
        return self._missing

    @property
    def gpus(self) -> Gpus | None:
        """What NVIDIA's driver tells; None where it tells nothing."""
        return None if isinstance(self._gpus, str) else self._gpus

    def sample(self, now_s: float | None = None) -> dict[str, float]:
        """Figures by channel, in the units of `channels`. Slow ones are left out of samples that come too soon.

        Args:
            now_s: by a clock that only goes forward; None: time.monotonic().
        """
        now_s = time.monotonic() if now_s is None else now_s
        if self._look_at_s is None:
            self._look_at_s = now_s + _FIRST_LOOK_S
        elif now_s >= self._look_at_s:
            self._look_at_s = now_s + _LOOK_S
            self._look()
        # What the system tells of a channel goes before what NVIDIA's driver tells of the same.
        out: dict[str, float] = {}
        if not isinstance(self._gpus, str):
            out = self._gpus.sample()
            self._gpus_silent = not out
        for source in self._sources.values():
            if source.every_s and not self._due(source, now_s):
                continue
            if isinstance(source, Table):
                out.update(source.parse(tuple(self._file(path) for path in source.paths), now_s))
            elif (value := self._figure(source)) is not None:
                out[source.channel] = value
        return out

    def unread(self, sample: Mapping[str, float]) -> list[str]:
        """A line for each channel that a sample just taken lacks, with the reason."""
        out = []
        if self.gpus is not None:
            out += [f"{name}: the driver does not answer now" for name in self.gpus.channels if name not in sample]
        for source in self._sources.values():
            for channel in source.channels:
                if channel not in sample:
                    kept = [self._files[path].problem for path in source.paths if path in self._files]
                    why = next((problem for problem in kept if problem), "it was not told now")
                    out.append(f"{channel}: {why}")
        return out

    def close(self) -> None:
        """Close the files, and let go of the driver."""
        for file in self._files.values():
            file.close()
        if not isinstance(self._gpus, str):
            self._gpus.close()
            self._gpus = ""

    def _look(self) -> None:
        found = [find(self._root) for find in _FINDERS]
        if self.gpus is not None and self._gpus_silent:
            # The driver was reloaded, or lost its GPU: what was found of it is good no more.
            self.gpus.close()
            self._gpus = ""
        if isinstance(self._gpus, str):
            self._gpus = self._find_gpus(self._root)
        fresh = {source.channels: source for each in found for source in each.sources}
        # One that was there goes on: it may remember what it read last.
        self._sources = {channels: self._sources.get(channels, source) for channels, source in fresh.items()}
        missing = [line for each in found for line in each.missing]
        told: Mapping[str, str] = {}
        if isinstance(self._gpus, str):
            missing.append(self._gpus)
        else:
            missing += self._gpus.missing
            told = self._gpus.channels
        # What only a Tegra's driver lacks, NVIDIA's may tell.
        instead = {"load of a GPU": "load.gpu", "clock of a GPU": "clock.gpu", "throttling": "throttle.GPU power brake"}
        self._missing = tuple(line for line in missing if instead.get(line.partition(":")[0]) not in told)

    def _due(self, source: Figure | Table, now_s: float) -> bool:
        name = source.channels[0]
        if now_s - self._read_at.get(name, float("-inf")) < source.every_s - _SLACK_S:
            return False
        self._read_at[name] = now_s
        return True

    def _figure(self, figure: Figure) -> float | None:
        values = []
        for path in figure.paths:
            said = self._file(path)
            value = None if said is None else parse_number(said, signed=True)
            if value is not None and value >= figure.least:
                values.append(value)
        if not values:
            return None
        if figure.tally:
            self._tallies[figure.channel] = self._tallies.get(figure.channel, 0) + (figure.combine(values) > 0)
            return float(self._tallies[figure.channel])
        return float(figure.combine(values) * figure.scale)

    def _file(self, path: Path) -> str | None:
        file = self._files.get(path)
        if file is None:
            file = KeptFile(path)
            if len(self._files) >= _MOST_KEPT:
                said = file.text()
                file.close()
                return said
            self._files[path] = file
        return file.text()

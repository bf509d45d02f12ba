"""Every figure that a device has, once a second, for little: files are found once and kept open."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from .clocks import clock_figures
from .figures import Figure, Found, unit_of
from .files import KeptFile, parse_number
from .system import find_system
from .thermal import find_zones
from .throttle import throttle_figures

__all__ = ["Sampler"]


class Sampler:
    """Reads figures by channel; what cannot be read at a time is left out of that sample, and is never 0.

    For one thread at a time. It looks for new files now and then, so that `channels` may grow.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._files: dict[Path, KeptFile] = {}
        self._read_at: dict[str, float] = {}
        self._found: tuple[Found, ...] = ()
        self._find()

    @property
    def channels(self) -> Mapping[str, str]:
        """Unit by the name of each channel that a sample may have."""
        names = [figure.channel for found in self._found for figure in found.figures]
        names += [name for found in self._found for table in found.tables for name in table.channels]
        return {name: unit_of(name) for name in names}

    @property
    def missing(self) -> tuple[str, ...]:
        """A line for each thing that is not there, with the reason."""
        return tuple(line for found in self._found for line in found.missing)

    def sample(self, now_s: float | None = None) -> dict[str, float]:
        """Figures by channel, in the units of `channels`; never raises.

        Args:
            now_s: by a clock that only goes forward; None: time.monotonic(). Slow channels are left out of samples
                that come too soon.
        """
        now_s = time.monotonic() if now_s is None else now_s
        out: dict[str, float] = {}
        for found in self._found:
            for figure in found.figures:
                value = self._figure(figure, now_s)
                if value is not None:
                    out[figure.channel] = value
            for table in found.tables:
                said = self._text(table.path)
                if said is not None:
                    out.update(table.parse(said))
        return out

    def close(self) -> None:
        """Close the files; a later sample opens them again."""
        for file in self._files.values():
            file.close()

    def _find(self) -> None:
        root = self._root
        self._found = (clock_figures(root), find_zones(root), throttle_figures(root), find_system(root))

    def _figure(self, figure: Figure, now_s: float) -> float | None:
        if figure.every_s:
            if now_s - self._read_at.get(figure.channel, float("-inf")) < figure.every_s - 0.5:
                return None
            self._read_at[figure.channel] = now_s
        values = []
        for path in figure.paths:
            said = self._text(path)
            value = None if said is None else parse_number(said, signed=True)
            if value is not None:
                values.append(value)
        if not values or (figure.needs_all and len(values) < len(figure.paths)):
            return None
        return figure.combine(values) * figure.scale

    def _text(self, path: Path) -> str | None:
        file = self._files.get(path)
        if file is None:
            file = self._files[path] = KeptFile(path)
        return file.text()

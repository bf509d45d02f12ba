"""Temperatures and trip points of Linux's thermal zones.

Sources: Linux, Documentation/ABI/testing/sysfs-class-thermal (`type`, `temp` and `trip_point_*_temp` in milli-°C,
`trip_point_*_type`: critical, hot, passive, active).
"""

from __future__ import annotations

from pathlib import Path

from .figures import Figure, Found, channel_name
from .files import text

__all__ = ["find_zones"]

_THERMAL = "sys/class/thermal"
_MOST_ZONES = 64
_ENDINGS = ("-thermal", "_thermal", "-therm")


def find_zones(root: Path) -> Found:
    """The temperature of every zone that has a type."""
    figures = []
    for folder in sorted((root / _THERMAL).glob("thermal_zone*"))[:_MOST_ZONES]:
        kind = text(folder / "type")
        if kind:
            figures.append(Figure(channel_name("temperature", zone_name(kind)), (folder / "temp",), 0.001))
    return Found(tuple(figures), missing=() if figures else ("temperatures: no thermal zone here",))


def zone_name(kind: str) -> str:
    """What a zone is called here: `cpu` for `cpu-thermal` (JetPack 6), `CPU-therm` (5) and `cpu_thermal`."""
    name = kind.lower()
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    return name

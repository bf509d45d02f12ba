"""Temperatures, and the trip points at which Linux slows a device down or switches it off.

Sources: Linux, Documentation/driver-api/thermal/sysfs-api.rst (`thermal_zone*/type`, `temp` and `trip_point_*_temp` in
milli-°C, `trip_point_*_type`; `cdev*`, what cools the zone, and `cdev*_trip_point`, at which trip it begins to);
Documentation/hwmon/sysfs-interface.rst (`temp*_input`, milli-°C), coretemp.rst (`temp*_crit`: where the processor
cools itself by force), k10temp.rst. Of Tegra: a zone whose unit is off gives EAGAIN, or -256 °C before JetPack 6
(tegrastats prints the same); the passive trip at 70 °C of Orin is bound to `hot-surface-alert`, which slows nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .figures import Figure, Found, channel_name
from .files import number, parse_number, text, there

__all__ = ["Zone", "find_zones", "slows_down", "zone_figures"]

_THERMAL = "sys/class/thermal"
_HWMON = "sys/class/hwmon"
_MOST_ZONES = 64
_MOST_TRIPS = 16
# What a driver calls a zone, less what says that it is one: cpu-thermal (JetPack 6), CPU-therm (5), Tboard_tegra.
_ENDINGS = ("-thermal", "_thermal", "-therm", "_tegra")
# A constant, which stands for a sensor that nobody can read; and what the processor's own sensor tells already.
_NO_SENSORS = ("pmic-die", "x86_pkg_temp")
# Chips with a figure for the whole; that of a disk costs it a command, and changes slowly.
_CHIPS = {"coretemp": "cpu", "k10temp": "cpu", "tmp451": "board", "nvme": "nvme", "drivetemp": "disk"}
_DISKS = ("nvme", "drivetemp")
_DISK_S = 30.0
_COLDEST = -200_000
_THROTTLES = ("-throttle-alert", "-balanced")


@dataclass(frozen=True)
class Zone:
    """A place with a temperature. throttle_celsius: from where on it is slowed down for its heat; shutdown_celsius:
    where it is switched off; None where neither is told."""

    name: str
    path: Path
    throttle_celsius: float | None = None
    shutdown_celsius: float | None = None
    every_s: float = 0.0

    def celsius(self) -> float | None:
        """Its temperature now; None where it cannot be told, as of a unit that is off."""
        said = text(self.path)
        value = None if said is None else parse_number(said, signed=True)
        return None if value is None or value < _COLDEST else value / 1000


def find_zones(root: Path) -> list[Zone]:
    """Every zone that has a type, and the sensors of processor, board and disks; no two have one name."""
    zones = _chips(root)
    for folder in _numbered(root / _THERMAL, "thermal_zone")[:_MOST_ZONES]:
        kind = text(folder / "type")
        name = _zone_name(kind or "")
        if name == "x86_pkg_temp" and not any(zone.name == "cpu" for zone in zones):
            name = "cpu"
        if name and name not in _NO_SENSORS:
            throttle, shutdown = _trips(folder)
            zones.append(Zone(_distinct(name, zones), folder / "temp", throttle, shutdown))
    return zones


def zone_figures(root: Path) -> Found:
    """The same as channels, `temperature.` and a zone's name."""
    figures = [
        Figure(channel_name("temperature", zone.name), (zone.path,), 0.001, least=_COLDEST, every_s=zone.every_s)
        for zone in find_zones(root)
    ]
    return Found(tuple(figures), () if figures else ("temperatures: no thermal zone, and no known chip, here",))


def slows_down(cooling: str) -> bool:
    """Whether a cooling device, by its type, cools by slowing down.

    cpufreq-…, devfreq-… and Processor are Linux's own; …-throttle-alert (JetPack 5 to 7) and …-balanced (4) Tegra's.
    """
    name = cooling.lower()
    return name == "processor" or name.startswith(("cpufreq-", "devfreq-")) or name.endswith(_THROTTLES)


def _chips(root: Path) -> list[Zone]:
    zones: list[Zone] = []
    for folder in _numbered(root / _HWMON, "hwmon"):
        chip = text(folder / "name") or ""
        name, path = _CHIPS.get(chip, ""), folder / "temp1_input"
        if not name or not there(path):
            continue
        limit = number(folder / "temp1_crit")
        # A processor slows down at its critical temperature; a disk is said to break there.
        throttle = limit / 1000 if limit and name == "cpu" else None
        zones.append(Zone(_distinct(name, zones), path, throttle, every_s=_DISK_S if chip in _DISKS else 0.0))
    return zones


def _trips(folder: Path) -> tuple[float | None, float | None]:
    """The lowest trip at which something is slowed down, and the critical one."""
    passive: dict[int, int] = {}
    critical: list[int] = []
    for index in range(_MOST_TRIPS):
        kind, at = text(folder / f"trip_point_{index}_type"), number(folder / f"trip_point_{index}_temp")
        if kind is None:
            break
        # Trips that nobody has set stand at 0, or below.
        if at and kind == "passive":
            passive[index] = at
        elif at and kind == "critical":
            critical.append(at)
    bound = _bound(folder)
    throttle = [at for index, at in passive.items() if bound is None or index in bound]
    return (min(throttle) / 1000 if throttle else None, min(critical) / 1000 if critical else None)


def _bound(folder: Path) -> set[int] | None:
    """Trips at which something that slows down begins to; None where the zone does not say what cools it."""
    out, told = set(), False
    for path in sorted(folder.glob("cdev*_trip_point")):
        cooling, trip = text(folder / path.name.removesuffix("_trip_point") / "type"), number(path)
        told = told or cooling is not None
        if cooling is not None and trip is not None and slows_down(cooling):
            out.add(trip)
    return out if told else None


def _zone_name(kind: str) -> str:
    name = kind.lower()
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    return channel_name("", name)[1:]


def _distinct(name: str, zones: list[Zone]) -> str:
    taken = {zone.name for zone in zones}
    return next(other for other in (name, *(f"{name}{n}" for n in range(2, 1000))) if other not in taken)


def _numbered(folder: Path, prefix: str) -> list[Path]:
    """By number, and not by letters: zone 10 comes after zone 2."""
    found = [(path.name.removeprefix(prefix), path) for path in folder.glob(f"{prefix}*")]
    return [path for _, path in sorted((int(number), path) for number, path in found if number.isdigit())]

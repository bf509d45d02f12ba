"""Voltage, current and power of a board's rails, from its power monitors.

Sources: Linux, Documentation/hwmon/ina3221.rst (`in[123]_label`, `in[123]_input` mV, `curr[123]_input` mA; `in7` is a
sum of shunt voltages, and no rail), ina238.rst (`in1_input` mV, `curr1_input` mA, `power1_input` µW) and
sysfs-interface.rst (`label`); NVIDIA, Jetson Linux Developer Guide, "Software-Based Power Consumption Modeling". Before
JetPack 5: `rail_name_N`, `in_voltageN_input` mV, `in_currentN_input` mA, `in_powerN_input` mW of an iio device of the
driver `ina3221x` (L4T 32 Developer Guide, the same chapter).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from .figures import Found, Table, channel_name
from .files import parse_number, text, there

__all__ = ["find_rails"]

_HWMON = "sys/class/hwmon"
_IIO = "sys/bus/i2c/drivers/ina3221x"
_CHIPS = ("ina3221", "ina238", "ina237", "ina226", "ina219")
_KINDS = ("power", "voltage", "current")
# Each figure is a transfer on I²C, through which the board's other chips are reached too.
_EVERY_S = 2.0


def find_rails(root: Path) -> Found:
    """Power, voltage and current of each rail that has a name; none of a channel that is not connected (`NC`)."""
    tables: dict[str, Table] = {}
    for folder in sorted((root / _HWMON).glob("hwmon*")):
        if text(folder / "name") not in _CHIPS:
            continue
        labels = sorted(folder.glob("in*_label"))
        named = [(text(label) or "", label.name.removeprefix("in").removesuffix("_label")) for label in labels]
        for name, index in named or [(text(folder / "label") or "", "1")]:
            files = (folder / f"in{index}_input", folder / f"curr{index}_input", folder / f"power{index}_input")
            if all(map(there, files[:2])):
                _add(tables, name, files, 1e-6)
    for folder in sorted((root / _IIO).glob("*/iio*")):
        for label in sorted(folder.glob("rail_name_*")):
            index = label.name.removeprefix("rail_name_")
            volts, amperes, watts = (folder / f"in_{what}{index}_input" for what in ("voltage", "current", "power"))
            _add(tables, text(label) or "", (volts, amperes, watts), 1e-3)
    return Found(tuple(tables.values()), () if tables else ("power: no power monitor with named rails here",))


def _add(tables: dict[str, Table], name: str, files: tuple[Path, Path, Path], power_scale: float) -> None:
    if not name or name == "NC" or name in tables:
        return
    channels = tuple(channel_name(kind, name) for kind in _KINDS)
    paths = files if there(files[2]) else files[:2]
    tables[name] = Table(paths, channels, _reader(channels, power_scale), every_s=_EVERY_S)


def _reader(
    channels: tuple[str, ...], power_scale: float
) -> Callable[[tuple[str | None, ...], float], Mapping[str, float]]:
    def parse(said: tuple[str | None, ...], _now_s: float) -> Mapping[str, float]:
        millivolts, milliamperes, told = (
            None if word is None else parse_number(word, signed=True) for word in (*said, None)[:3]
        )
        out = {}
        if told is not None:
            out[channels[0]] = told * power_scale
        elif millivolts is not None and milliamperes is not None:
            out[channels[0]] = millivolts * milliamperes / 1e6
        if millivolts is not None:
            out[channels[1]] = millivolts / 1000
        if milliamperes is not None:
            out[channels[2]] = milliamperes / 1000
        return out

    return parse

"""What a Jetson tells of itself beside clocks, temperatures and rails: load of its GPU, fan, module, power mode.

Sources: NVIDIA, Jetson Linux Developer Guide, "Platform Power and Performance": nvpmodel (`/etc/nvpmodel.conf`, whose
head states its format; `/var/lib/nvpmodel/status`, the mode that was set last), jetson_clocks ("locks the clocks to
their maximums as defined by the active power mode"), `nvfancontrol`. GPU load in per mille: `gpu.0/load`
(JetPack 4 to 6; Thor has none). Fan: hwmon `pwmfan` (`pwm1`, 0 to 255) and `pwm_tach` (`rpm`); JetPack 4:
`/sys/devices/pwm-fan`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...engine.here import jetson_linux, power_mode
from .clocks import GPU_NAMES, Clock
from .figures import Figure, Found, channel_name
from .files import text, there

__all__ = ["find_fan", "find_gpu_load", "jetson_clocks", "module", "read_power_mode"]

_LOADS = ("sys/devices/platform/gpu.0/load", "sys/devices/gpu.0/load")
_DEVFREQ = "sys/class/devfreq"
_HWMON = "sys/class/hwmon"
_OLD_FAN = "sys/devices/pwm-fan"
_FULL_PWM = 255
_MODE = re.compile(r"<\s*POWER_MODEL\s+ID=(\d{1,4})\s+NAME=([^\s>]{1,64})\s*>")
_DEFAULT = re.compile(r"<\s*PM_CONFIG\s+DEFAULT=(\d{1,4})\s*>")
_WATTS = re.compile(r"(?:^|_)(\d+)W(?:_|$)")
_NO_CAP = 1 << 62


def find_gpu_load(root: Path) -> Found:
    """The share of the time in which a Tegra's GPU had something to do, as its driver counts it."""
    devices = [path / "device/load" for path in sorted((root / _DEVFREQ).glob("*"))]
    candidates = [root / path for path in _LOADS] + [
        path for path in devices if any(name in path.parts[-3] for name in GPU_NAMES)
    ]
    for path in candidates:
        if text(path) is not None:
            return Found((Figure("load.gpu", (path,), 0.001),))
    return Found(missing=("load of a GPU: no Tegra's driver tells it here",))


def find_fan(root: Path) -> Found:
    """How strongly a fan is driven, and how fast it turns. A fan's turns lag behind by seconds."""
    figures = []
    for folder in sorted((root / _HWMON).glob("hwmon*")):
        chip = text(folder / "name") or ""
        if chip == "pwmfan":
            figures.append(Figure("fan.pwm", (folder / "pwm1",), 1 / _FULL_PWM))
        if chip == "pwm_tach":
            figures.append(Figure("fan.speed_rpm", (folder / "rpm",)))
        figures += [
            Figure(channel_name("fan", f"{chip}_{path.name.removesuffix('_input')}_rpm"), (path,))
            for path in sorted(folder.glob("fan*_input"))
        ]
    old = root / _OLD_FAN
    if there(old / "cur_pwm"):
        figures.append(Figure("fan.pwm", (old / "cur_pwm",), 1 / _FULL_PWM))
    if there(old / "rpm_measured"):
        figures.append(Figure("fan.speed_rpm", (old / "rpm_measured",)))
    return Found(tuple(figures), () if figures else ("fan: none is told of here",))


def module(root: Path) -> str | None:
    """What the device tree calls this board; None where there is no device tree."""
    said = text(root / "proc/device-tree/model")
    return (said or "").strip("\0 \n") or None


def read_power_mode(root: Path) -> dict[str, Any] | None:
    """The power mode of a Jetson, and those it could have; None where there is no nvpmodel.

    Returns:
        id and name of the mode that was set last, null where it is not told; modes: id and name of each; highest: the
        id of the one that allows most; default: the id of the one that a fresh device has.

    The highest is MAXN, where there is one: it caps nothing. Else it is the one with most watts in its name, and among
    such the one with the highest cap of the GPU's clock, then with most processors: ids say nothing of it.
    """
    set_last = power_mode(root)
    said = text(root / "etc/nvpmodel.conf")
    if set_last is None and said is None:
        return None
    modes, strengths = [], []
    for found, rest in _sections(said or ""):
        number, name = int(found[1]), found[2]
        modes.append({"id": number, "name": name})
        strengths.append((_strength(name, rest), number))
    default = _DEFAULT.search(said or "")
    current = None if set_last is None else int(set_last)
    return {
        "name": next((mode["name"] for mode in modes if mode["id"] == current), None),
        "id": current,
        "modes": modes,
        "highest": max(strengths)[1] if strengths else None,
        "default": int(default[1]) if default else None,
    }


def jetson_clocks(root: Path, clocks: Sequence[Clock]) -> bool | None:
    """Whether the clocks of a Jetson are held at the maxima of its power mode, as the tool jetson_clocks does it.

    Args:
        clocks: of processor, GPU and memory.

    Returns:
        None: this is no Jetson, or it does not tell. That the memory's clock cannot be read is no reason.
    """
    if jetson_linux(root) is None:
        return None
    # Whether the tool holds the clock of Thor's video units (nvd) too is not documented.
    counted = [clock for clock in clocks if not clock.name.endswith("nvd-0")]
    if not {"processor", "GPU"} <= {clock.name.partition(" ")[0] for clock in counted}:
        return None
    held = [clock.locked() for clock in counted if clock.name != "EMC" or clock.locked() is not None]
    return None if None in held else all(held)


def _sections(said: str) -> list[tuple[re.Match[str], str]]:
    found = list(_MODE.finditer(said))
    ends = [*(match.start() for match in found), len(said)][1:]
    return [(match, said[match.end() : end]) for match, end in zip(found, ends, strict=False)]


def _strength(name: str, section: str) -> tuple[int, int, int, int]:
    watts = _WATTS.search(name)
    cap = re.search(r"^GPU MAX_FREQ (-?\d{1,19})$", section, re.MULTILINE)
    cores = re.findall(r"^CPU_ONLINE CORE_\d+ 1$", section, re.MULTILINE)
    hertz = -1 if cap is None else int(cap[1]) if int(cap[1]) >= 0 else _NO_CAP
    free = 2 if name.startswith("MAXN_SUPER") else 1 if name.startswith("MAXN") else 0
    return free, int(watts[1]) if watts else -1, hertz, len(cores)

"""Files of the system that a snapshot takes along: of /proc and /etc as they are, those of sensors in one table.

Which they are: proc(5); Linux, Documentation/ABI/testing (sysfs-class-thermal, -hwmon, -devfreq, cpufreq); NVIDIA,
Jetson Linux Developer Guide (nv_tegra_release, nvpmodel).
"""

from __future__ import annotations

import os
from pathlib import Path

from ...store.files import read_beginning
from ..device import Collected, Device, reason_of
from .files import Gathered
from .holder import daemon_of

__all__ = ["collect_raw", "collect_sensor_files"]

_FILES = (
    *(f"proc/{name}" for name in ("cpuinfo", "interrupts", "loadavg", "meminfo", "modules", "mounts")),
    *(f"proc/{name}" for name in ("softirqs", "stat", "swaps", "uptime", "version", "vmstat")),
    *(f"proc/pressure/{name}" for name in ("cpu", "io", "memory")),
    *("proc/device-tree/model", "proc/driver/nvidia/version"),
    *("etc/nv_tegra_release", "etc/nvpmodel.conf", "etc/os-release", "var/lib/nvpmodel/status"),
)
_OF_DAEMON = ("cgroup", "io", "limits", "oom_score", "oom_score_adj", "schedstat", "smaps_rollup", "stat", "status")
_SENSORS = (
    "sys/class/thermal/thermal_zone*/{type,temp,mode,trip_point_*_type,trip_point_*_temp}",
    "sys/class/thermal/cooling_device*/{type,cur_state,max_state}",
    "sys/class/hwmon/hwmon*/{name,*_label,*_input,*_max,*_crit,*_event_cnt,*_throt_en}",
    "sys/class/devfreq/*/{cur_freq,min_freq,max_freq,governor,available_frequencies,device/load}",
    "sys/devices/system/cpu/cpufreq/policy*/{scaling_*,cpuinfo_min_freq,cpuinfo_max_freq,affected_cpus}",
    "sys/devices/system/cpu/cpu*/thermal_throttle/*_count",
    "sys/devices/platform/gpu.0/load",
    "sys/block/zram*/{disksize,mm_stat,comp_algorithm}",
    "sys/kernel/debug/bpmp/debug/clk/emc/rate",
)
_MOST_VALUE = 512
_MOST_VALUES = 5000


def collect_raw(device: Device) -> Collected:
    """Files of /proc and /etc."""
    found = Gathered()
    for name in _FILES:
        found.read(f"system/{name}", device.root / name)
    pid = daemon_of(device)
    for name in _OF_DAEMON if pid is not None else ():
        found.read(f"system/agent/{name}", device.root / "proc" / str(pid) / name)
    return found.collected()


def collect_sensor_files(device: Device) -> Collected:
    """Files of /sys that sensors are read from, a line each: path, tab, what it says."""
    lines: list[str] = []
    for pattern in _SENSORS:
        for each in _expanded(pattern):
            for path in sorted(device.root.glob(each)):
                if len(lines) < _MOST_VALUES:
                    lines.append(f"/{path.relative_to(device.root)}\t{_value(path)}")
    found = Gathered()
    found.add("system/sensors.txt", "".join(f"{line}\n" for line in lines).encode())
    return found.collected()


def _expanded(pattern: str) -> list[str]:
    begin, brace, rest = pattern.partition("{")
    inner, _, end = rest.partition("}")
    return [f"{begin}{each}{end}" for each in inner.split(",")] if brace else [pattern]


def _value(path: Path) -> str:
    try:
        said = read_beginning(path, _MOST_VALUE)
    except OSError as error:
        return f"({reason_of(error, os.path.basename(path))})"
    return said.decode("ascii", "replace").strip().replace("\n", " | ")

"""Memory, swap, and who ran out of them.

Sources: proc_meminfo(5), proc_vmstat(5) (`pswpin`, `pswpout`, `oom_kill`); the others as `measure.sensors` names them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ...measure.sensors.cgroup import read_cgroup
from ...measure.sensors.system import meminfo, read_pressure, read_zram
from ..device import Collected, Device, UnavailableError
from .holder import daemon_of

__all__ = ["collect"]

_WINDOW_S = 0.5


def collect(device: Device) -> Collected:
    """See docs/diagnose.md."""
    begin, before = time.monotonic(), _counters(device)
    daemon = daemon_of(device)
    told = meminfo(device.text("proc/meminfo"))
    data: dict[str, Any] = {
        "total_bytes": told.get("MemTotal"),
        "available_bytes": told.get("MemAvailable"),
        "swap_total_bytes": told.get("SwapTotal"),
        "swap_free_bytes": told.get("SwapFree"),
        "zram": read_zram(device.root),
        "pressure": read_pressure(device.root / "proc/pressure/memory"),
        "oom_kills": before.get("oom_kill"),
        "cgroup": read_cgroup(device.root, "self" if daemon is None else str(daemon)),
    }
    if data["pressure"] is None:
        data["pressure_why"] = "this kernel was built or started without pressure stall information (psi=1)"
    if data["cgroup"] is None:
        data["cgroup_why"] = "the kernel tells of no control group that counts memory"
    if not device.live:
        why = "a recorded tree stands still"
        nothing = {"swap_in_per_s": None, "swap_in_per_s_why": why, "swap_out_per_s": None, "swap_out_per_s_why": why}
        return Collected({**data, **nothing})
    time.sleep(max(_WINDOW_S - (time.monotonic() - begin), 0.0))
    return Collected({**data, **_rates(before, _counters(device), time.monotonic() - begin)})


def _rates(before: Mapping[str, int], after: Mapping[str, int], window_s: float) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, counter in (("swap_in_per_s", "pswpin"), ("swap_out_per_s", "pswpout")):
        if counter in before and counter in after:
            out[key] = (after[counter] - before[counter]) / window_s
        else:
            out |= {key: None, f"{key}_why": f"/proc/vmstat has no {counter}"}
    return out


def _counters(device: Device) -> dict[str, int]:
    try:
        lines = [line.split() for line in device.text("proc/vmstat").splitlines()]
    except UnavailableError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdigit()}

"""All that a device's sensors tell, at one moment: facts, figures, counters of throttling, and what is unavailable."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...engine.here import jetson_linux
from .clocks import Clock, find_clocks, find_memory_clock
from .nvml import Gpus, find_gpus
from .sampler import Sampler
from .system import swaps
from .tegra import jetson_clocks, module, read_power_mode
from .thermal import Zone, find_zones
from .throttle import read_throttles, throttling_now

__all__ = ["read_sensors"]

_WINDOW_S = 0.25


def read_sensors(
    root: Path = Path("/"), *, window_s: float = _WINDOW_S, gpus: Callable[[Path], Gpus | str] = find_gpus
) -> dict[str, Any]:
    """Everything that can be read under a root, as plain JSON (docs/sensors.md).

    Args:
        window_s: over which loads are taken; it takes that long.
        gpus: gives what NVIDIA's driver tells, or why it tells nothing.
    """
    sampler = Sampler(root, gpus=gpus)
    try:
        values = sampler.sample(time.monotonic())
        time.sleep(window_s)
        # Slow figures are in the first, loads in the second.
        values |= sampler.sample(time.monotonic())
        told = [] if sampler.gpus is None else sampler.gpus.facts()
        units, unread = sampler.channels, sampler.unread(values)
        return {
            "facts": _facts(root, told, values),
            "readings": [
                {"name": name, "kind": name.partition(".")[0], "value": value, "unit": units[name]}
                for name, value in sorted(values.items())
                if not name.startswith("throttle.")
            ],
            "unavailable": [*sampler.missing, *unread],
            "throttles": read_throttles(root)[0],
        }
    finally:
        sampler.close()


def _facts(root: Path, gpus: Sequence[dict[str, Any]], values: Mapping[str, float]) -> dict[str, Any]:
    clocks, _ = find_clocks(root)
    memory = find_memory_clock(root)
    if memory is not None:
        clocks.append(memory)
    zones = [_zone(zone) for zone in find_zones(root)]
    if gpus and not any(zone["zone"] == "gpu" for zone in zones):
        zones.append(
            {"zone": "gpu", "celsius": values.get("temperature.gpu")}
            | {key: gpus[0][key] for key in gpus[0] if key.startswith("trip_")}
        )
    swapped = swaps(root)
    return {
        "module": module(root),
        "l4t": jetson_linux(root),
        "power_mode": read_power_mode(root),
        "jetson_clocks": jetson_clocks(root, clocks),
        "clocks": [_clock(clock) for clock in clocks],
        "governors": {clock.name: governor for clock in clocks if (governor := clock.governor()) is not None},
        "thermal": zones,
        "headroom": _headroom(zones),
        "throttling_now": [*throttling_now(root), *(name for gpu in gpus for name in gpu["throttle_reasons"] or ())],
        "swap_on": None if swapped is None else bool(swapped),
        "zram_on": None if swapped is None else any(Path(path).name.startswith("zram") for path in swapped),
        "gpu": dict(gpus[0]) if gpus else None,
        "gpus": len(gpus) or None,
    }


def _clock(clock: Clock) -> dict[str, Any]:
    return {
        "name": clock.name,
        "hz": clock.hz(),
        "low_hz": clock.low_hz(),
        "high_hz": clock.high_hz(),
        "locked": clock.locked(),
        "hardware_high_hz": clock.hardware_high_hz(),
    }


def _zone(zone: Zone) -> dict[str, Any]:
    return {
        "zone": zone.name,
        "celsius": zone.celsius(),
        "trip_throttle_celsius": zone.throttle_celsius,
        "trip_shutdown_celsius": zone.shutdown_celsius,
    }


def _headroom(zones: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How far each zone is from where it is slowed down, or else switched off; the nearest first."""
    out = []
    for zone in zones:
        limit = zone["trip_throttle_celsius"] or zone["trip_shutdown_celsius"]
        if limit is not None and zone["celsius"] is not None:
            out.append({"zone": zone["zone"], "celsius": round(limit - zone["celsius"], 3)})
    return sorted(out, key=lambda one: float(one["celsius"]))

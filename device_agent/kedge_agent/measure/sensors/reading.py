"""All that a device's sensors tell, at one moment: facts, figures, counters of throttling, and what is unavailable."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from .sampler import Sampler
from .throttle import read_throttles

__all__ = ["read_sensors"]

_WINDOW_S = 0.25


def read_sensors(root: Path = Path("/"), *, window_s: float = _WINDOW_S) -> dict[str, Any]:
    """Everything that can be read under a root, as plain JSON (docs/sensors.md); never raises.

    Args:
        window_s: over which loads are taken; it takes that long.
    """
    sampler = Sampler(root)
    sampler.sample()
    time.sleep(window_s)
    values = sampler.sample()
    units = sampler.channels
    throttles, _ = read_throttles(root)
    return {
        "facts": {
            "module": None,
            "l4t": None,
            "power_mode": None,
            "jetson_clocks": None,
            "clocks": [],
            "governors": [],
            "thermal": [],
            "headroom": [],
            "swap_on": None,
            "zram_on": None,
            "gpu": None,
        },
        "readings": [
            {"name": name, "kind": name.partition(".")[0], "value": value, "unit": units[name]}
            for name, value in values.items()
        ],
        "unavailable": list(sampler.missing),
        "throttles": throttles,
    }

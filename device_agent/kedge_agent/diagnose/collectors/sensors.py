"""What the sensors say (docs/sensors.md)."""

from __future__ import annotations

from ...measure.sensors.reading import read_sensors
from ..device import Collected, Device

__all__ = ["collect"]


def collect(device: Device) -> Collected:
    """See docs/diagnose.md."""
    return Collected(read_sensors(device.root))

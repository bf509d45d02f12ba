"""Engines, their passports, and whether they fit this device."""

from __future__ import annotations

from ..device import Collected, Device

__all__ = ["collect"]


def collect(device: Device) -> Collected:
    """See docs/diagnose.md."""
    return Collected({"engines": []})

"""Agents that are installed or run here."""

from __future__ import annotations

from ..device import Collected, Device

__all__ = ["collect"]


def collect(device: Device) -> Collected:
    """See docs/diagnose.md."""
    return Collected({"agents": [], "duplicates": []})

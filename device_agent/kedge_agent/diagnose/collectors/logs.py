"""Errors in the agent's logs."""

from __future__ import annotations

from ..device import Collected, Device

__all__ = ["collect"]


def collect(device: Device) -> Collected:
    """See docs/diagnose.md."""
    return Collected({"errors": [], "start_log": [], "bytes": None})

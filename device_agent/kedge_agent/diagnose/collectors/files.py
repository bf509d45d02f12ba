"""Raw files that a snapshot takes along: of the store, of the recorder, of the system's; and the service's log."""

from __future__ import annotations

from ..device import Collected, Device

__all__ = ["collect_raw", "collect_recording", "collect_service_log", "collect_store"]


def collect_store(device: Device) -> Collected:
    """Manifests, acceptance records, states, journal, logs and settings."""
    return Collected({"files": [], "left_out": []})


def collect_raw(device: Device) -> Collected:
    """Files of /proc, /sys and /etc."""
    return Collected({"files": [], "left_out": []})


def collect_recording(device: Device) -> Collected:
    """The flight recorder's segments."""
    return Collected({"files": [], "left_out": []})


def collect_service_log(device: Device) -> Collected:
    """What systemd's journal has of the agent."""
    return Collected({"files": [], "left_out": []})

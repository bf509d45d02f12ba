"""How much room there is on the device's disk."""

from __future__ import annotations

import os

from .layout import Layout

__all__ = ["SPARE_BYTES", "free_bytes", "has_room"]

SPARE_BYTES = 16 * 1024 * 1024
"""Kept free beside what a push needs: manifests, state files and the log must still fit."""


def free_bytes(layout: Layout) -> int:
    """Bytes that anybody may still write where the store lies."""
    found = os.statvfs(layout.root)
    return found.f_bavail * found.f_frsize


def has_room(layout: Layout, need_bytes: int) -> bool:
    """Whether so many bytes fit, and some to spare; nothing always fits."""
    return need_bytes <= 0 or free_bytes(layout) >= need_bytes + SPARE_BYTES

"""What a door lets through. Settings have it, and are read by processes that serve nothing: it needs no server."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Of a door.

    connections: at a time. header_bytes, body_bytes: of a request. idle_s: silence between requests.
    slowest_bytes_per_s: at which bodies must arrive and responses be taken, or grace_s longer; a head has grace_s.
    """

    connections: int = 128
    header_bytes: int = 16384
    body_bytes: int = 1 << 31
    idle_s: float = 300.0
    slowest_bytes_per_s: int = 1_000_000
    grace_s: float = 20.0

"""Recordings as they lie on the disk, read by whoever looks at the device: the daemon may write on meanwhile."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import AgentError
from ...formats.recording import Record, pack, read_ends, read_records, read_starts, summarise
from ...store.files import read_bounded
from .places import MINUTES, SECONDS, SHARES, boot_id, recorder_folder
from .ring import segments

__all__ = ["describe_recorder", "newest_starts", "read_back", "resolution_of", "segments_back"]

_MAX_SEGMENT_BYTES = 4 << 20
_MOST_BY_SECONDS_S = 6 * 3600
_HOUR_S = 3600


def resolution_of(since_s: float) -> str:
    """The ring that is read for so long a time: seconds up to 6 h, else minutes."""
    return SECONDS if since_s <= _MOST_BY_SECONDS_S else MINUTES


def segments_back(state: Path, since_s: float, ring: str) -> Iterator[bytes]:
    """Files of a ring that reach back so far, the oldest first, packed; each reads alone.

    Raises:
        OSError: the folder cannot be read.
    """
    wanted: list[Path] = []
    for path in reversed(segments(recorder_folder(state) / ring)):
        ends = read_ends(_read(path))
        if ends is not None:
            wanted.insert(0, path)
            if _age_s(ends[0]) >= since_s:
                break
    for path in wanted:
        # The oldest one may have made room meanwhile.
        yield pack(_read(path))


def read_back(state: Path, since_s: float, ring: str | None = None) -> Iterator[Record]:
    """Records of the last `since_s` seconds, oldest first, starts included.

    Args:
        ring: `seconds` or `minutes`; None: as `resolution_of` says.

    Raises:
        OSError: the folder cannot be read.
    """
    for data in segments_back(state, since_s, ring or resolution_of(since_s)):
        yield from (record for record in read_records(data) if _age_s(record) <= since_s)


def newest_starts(state: Path, most: int) -> list[Record]:
    """How the daemon began, the newest times, oldest first.

    Raises:
        OSError: the folder cannot be read.
    """
    found: deque[Record] = deque(maxlen=most)
    for path in segments(recorder_folder(state) / MINUTES):
        found.extend(read_starts(_read(path)))
    return list(found)


def describe_recorder(state: Path) -> dict[str, Any] | None:
    """The recorder's part of the facts: {status: {files, bytes, first_s, last_s, cost}, hour: summary or None}.

    first_s and last_s are of the wall clock; cost is the recorder's share of one core by its own measurement, of its
    last sample within the hour. None: nothing was ever recorded.

    Raises:
        OSError: the folder cannot be read.
    """
    rings = {name: segments(recorder_folder(state) / name) for name in SHARES}
    ends = [each for paths in rings.values() for path in paths[:1] + paths[-1:] if (each := read_ends(_read(path)))]
    if not ends:
        return None
    hour = summarise(read_back(state, _HOUR_S, SECONDS))
    cost = hour["channels"].get("recorder.cpu_share")
    status = {
        "files": sum(map(len, rings.values())),
        "bytes": sum(_size(path) for paths in rings.values() for path in paths),
        "first_s": min(first.at_s for first, _ in ends),
        "last_s": max(last.at_s for _, last in ends),
        "cost": None if cost is None else cost["last"],
    }
    return {"status": status, "hour": hour if hour["seconds"] else None}


def _age_s(record: Record) -> float:
    """By the clock that does not jump, where it is of this start of the system."""
    if record.boot and record.boot == boot_id():
        return time.clock_gettime(time.CLOCK_BOOTTIME) - record.monotonic_s
    return time.time() - record.at_s


def _read(path: Path) -> bytes:
    """Nothing, where it went meanwhile or cannot be read: the others tell what they tell."""
    try:
        return read_bounded(path, _MAX_SEGMENT_BYTES)
    except (OSError, AgentError):
        return b""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0

"""Recordings as they lie on the disk, read by whoever looks at the device: the daemon may write on meanwhile."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import AgentError
from ...formats.recording import Record, Summary, pack, read_boots, read_ends, read_records, read_starts
from ...store.files import read_bounded
from .places import MINUTES, SECONDS, SHARES, boot_id, recorder_folder
from .ring import segments

__all__ = ["describe_recorder", "newest_starts", "read_ages", "read_back", "resolution_of", "segments_back"]

_MAX_SEGMENT_BYTES = 4 << 20
_MOST_BY_SECONDS_S = 6 * 3600
_HOUR_S = 3600
_RECENT_S = 300
# 2020: a wall clock that is before it was not set since the system started.
_SET_S = 1_577_836_800


def resolution_of(since_s: float) -> str:
    """The ring that is read for so long a time: seconds up to 6 h, else minutes."""
    return SECONDS if since_s <= _MOST_BY_SECONDS_S else MINUTES


def segments_back(state: Path, since_s: float, ring: str) -> Iterator[bytes]:
    """Files of a ring that reach back so far, the oldest first, packed; each reads alone.

    A file is among them where it may have such a record: the age of some is not known (`_Boots`).

    Raises:
        OSError: the folder cannot be read.
    """
    yield from (pack(data) for data in _reaching(state, since_s, ring, _Boots()))


def read_back(state: Path, since_s: float, ring: str | None = None) -> Iterator[Record]:
    """Records of the last `since_s` seconds, oldest first, starts included; those whose age is not known are none.

    Args:
        ring: `seconds` or `minutes`; None: as `resolution_of` says.

    Raises:
        OSError: the folder cannot be read.
    """
    return (record for record, _ in read_ages(state, since_s, ring or resolution_of(since_s)))


def read_ages(state: Path, since_s: float, ring: str) -> Iterator[tuple[Record, float]]:
    """As `read_back`, and how many seconds ago each was."""
    boots = _Boots()
    for data in _reaching(state, since_s, ring, boots):
        for record in read_records(data):
            age_s = boots.age_s(record)
            if age_s is not None and age_s <= since_s:
                yield record, age_s


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
    """The recorder's part of the facts: {status: {files, bytes, first_s, last_s, cost}, hour, recent: summary or None}.

    recent is of the last five minutes.
    first_s and last_s are of the wall clock; cost is the recorder's share of one core by its own measurement, of its
    last sample within the hour. None: nothing was ever recorded.

    Raises:
        OSError: the folder cannot be read.
    """
    rings = {name: segments(recorder_folder(state) / name) for name in SHARES}
    ends = [each for paths in rings.values() for path in paths[:1] + paths[-1:] if (each := read_ends(_read(path)))]
    if not ends:
        return None
    hour, recent = _latest(state)
    cost = hour["channels"].get("recorder.cpu_share")
    status = {
        "files": sum(map(len, rings.values())),
        "bytes": sum(_size(path) for paths in rings.values() for path in paths),
        "first_s": min(first.at_s for first, _ in ends),
        "last_s": max(last.at_s for _, last in ends),
        "cost": None if cost is None else cost["last"],
    }
    return {
        "status": status,
        "hour": hour if hour["seconds"] else None,
        "recent": recent if recent["seconds"] else None,
    }


def _latest(state: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    hour, recent = Summary(), Summary()
    for record, age_s in read_ages(state, _HOUR_S, SECONDS):
        hour.add(record)
        if age_s <= _RECENT_S:
            recent.add(record)
    return hour.to_json(), recent.to_json()


class _Boots:
    """How long ago records are, by the start of the system that they are of. To be told of these the newest first.

    Of this start of the system, the clock that does not jump says it. Of another, its wall clock does, as it was at
    last: until it is set, it may be far behind. It is no less than what passed since that start: this one, and all that
    was recorded between. A wall clock that never was set, or that is ahead of now's, says nothing.
    """

    def __init__(self) -> None:
        self._now_s = time.time()
        self._least_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        # How long ago each began: at least, and as far as it is known.
        self._began: dict[str, tuple[float, float | None]] = {}
        if boot_id():
            self._began[boot_id()] = self._least_s, self._least_s

    def add(self, last: Record) -> None:
        """The last record of a start of the system; of one that was added, nothing changes."""
        if not last.boot or last.boot in self._began:
            return
        self._least_s += last.monotonic_s
        passed = self._wall_s(last)
        known = None if passed is None else max(passed + last.monotonic_s, self._least_s)
        self._began[last.boot] = self._least_s, known

    def age_s(self, record: Record) -> float | None:
        """None: it is not known."""
        if record.boot not in self._began:
            return self._wall_s(record)
        began_s = self._began[record.boot][1]
        return None if began_s is None else began_s - record.monotonic_s

    def least_s(self, record: Record) -> float:
        """Its age, or less; 0 where nothing is known."""
        began = self._began.get(record.boot)
        return 0.0 if began is None else began[0] - record.monotonic_s

    def _wall_s(self, record: Record) -> float | None:
        return self._now_s - record.at_s if _SET_S <= record.at_s <= self._now_s else None


def _reaching(state: Path, since_s: float, ring: str, boots: _Boots) -> Iterator[bytes]:
    """Files that may have a record of the last `since_s` seconds, the oldest first."""
    wanted: list[Path] = []
    for path in reversed(segments(recorder_folder(state) / ring)):
        lasts = [last for _, last in read_boots(_read(path))]
        for last in reversed(lasts):
            boots.add(last)
        if lasts and boots.least_s(lasts[-1]) > since_s:
            break
        ages = [boots.age_s(last) for last in lasts]
        if any(age_s is None or age_s <= since_s for age_s in ages):
            wanted.append(path)
    # The oldest one may have made room meanwhile.
    yield from (_read(path) for path in reversed(wanted))


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

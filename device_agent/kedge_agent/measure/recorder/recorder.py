"""The thread that records: each second what every model did, and what the sensors read.

Nobody waits for it. Where the disk takes nothing it says so once, and tries again each minute; what goes wrong in it
otherwise, it says once too, and goes on.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ...formats.recording import THROTTLE, Merger, ModelRecord, Record, Start, latest_models
from .cost import Cost
from .places import MINUTES, SECONDS, SHARES, boot_id
from .ring import Ring

__all__ = ["Recorder", "Sensors"]

_LOG = logging.getLogger("kedge.recorder")

_SYNC_S = 10.0
_AGAIN_S = 60.0
_MINUTE_S = 60.0
_CLOSE_S = 2.0
# Whoever did not end a second for so long waits for a disk or a driver.
_HANGS_S = 60.0
# A busy machine may be late with a second by this much, and has served meanwhile.
_LONGEST_S = 5.0
_RSS = "memory.agent_rss"
_OWN_UNITS = {"recorder.cpu_share": "ratio", "recorder.bytes": "bytes", _RSS: "bytes"}
_STATM = Path("/proc/self/statm")
_PAGE_BYTES = os.sysconf("SC_PAGESIZE")


class Sensors(Protocol):
    """What is read each second (`measure.sensors.sampler.Sampler`)."""

    @property
    def channels(self) -> Mapping[str, str]:
        """Units by channel."""
        ...

    def sample(self, now_s: float | None = None) -> dict[str, float]:
        """Readings by channel."""
        ...

    def close(self) -> None:
        """Let go of the files."""
        ...


class Recorder:
    """Records from `start` to `close`.

    Args:
        folder: of the rings; its parent must be there.
        take: what each model did since it was last asked, by name; first what is left of releases that were replaced,
            the live ones last. Called once a second by one thread.
        sensors: makes what reads the rest; called in the thread, which then owns it.
        limit_bytes: of the disk, for all of it.
        began: how this daemon began.
    """

    def __init__(
        self,
        folder: Path,
        take: Callable[[], Sequence[Mapping[str, ModelRecord]]],
        sensors: Callable[[], Sensors],
        limit_bytes: int,
        began: Start,
    ) -> None:
        self._take = take
        self._open_sensors = sensors
        self._sensors: Sensors | None = None
        self._boot = boot_id()
        self._began: Record | None = replace(self._now(), start=began)
        self._rings = {
            name: Ring(folder / name, int(limit_bytes * share), self._boot) for name, share in SHARES.items()
        }
        self._units: Mapping[str, str] = _OWN_UNITS
        self._counts: dict[str, float] = {}
        self._minute = Merger()
        self._releases: dict[str, str] = {}
        self._recent: deque[Record] = deque(maxlen=int(_MINUTE_S))
        self._sampled: Record | None = None
        self._cost = Cost()
        self._turn = 0
        self._synced = self._taken = self._recorded = time.monotonic()
        self._again = 0.0
        self._silent = self._said = self._unread = False
        self._ended = threading.Event()
        self._guard = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def start(self) -> None:
        """Begin. To be called once."""
        self._thread.start()

    def close(self) -> None:
        """End, after what is being written; a disk that hangs is waited for 2 s."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)

    @property
    def bytes(self) -> int:
        """What the recording takes on the disk."""
        return sum(ring.bytes for ring in self._rings.values())

    @property
    def cpu_share(self) -> float | None:
        """Of one core, over the last minute; None: not measured yet."""
        return self._cost.cpu_share

    @property
    def writes(self) -> bool:
        """Whether the disk took the last record, and that was in the last minute: it may hang, and seconds may fail."""
        return not self._silent and not self._hangs

    def sampled(self) -> Record | None:
        """The last record that has readings of sensors; None: there is none yet, or none of the last minute."""
        return None if self._hangs else self._sampled

    def last_minute(self) -> Mapping[str, ModelRecord]:
        """What the live release of each model did in the last minute, by name; nothing, where that is not recorded."""
        if self._hangs:
            return {}
        with self._guard:
            recent = list(self._recent)
        return latest_models(recent)

    @property
    def _hangs(self) -> bool:
        return time.monotonic() - self._recorded > _HANGS_S

    def _run(self) -> None:
        due = time.monotonic() + 1.0
        # How it began is written at once: it may end within the second.
        self._written(lambda: None)
        while not self._ended.wait(max(due - time.monotonic(), 0.0)):
            # A second that nobody recorded stays one: what follows it is no shorter for it.
            due = max(due + 1.0, time.monotonic() + 0.5)
            self._pass()
        # What was answered since then.
        self._pass()
        self._finish()

    def _pass(self) -> None:
        began, now = time.thread_time(), time.monotonic()
        seconds, self._taken = now - self._taken, now
        try:
            # An agent that was stopped did not serve meanwhile: it is a gap, and no long second.
            self._second(min(seconds, _LONGEST_S))
            self._recorded = time.monotonic()
        except Exception:
            if not self._said:
                _LOG.exception("a second was not recorded; this is said once")
            self._said = True
        self._cost.add(time.thread_time() - began, seconds)

    def _second(self, seconds: float) -> None:
        *left, live = self._take()
        record = replace(self._now(), seconds=seconds, models=live)
        for models in left:
            self._keep(replace(record, seconds=0.0, models=models))
        self._turn += 1
        if self._turn % self._cost.every == 0:
            record = self._sampled = self._with_readings(record)
        self._keep(record)
        if self._minute.seconds >= _MINUTE_S - 0.5:
            self._end_minute()
        if time.monotonic() - self._synced >= _SYNC_S:
            self._synced = time.monotonic()
            self._written(self._rings[SECONDS].sync)

    def _with_readings(self, record: Record) -> Record:
        read = self._readings()
        own = {"recorder.bytes": self.bytes, "recorder.cpu_share": self._cost.cpu_share, _RSS: _rss_bytes()}
        channels = {**read, **{name: float(value) for name, value in own.items() if value is not None}}
        return replace(record, channels=channels, units=self._units, throttled=self._throttled(read))

    def _readings(self) -> Mapping[str, float]:
        """Nothing, where something is wrong with them: what the models did is recorded all the same."""
        try:
            if self._sensors is None:
                self._sensors = self._open_sensors()
            read = self._sensors.sample()
            if not read.keys() <= self._units.keys():
                self._units = {**self._sensors.channels, **_OWN_UNITS}
        except Exception:
            if not self._unread:
                _LOG.exception("the sensors were not read; this is said once")
            self._unread = True
            return {}
        return read

    def _keep(self, record: Record) -> None:
        releases = {name: each.release for name, each in record.models.items()}
        if record.seconds and releases != self._releases:
            # No minute has two releases of one model: they are to be compared.
            self._end_minute()
            self._releases = releases
        self._minute.add(record)
        with self._guard:
            self._recent.append(record)
        self._written(lambda: self._rings[SECONDS].append(record))

    def _throttled(self, channels: Mapping[str, float]) -> float | None:
        counts = {name: value for name, value in channels.items() if name.startswith(THROTTLE)}
        known, self._counts = self._counts, {**self._counts, **counts}
        if not counts or not known:
            return None
        return float(any(value > known.get(name, value) for name, value in counts.items()))

    def _end_minute(self, *, sync: bool = True) -> None:
        merged, self._minute = self._minute.merged(), Merger()
        if merged is not None:
            self._written(lambda: self._rings[MINUTES].append(merged))
            if sync:
                self._written(self._rings[MINUTES].sync)

    def _finish(self) -> None:
        self._end_minute(sync=False)
        # The kernel has it: nothing is synced here, for the next agent waits for this one's end.
        for ring in self._rings.values():
            ring.close()
        if self._sensors is not None:
            self._sensors.close()

    def _written(self, write: Callable[[], object]) -> None:
        """Write, unless the disk took nothing within the last minute."""
        if self._silent and time.monotonic() < self._again:
            return
        try:
            if self._began is not None:
                self._write_start(self._began)
                self._began = None
            write()
        except OSError as error:
            for ring in self._rings.values():
                ring.close()
            self._again = time.monotonic() + _AGAIN_S
            if not self._silent:
                _LOG.error("nothing is recorded until the disk takes it again: %s", error)
            self._silent = True
            return
        if self._silent:
            _LOG.info("recording again")
            self._silent = False

    def _write_start(self, began: Record) -> None:
        # The kernel has it before anything waits for the disk: this process may have little time.
        for ring in self._rings.values():
            ring.append(began)
        for ring in self._rings.values():
            ring.sync()

    def _now(self) -> Record:
        return Record(time.time(), self._boot, time.clock_gettime(time.CLOCK_BOOTTIME), 0.0)


def _rss_bytes() -> int | None:
    """Resident set of this process (proc(5), statm: the second number, in pages)."""
    try:
        return int(_STATM.read_bytes().split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None

"""What a device's flight recorder has of the last hours: fetched, set on one line of time, merged into few steps.

A device may send anything: what is kept of it is bounded, and nothing of it is believed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from kedge_agent.formats.recording import Merger, Record, Skipped, read_ends, read_records, summarise

from ..transport.base import Deadline, Transport
from .asking import ask

__all__ = ["STEPS_S", "Recording", "read_recording", "recording_of", "step_for"]

STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800)
"""Lengths that a step may have, in seconds."""

# The recorder's files take 32 MB, 64 at the most by a device's settings (docs/recorder.md).
_MOST_BYTES = 64 << 20
_MOST_RECORDS = 600_000
_MOST_MODELS = 16
_MOST_EVENTS = 500
_GAP_S = 1.5
_SILENT_S = 5.0
_JUMP_S = 2.0
_WITHIN_S = 120.0


@dataclass(frozen=True)
class Recording:
    """A recording of the time from `from_s` to `to_s`: wall seconds since 1970 by the device's clock as it stands now.

    step_s: the length of a step. resolution_s: of what was recorded; None: not told.
    steps: what was recorded in each, oldest first; one of which there is nothing is not there.
    starts: records of how the agent began.
    gaps: from and to of what was not recorded between two records, or since the last one.
    jumps: when the device's clock was set, and by how many seconds.
    summary: of all of it (`kedge_agent.formats.recording.summarise`).
    lost: places of the recording that could not be read.
    """

    from_s: float
    to_s: float
    step_s: float
    resolution_s: float | None
    steps: Sequence[Record]
    starts: Sequence[Record]
    gaps: Sequence[tuple[float, float]]
    jumps: Sequence[tuple[float, float]]
    summary: Mapping[str, Any]
    lost: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: docs/history.md."""
        return {
            "from_s": self.from_s,
            "to_s": self.to_s,
            "step_s": self.step_s,
            "resolution_s": self.resolution_s,
            "summary": dict(self.summary),
            "steps": [_step_json(each) for each in self.steps],
            "starts": [
                {"at_s": each.at_s, "version": each.start.version, "how": each.start.how}
                for each in self.starts
                if each.start is not None
            ],
            "gaps": [{"from_s": begin, "to_s": end} for begin, end in self.gaps],
            "clock_jumps": [{"at_s": at_s, "by_s": by_s} for at_s, by_s in self.jumps],
            "lost": self.lost,
        }


def read_recording(
    transport: Transport, since_s: int, *, steps: int = 300, model: str | None = None
) -> Recording | None:
    """Fetch what a device recorded; its agent need not run, or answer.

    Args:
        since_s: how many seconds back from now.
        steps: into how many it is merged, at the most.
        model: of this one alone; None: of all.

    Returns:
        None where nothing was recorded in that time.

    Raises:
        UnreachableError: the device does not answer in time, or the stream was cut.
        IncompatibleError: what it writes makes no sense, or is too long.
        KedgeError: what the device reports, or that its agent knows of no recording.
    """
    data = bytearray()
    deadline = Deadline.after(_WITHIN_S, f"fetching the recording of {transport.name}")
    words = ["recording", "--since", str(since_s)]
    told = ask(transport, words, deadline, data.extend, limit_bytes=_MOST_BYTES)
    now_s, resolution_s = (_number(told.end.get(key)) for key in ("at_s", "resolution_s"))
    return recording_of(bytes(data), since_s, steps=steps, model=model, now_s=now_s, resolution_s=resolution_s)


def recording_of(
    data: bytes,
    since_s: float,
    *,
    steps: int = 300,
    model: str | None = None,
    now_s: float | None = None,
    resolution_s: float | None = None,
) -> Recording | None:
    """The last `since_s` seconds of a recording, as `read_recording` fetches it or a snapshot holds it.

    Records of the newest start of the system are placed by the clock that does not jump; so a clock that was set
    meanwhile bends nothing. Of earlier ones the wall clock of that time is all there is.

    Args:
        data: files of one ring, one after another.
        now_s: when it was read, by the device's clock; None: at its last record.
        resolution_s: of the recording, where it is known.

    Returns:
        None where there is nothing of that time.
    """
    ends = read_ends(data)
    if ends is None:
        return None
    newest = ends[1]
    to_s = now_s if now_s is not None and now_s > newest.at_s else newest.at_s
    gatherer = _Gatherer(newest, (to_s - since_s, to_s), step_for(since_s, steps), model, resolution_s)
    skipped = Skipped()
    summary = summarise(gatherer.gather(islice(read_records(data, skipped), _MOST_RECORDS)))
    if not gatherer.recorded_s and not gatherer.starts:
        return None
    return gatherer.recording(summary, skipped.damaged + skipped.frames)


def step_for(since_s: float, steps: int) -> float:
    """The least length of a step with which so long a time has at most so many of them."""
    return next((each for each in STEPS_S if since_s / each <= steps), math.ceil(since_s / steps))


class _Gatherer:
    """Records in, one by one; nothing of them is held but steps, and what happened."""

    def __init__(
        self,
        newest: Record,
        span_s: tuple[float, float],
        step_s: float,
        model: str | None,
        resolution_s: float | None,
    ) -> None:
        self._newest = newest
        self._from_s, self._to_s = span_s
        self._step_s = step_s
        self._model = model
        self._resolution_s = resolution_s
        self._models: set[str] = set()
        self._mergers: dict[int, Merger] = {}
        self._gaps: list[tuple[float, float]] = []
        self._jumps: list[tuple[float, float]] = []
        self._last_s: float | None = None
        self.starts: list[Record] = []
        self.recorded_s = 0.0

    def gather(self, records: Iterable[Record]) -> Iterator[Record]:
        """Take records in their order, and pass on those of the time that was asked for, each at its place in it."""
        before: Record | None = None
        for record in records:
            at_s = self._at_s(record)
            if at_s is None or not self._from_s < at_s <= self._to_s:
                continue
            placed = self._placed(record, at_s)
            if placed.start is not None:
                if len(self.starts) < _MOST_EVENTS:
                    self.starts.append(placed)
                continue
            if placed.seconds:
                self._look(before, record, placed)
                before = record
            self._mergers.setdefault(math.ceil(placed.at_s / self._step_s) - 1, Merger()).add(placed)
            yield placed

    def recording(self, summary: Mapping[str, Any], lost: int) -> Recording:
        """All that was gathered."""
        silent_s = max(_SILENT_S, 1.5 * (self._resolution_s or 0.0))
        last_s = self._from_s if self._last_s is None else self._last_s
        if self._to_s - last_s > silent_s:
            self._gaps.append((last_s, self._to_s))
        steps = [self._mergers[number].merged() for number in sorted(self._mergers)]
        return Recording(
            self._from_s,
            self._to_s,
            self._step_s,
            self._resolution_s,
            [step for step in steps if step is not None and step.seconds],
            self.starts,
            self._gaps[-_MOST_EVENTS:],
            self._jumps,
            {**summary, "clock_jumps": len(self._jumps)},
            lost,
        )

    def _at_s(self, record: Record) -> float | None:
        """When it was, by the device's clock of now; None: an earlier start of the system, whose clock was ahead."""
        newest = self._newest
        if record.boot and record.boot == newest.boot:
            return newest.at_s - (newest.monotonic_s - record.monotonic_s)
        return record.at_s if record.at_s <= newest.at_s - newest.monotonic_s or not record.boot else None

    def _placed(self, record: Record, at_s: float) -> Record:
        models = record.models
        if self._model is not None:
            models = {name: each for name, each in models.items() if name == self._model}
        if len(self._models) < _MOST_MODELS:
            self._models.update(islice(models, _MOST_MODELS - len(self._models)))
        if not models.keys() <= self._models:
            models = {name: each for name, each in models.items() if name in self._models}
        return replace(record, at_s=at_s, models=models)

    def _look(self, before: Record | None, record: Record, placed: Record) -> None:
        """What lies between two records. before, record: as they were written."""
        if before is not None and before.boot == record.boot and len(self._jumps) < _MOST_EVENTS:
            by_s = (record.at_s - before.at_s) - (record.monotonic_s - before.monotonic_s)
            if abs(by_s) >= _JUMP_S:
                self._jumps.append((placed.at_s, by_s))
        begin_s = placed.at_s - placed.seconds
        if self._last_s is not None and begin_s - self._last_s > _GAP_S and len(self._gaps) < _MOST_RECORDS:
            self._gaps.append((self._last_s, begin_s))
        self._last_s = max(placed.at_s, self._last_s or placed.at_s)
        self.recorded_s += placed.seconds


def _step_json(step: Record) -> dict[str, Any]:
    told = summarise([step])
    return {
        "at_s": step.at_s,
        "seconds": step.seconds,
        "models": told["models"],
        "channels": {
            # They were recorded in single precision, which has 7 digits.
            name: {key: float(f"{each[key]:.7g}") for key in ("mean", "min", "max")}
            for name, each in told["channels"].items()
        },
        "throttled_share": step.throttled,
    }


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)

"""`kedge-agent diagnose snapshot`: what all collectors found, and their files, as one packed file without secrets.

It ends by its deadline whatever hangs. Collectors that may tell a name or a secret run first, and nothing of theirs is
written before all of it was shown to the redactor; of this, 40 MiB at most are held. The recording, which is large and
has no text to speak of, follows as it comes. Nothing is written to the disk.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from .. import __version__
from ..formats.parts import Part, write_json_part, write_part
from ..formats.snapshots import BEGUN, FACTS, MANIFEST, SNAPSHOT, is_member_name
from .allowed import LEFT_OUT
from .answering import asked_first
from .archive import Archive
from .collectors.table import COLLECTORS
from .device import Device
from .facts import progress_of
from .known import Known, known_of
from .members import LeftOutError, masked_document, masked_member, shown_to
from .redact import LateError, Redactor
from .running import Collector, Outcome, run_collectors

__all__ = ["write_snapshot"]

_RECORDING = "recording_files"
_MAX_HELD_BYTES = 40 << 20
_OVER = "the time for all was over"
_UNKNOWN = "what is to be masked could not be found out"
# Of the time: until collectors that tell are cut, until nothing more is shown to the redactor, until the recording is
# cut, and until nothing more is written.
_TELL_SHARE, _SHOW_SHARE, _RECORDING_SHARE, _WRITE_SHARE = 0.6, 0.75, 0.85, 0.95


def write_snapshot(
    state: Path,
    sink: BinaryIO,
    seconds: float,
    collectors: tuple[Collector, ...] = COLLECTORS,
    root: Path = Path("/"),
) -> None:
    """Write PROGRESS as each collector ends, the file as DATA, the redactor's map as PRIVATE, and END: the manifest.

    Args:
        seconds: within which it is over, as far as whoever reads takes what is written.
        root: where /proc, /sys and /etc begin.
    """
    device = Device(state, root, raw=True, seconds=seconds * _TELL_SHARE)
    _Snapshot(device, sink, seconds).write(collectors)


@dataclass
class _Row:
    """How a collector went, and what came of its files: names and sizes, and why others are not there."""

    outcome: Outcome
    members: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)


class _Snapshot:
    """One that is being written."""

    def __init__(self, device: Device, sink: BinaryIO, seconds: float) -> None:
        self._device, self._sink, self._seconds = device, sink, seconds
        self._begin, self._at_s = time.monotonic(), time.time()
        self._archive = Archive(lambda data: write_part(sink, Part.DATA, data))
        self._redactor = Redactor()
        self._known: Known | None = None
        self._rows: dict[str, _Row] = {}

    def write(self, collectors: tuple[Collector, ...]) -> None:
        device, collectors = asked_first(self._device, collectors, self._left(_TELL_SHARE))
        known = self._known = known_of(device, self._left(_TELL_SHARE))
        self._redactor = Redactor(known.values)
        self._add(BEGUN, self._head())
        self._archive.flush()

        held: list[Outcome] = []
        first = [each for each in collectors if each.name != _RECORDING]

        def hold(outcome: Outcome) -> None:
            self._tell(outcome)
            why = self._shown(outcome)
            if why is not None:
                self._leave_out(outcome, why)
                return
            held.append(outcome)
            if sum(map(_size, held)) > _MAX_HELD_BYTES:
                self._write_outcome(held.pop(max(range(len(held)), key=lambda place: _size(held[place]))))

        run_collectors(first, device, self._left(_TELL_SHARE), hold)
        order = {collector.name: place for place, collector in enumerate(collectors)}
        for outcome in sorted(held, key=lambda each: order[each.name]):
            self._write_outcome(outcome)
        held.clear()
        last = [each for each in collectors if each.name == _RECORDING]
        for name, outcome in run_collectors(last, device, self._left(_RECORDING_SHARE), self._write_told).items():
            self._rows.setdefault(name, _Row(outcome))
        manifest = self._head() | {
            "collectors": {name: self._told(self._rows[name]) for name in order},
            "known": self._how(known.outcome),
            "redacted": dict(sorted(self._redactor.counts.items())),
            "packing": self._archive.packing,
            "seconds": round(time.monotonic() - self._begin, 3),
        }
        self._add(MANIFEST, manifest)
        self._archive.close()
        write_json_part(self._sink, Part.PRIVATE, self._redactor.private_map())
        write_json_part(self._sink, Part.END, manifest)

    @property
    def _may_tell(self) -> bool:
        """Whether it is known what is to be masked."""
        return self._known is not None and self._known.whole

    def _left(self, share: float) -> float:
        """Seconds until so much of the time is over; a moment at least."""
        return max(0.2, self._due(share) - time.monotonic())

    def _due(self, share: float) -> float:
        return self._begin + self._seconds * share

    def _late(self, share: float) -> bool:
        return time.monotonic() > self._due(share)

    def _head(self) -> dict[str, Any]:
        return {
            "kedge_snapshot": SNAPSHOT,
            "at_s": self._at_s,
            "agent_version": __version__,
            "state": self._redactor.text(str(self._device.state), BEGUN) if self._may_tell else LEFT_OUT,
        }

    def _how(self, outcome: Outcome) -> dict[str, Any]:
        told = outcome.reason if self._may_tell or outcome.reason is None else LEFT_OUT
        reason = told and self._redactor.text(told, MANIFEST)
        return {"status": outcome.status, "reason": reason, "ms": round(outcome.ms, 3)}

    def _told(self, row: _Row) -> dict[str, Any]:
        return {**self._how(row.outcome), "members": row.members, "left_out": row.left_out}

    def _tell(self, outcome: Outcome) -> None:
        write_json_part(self._sink, Part.PROGRESS, progress_of(outcome))

    def _write_told(self, outcome: Outcome) -> None:
        self._tell(outcome)
        why = self._shown(outcome)
        if why is None:
            self._write_outcome(outcome)
        else:
            self._leave_out(outcome, why)

    def _shown(self, outcome: Outcome) -> str | None:
        """Show it to the redactor; why it cannot be written where that fails, or comes too late."""
        if not self._may_tell:
            return _UNKNOWN
        if self._late(_SHOW_SHARE):
            return _OVER
        try:
            with self._redactor.until(self._due(_SHOW_SHARE)):
                shown_to(self._redactor, outcome)
        except LateError:
            return _OVER
        except Exception as error:  # what one collector brings does not end the whole
            return _failed(error)
        return None

    def _write_outcome(self, outcome: Outcome) -> None:
        row = self._rows[outcome.name] = _Row(outcome)
        for given, data in ((f"{FACTS}{outcome.name}.json", None), *outcome.members):
            name = self._name(given)
            try:
                written = self._masked(name, outcome, data)
            except LeftOutError as error:
                row.left_out.append({"name": name, "why": str(error)})
                continue
            self._archive.add(name, written)
            row.members.append({"name": name, "bytes": len(written)})
        self._archive.flush()

    def _masked(self, name: str, outcome: Outcome, data: bytes | None) -> bytes:
        """A file, or what the collector found; as it is to be written."""
        if self._late(_WRITE_SHARE):
            raise LeftOutError(_OVER)
        try:
            with self._redactor.until(self._due(_WRITE_SHARE)):
                if data is None:
                    masked = masked_document(self._redactor, name, outcome)
                else:
                    masked = masked_member(self._redactor, name, data)
        except LeftOutError:
            raise
        except LateError:
            raise LeftOutError(_OVER) from None
        except Exception as error:  # what is in one file does not end the whole
            raise LeftOutError(_failed(error)) from error
        refusal = self._archive.refusal(name, len(masked))
        if refusal is not None:
            raise LeftOutError(refusal)
        return masked

    def _name(self, name: str) -> str:
        """A member's name, which may hold the name of a user or a host; masks in it go without their brackets."""
        masked = re.sub("[<>]", "", self._redactor.text(name, MANIFEST))
        return masked if is_member_name(masked) else "a name that no member has"

    def _leave_out(self, outcome: Outcome, why: str) -> None:
        """Of what could not be looked through, it is told that it came."""
        names = (f"{FACTS}{outcome.name}.json", *(self._name(name) for name, _ in outcome.members))
        self._rows[outcome.name] = _Row(outcome, [], [{"name": name, "why": why} for name in names])

    def _add(self, name: str, document: Mapping[str, Any]) -> None:
        self._archive.add(name, json.dumps(document, indent=1, allow_nan=False).encode())


def _failed(error: Exception) -> str:
    return f"it could not be masked ({type(error).__name__})"


def _size(outcome: Outcome) -> int:
    return sum(len(data) for _, data in outcome.members)

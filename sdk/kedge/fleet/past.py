"""What a device did: its deploys and its recording, of one that is there or out of a snapshot's file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import state_dir
from ..deploy.history import read_history
from ..deploy.told import require
from ..diagnose.evidence import Evidence
from ..diagnose.gather import gather
from ..diagnose.opened import open_snapshot
from ..diagnose.recording import Recording, read_recording, recording_of
from ..errors import (
    AgentMissingError,
    AuthenticationRefusedError,
    HostKeyChangedError,
    KedgeError,
    UnknownHostKeyError,
    UnreachableError,
)
from ..transport.base import Transport
from ..transport.local import LocalAgent
from .inventory import LOCAL, Inventory, open_device

__all__ = ["Past", "open_as_it_is", "past_of_snapshot", "read_past"]

_ANSWERS_S = 5.0
_BY_SECONDS_S = 6 * 3600
# With these, nothing else that is asked of the device will be told.
_FINAL = (AuthenticationRefusedError, HostKeyChangedError, UnknownHostKeyError, UnreachableError)


@dataclass(frozen=True)
class Past:
    """What a device did.

    model: of this one alone; None: of all. entries: of its journal, oldest first. recording: None where there is none
    of that time. The two reasons say why there is nothing; None: there is. problems: what is wrong with the snapshot's
    file that it is out of, a line each.
    """

    device: str
    model: str | None
    entries: list[dict[str, Any]]
    entries_why: str | None
    recording: Recording | None
    recording_why: str | None
    problems: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: docs/history.md."""
        return {
            "device": self.device,
            "model": self.model,
            "entries": self.entries,
            "entries_why": self.entries_why,
            "recording": None if self.recording is None else self.recording.to_json(),
            "recording_why": self.recording_why,
            "problems": list(self.problems),
        }


@contextmanager
def open_as_it_is(device: str, inventory: Inventory | None = None) -> Iterator[Transport]:
    """A way to a device of which only its `diagnose` process need run. Of `local` no agent is started.

    Raises:
        BadInputError: the name is unknown, or its entry in the inventory is not usable.
    """
    if device == LOCAL:
        yield LocalAgent(state_dir() / LOCAL)
        return
    with open_device(device, inventory) as (transport, _):
        yield transport


def read_past(
    device: str, inventory: Inventory | None = None, *, model: str | None = None, since_s: int, steps: int = 300
) -> Past:
    """What a device did; its agent need not run, or answer.

    Args:
        model: of this one alone; None: of all.
        since_s: how far back its recording is read; its journal is told whole.
        steps: into how many the recording is merged, at the most.

    Raises:
        BadInputError: the name is unknown.
        KedgeError: the device cannot be reached, or tells nothing at all.
    """
    with open_as_it_is(device, inventory) as transport:
        recording: Recording | None = None
        why: str | None = "nothing was recorded in that time"
        try:
            recording = read_recording(transport, since_s, steps=steps, model=model)
        except _FINAL:
            raise
        except KedgeError as error:
            why = error.message.removeprefix(f"{device}: ")
        entries, entries_why = _journal(transport, model)
    return Past(device, model, entries, entries_why, recording, why if recording is None else None)


def past_of_snapshot(path: Path, *, model: str | None = None, since_s: int, steps: int = 300) -> Past:
    """What a device did until a snapshot of it was taken.

    Raises:
        BadInputError: this is no snapshot, or cannot be read, or its journal makes no sense.
    """
    opened = open_snapshot(path)
    evidence = opened.evidence()
    ring, resolution_s = ("seconds", 1.0) if since_s <= _BY_SECONDS_S else ("minutes", 60.0)
    recording = recording_of(
        opened.recording(ring), since_s, steps=steps, model=model, now_s=evidence.at_s, resolution_s=resolution_s
    )
    entries, entries_why = _told_journal(evidence, model)
    why = "the file was cut before it" if evidence.cut else "the snapshot holds no recording of that time"
    return Past(
        opened.device, model, entries, entries_why, recording, why if recording is None else None, opened.problems
    )


def _journal(transport: Transport, model: str | None) -> tuple[list[dict[str, Any]], str | None]:
    """From the agent where it answers, else from the device's disk."""
    try:
        return read_history(transport, model, timeout_s=_ANSWERS_S), None
    except (AgentMissingError, UnreachableError) as error:
        evidence = gather(transport, None)
        if not evidence.told:
            raise error from None
        return _told_journal(evidence, model)


def _told_journal(evidence: Evidence, model: str | None) -> tuple[list[dict[str, Any]], str | None]:
    section = evidence.section("journal")
    if section.why is not None:
        return [], section.why
    told: Mapping[str, Any] = section.data.value
    entries = require(evidence.device, "history", told.get("entries"))
    return [each for each in entries if model is None or each["model"] == model], None

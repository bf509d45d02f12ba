"""What was deployed, and what came of it: the journal as it is on the disk. Changes nothing."""

from __future__ import annotations

from ...store.journal import Entry, read_entries
from ..device import Collected, Device, UnavailableError, reason_of

__all__ = ["collect", "read_history"]

_NEWEST = 500


def collect(device: Device) -> Collected:
    """See docs/diagnose.md."""
    return Collected({"entries": [entry.to_json() for entry in read_history(device)[-_NEWEST:]]})


def read_history(device: Device) -> list[Entry]:
    """All records, oldest first.

    Raises:
        UnavailableError: it cannot be read.
    """
    try:
        return read_entries(device.layout)
    except OSError as error:
        raise UnavailableError(reason_of(error, device.state / "journal")) from error

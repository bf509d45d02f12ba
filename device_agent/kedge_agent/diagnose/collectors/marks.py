"""STATE/running as it is, for whoever is not the daemon: what `store.crashes.Marks` left there. Changes nothing."""

from __future__ import annotations

from typing import Any

from ...store.crashes import (
    _ALIVE,
    _ANONYMOUS,
    _BOOT,
    _CRASHES,
    _DOUBTS,
    _ENTRIES,
    _ENTRY,
    _FIRST_ENTRY,
    _FIRST_SEAT,
    _MAGIC,
    _NAME,
    _SIZE,
)
from ...store.files import read_beginning
from ...store.layout import Layout

__all__ = ["read_marks"]


def read_marks(layout: Layout, boot_id: str | None) -> dict[str, Any] | None:
    """What is marked, as the facts have it; None: nothing, or of another boot.

    Args:
        boot_id: of this boot; None: not known, and the marks are taken to be of this one.

    Raises:
        OSError: it cannot be read.
    """
    try:
        data = read_beginning(layout.root / "running", _SIZE + 1)
    except FileNotFoundError:
        return None
    if len(data) != _SIZE or not data.startswith(_MAGIC):
        return None
    if boot_id is not None and data[_BOOT].decode("ascii", "replace").strip() != boot_id:
        return None
    suspects = []
    for number in range(1, _ENTRIES + 1):
        entry = data[_FIRST_ENTRY + (number - 1) * _ENTRY :][:_ENTRY]
        crashes, doubts = entry[_CRASHES], entry[_DOUBTS]
        if crashes or doubts:
            suspects.append({**_names(entry), "crashes": crashes, "doubts": doubts})
    busy = sorted(set(data[_FIRST_SEAT + 1 : _FIRST_ENTRY]))
    computing = [
        _names(data[_FIRST_ENTRY + (number - 1) * _ENTRY :][:_ENTRY]) for number in busy if 0 < number <= _ENTRIES
    ]
    return {
        "unclean": bool(data[_ALIVE]),
        "anonymous": data[_ANONYMOUS],
        "suspects": suspects,
        "computing": [names for names in computing if names["model"]],
    }


def _names(entry: bytes) -> dict[str, str]:
    model, release = (
        part.rstrip(b"\0").decode("ascii", "replace") for part in (entry[:_NAME], entry[_NAME : 2 * _NAME])
    )
    return {"model": model, "release": release}

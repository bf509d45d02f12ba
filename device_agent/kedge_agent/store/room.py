"""Room for what is being pushed: made, where there is too little, of what nobody needs."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path

from ..errors import AgentError
from .collect import collect
from .holdings import Frames, find_missing, missing_bytes, reserved_bytes
from .layout import Layout
from .locks import using_store
from .parcel import Parcel
from .rules import ReleaseRules
from .space import SPARE_BYTES, free_bytes, has_room

__all__ = ["room_for"]


@contextlib.contextmanager
def room_for(layout: Layout, rules: ReleaseRules, parcel: Parcel, staging: Path) -> Iterator[Frames]:
    """The frames of a parcel that are missing, with room for them; while the context is open, what is here stays here.

    Blocks that an earlier push has reserved in `staging` count as room. Where it is too little, it is made.

    Raises:
        AgentError: they do not fit (space).
        OSError: as `collect` says.
    """
    keep = {parcel.digest, *(entry.sha256 for entry in parcel.files)}
    for last in (False, True):
        with using_store(layout):
            missing = find_missing(layout, parcel.files, staging)
            need = missing_bytes(parcel.files, missing) - reserved_bytes(parcel.files, staging, missing)
            if last or has_room(layout, need):
                yield missing
                return
        # Not while the store is used: what is collected is nobody's then, and is looked for anew.
        _make_room(layout, rules, need, keep)


def _make_room(layout: Layout, rules: ReleaseRules, need_bytes: int, keep: Collection[str]) -> None:
    lack = need_bytes + SPARE_BYTES - free_bytes(layout)
    collected = collect(layout, rules, pressed=True, keep=keep, lack_bytes=lack)
    if has_room(layout, need_bytes):
        return
    free = free_bytes(layout)
    if collected is None:
        made = "somebody else uses the store, so nothing could be removed from it"
    elif collected.freed_bytes:
        made = f"{collected.freed_bytes} were freed"
    else:
        made = "all that could be removed would not be enough"
    raise AgentError(
        f"{need_bytes} bytes are needed and {SPARE_BYTES} to spare; {layout.root} has {free} free, "
        f"{need_bytes + SPARE_BYTES - free} too few ({made})",
        kind="space",
        hint="free disk space on the device, or put the agent's state folder on a larger disk",
    )

"""Deploys whose end this host has not been told yet: so that the same command tells it, and the one after tries anew.

A small file a deploy, written before the device is asked and removed when its end is known, under
`$XDG_STATE_HOME/kedge/deploys`. Without it a release that was refused a week ago could not be told from one that was
refused while the connection was down.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..config import state_dir

__all__ = ["Pending", "allowing_for_clocks", "has_begun"]

_MAX_BYTES = 64 * 1024
# Between the clock of a device and this host's: how far it may be ahead, and behind.
_AHEAD_S = 60.0
_BEHIND_S = 5.0


class Pending:
    """The record of one release's deploy to one device.

    Args:
        device: its name in the inventory.
        kept: False: nothing is written or read.
    """

    def __init__(self, device: str, release: str, *, kept: bool = True) -> None:
        self._kept = kept
        self._path = state_dir() / "deploys" / f"{device}-{release}.json"

    def read(self) -> tuple[bool, Mapping[str, Any] | None]:
        """Whether an end is owed, and how the deploy before it had ended (None: there was none)."""
        if not self._kept:
            return False, None
        try:
            with self._path.open("rb") as file:
                body = json.loads(file.read(_MAX_BYTES))
            before = body["before"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            # Nothing is lost with a damaged one but the news of an end.
            return False, None
        return True, before if isinstance(before, dict) else None

    def write(self, before: Mapping[str, Any] | None) -> None:
        """An end is owed from now on. Where it cannot be written, the deploy goes on without."""
        if not self._kept:
            return
        partial = self._path.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            partial.write_text(json.dumps({"before": before}), encoding="utf-8")
            partial.replace(self._path)

    def forget(self) -> None:
        """The end was told."""
        if self._kept:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)


def allowing_for_clocks(since_s: float, now_s: float) -> float:
    """Since when, by the clock of a device that may be 5 s behind, though by no more than have passed: who asks at once
    was told of all before.

    Args:
        since_s: when a deploy was first asked for, in seconds since 1970; `now_s`: when it is asked for again.
    """
    return since_s - min(_BEHIND_S, max(now_s - since_s, 0.0))


def has_begun(entries: Sequence[Mapping[str, Any]], since_s: float) -> bool:
    """Whether the last deploy that a journal tells of began since then.

    Args:
        entries: of one release, oldest first (`deploy.history.read_history`).
        since_s: in seconds since 1970. A device's clock may be a minute ahead of this host's; for one that is behind,
            `allowing_for_clocks`.
    """
    begun = next((entry.get("at_s") for entry in reversed(entries) if entry["step"] == "begun"), None)
    # The journal has whole seconds. What lies ahead of now was written by a clock that is wrong.
    return isinstance(begun, (int, float)) and math.floor(since_s) <= begun <= time.time() + _AHEAD_S

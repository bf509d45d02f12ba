"""Whether the state folder answers at all: asked once, by one process, before ten wait for a disk that is gone.

Not even SIGKILL ends a process that waits for such a disk; each diagnosis would leave its own behind.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace

from ..store.files import read_beginning
from .device import Collected, Device
from .running import Collector, run_collectors

__all__ = ["asked_first"]

# A disk that is merely busy answers within this; where there is little time for all, a fifth of it.
_PATIENCE_S, _LEAST_S = 5.0, 1.0


def asked_first(
    device: Device, collectors: Sequence[Collector], deadline_s: float
) -> tuple[Device, tuple[Collector, ...]]:
    """The device, silent where its state folder gives no answer, and the collectors; of these, those that look there
    then say so at once.

    Args:
        deadline_s: for the question and for all of them.
    """
    probe = Collector("state", _look, min(_PATIENCE_S, max(_LEAST_S, deadline_s / 5)))
    if run_collectors([probe], device, deadline_s)[probe.name].status != "timeout":
        return device, tuple(collectors)
    silent = replace(device, silent=True)
    return silent, tuple(replace(each, collect=_say) if each.state else each for each in collectors)


def _look(device: Device) -> Collected:
    with contextlib.suppress(OSError):
        os.listdir(device.state)
        read_beginning(device.layout.lock, 1)
    return Collected({})


def _say(device: Device) -> Collected:
    device.needs_state()
    return Collected({})

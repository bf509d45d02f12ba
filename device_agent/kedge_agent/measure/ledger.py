"""The memory ledger of a live model: every line a figure and the method it came from; what cannot be had is None.

Lines are not to be added up: the process's memory holds what the runtime tells of the host, and where a GPU shares the
system's memory, what it takes is in the system's figure too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..runtime.base import MemoryItem
from .memory import MemoryReading

__all__ = ["ledger_rows"]

_EXPECTED = ("weights", "activations", "context", "pinned")


def ledger_rows(
    told: Sequence[MemoryItem], load: Mapping[str, Mapping[str, int | None]], now: MemoryReading
) -> list[dict[str, Any]]:
    """What the runtime tells, then the process, then the system.

    Args:
        told: by the loaded model.
        load: readings `before` and `after` it was loaded, as plain JSON.
    """
    rows = list(told)
    known = {item.what for item in rows}
    rows += [MemoryItem(what, None, "the runtime does not tell") for what in _EXPECTED if what not in known]
    process = "the agent's process, with every model in it: "
    rows.append(MemoryItem("process RSS", now.rss_bytes, process + "VmRSS of /proc/self/status"))
    rows.append(MemoryItem("process PSS", now.pss_bytes, process + "Pss of /proc/self/smaps_rollup"))
    before, after = load["before"]["available_bytes"], load["after"]["available_bytes"]
    lost = None if before is None or after is None else before - after
    method = "MemAvailable of /proc/meminfo before loading less after it; whatever else the system did is in it"
    rows.append(MemoryItem("system", lost, method))
    return [asdict(item) for item in rows]

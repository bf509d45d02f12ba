"""What the kernel said of memory that ran out, of GPU, heat and storage, of what hangs and what crashed."""

from __future__ import annotations

from typing import Any

from ..device import Collected, Device, UnavailableError
from ..kernel_log import KINDS, kinds_of, read_kernel_log

__all__ = ["collect"]

_NEWEST = 200
_MOST_LINES = 10_000


def collect(device: Device) -> Collected:
    """See docs/diagnose.md."""
    try:
        log = read_kernel_log(device)
    except UnavailableError as error:
        nothing: dict[str, Any] = {"source": None, "source_why": str(error), "lines": []}
        return Collected({**nothing, "counts": dict.fromkeys(KINDS)})
    counts = dict.fromkeys(KINDS, 0)
    lines = []
    for line in log.lines:
        kinds = kinds_of(line)
        for kind in kinds:
            counts[kind] += 1
        if kinds:
            lines.append(line)
    data = {"source": log.source, "lines": lines[-_NEWEST:], "counts": counts}
    whole = "".join(f"{line}\n" for line in log.lines[-_MOST_LINES:]).encode() if device.raw else b""
    return Collected(data, [("logs/kernel.log", whole)] if whole else [])

"""`kedge-agent diagnose facts`: what the collectors found, as one document (docs/schemas/facts.schema.json)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from .. import __version__
from ..formats.parts import Part, write_json_part, write_part
from .answering import asked_first
from .collectors.table import FACTS
from .device import Device
from .running import Outcome, run_collectors

__all__ = ["collect_facts", "facts_document", "progress_of", "write_facts"]


def write_facts(state: Path, sink: BinaryIO, seconds: float) -> None:
    """Write PROGRESS as each collector ends, the document as DATA, and END.

    Args:
        seconds: within which it is over.
    """
    document = collect_facts(
        Device(state, seconds=seconds), lambda outcome: write_json_part(sink, Part.PROGRESS, progress_of(outcome))
    )
    write_part(sink, Part.DATA, json.dumps(document, allow_nan=False).encode())
    write_json_part(sink, Part.END, {"seconds": document["seconds"]})


def collect_facts(device: Device, tell: Callable[[Outcome], object] = lambda outcome: None) -> dict[str, Any]:
    """The facts document; `tell` is called with each outcome as it comes."""
    at_s, begin = time.time(), time.monotonic()
    asked, collectors = asked_first(device, FACTS, device.seconds)
    outcomes = run_collectors(collectors, asked, device.seconds - (time.monotonic() - begin), tell)
    return facts_document(device, outcomes, at_s, time.monotonic() - begin)


def facts_document(device: Device, outcomes: Mapping[str, Outcome], at_s: float, seconds: float) -> dict[str, Any]:
    """The document of these outcomes.

    Args:
        at_s: when they were begun, by the device's clock. seconds: that they took.
    """
    return {
        "kedge_facts": 1,
        "at_s": at_s,
        "agent_version": __version__,
        "state": str(device.state),
        "seconds": round(seconds, 3),
        "collectors": {name: outcome.to_json() for name, outcome in outcomes.items()},
    }


def progress_of(outcome: Outcome) -> dict[str, Any]:
    """What is told of a collector as it ends."""
    return {
        "collector": outcome.name,
        "status": outcome.status,
        "reason": outcome.reason,
        "ms": round(outcome.ms, 3),
    }

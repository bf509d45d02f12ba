"""Gather what a doctor judges: of a device by its name, or out of a snapshot's file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import state_dir
from ..diagnose.evidence import Evidence
from ..diagnose.gather import gather
from ..diagnose.opened import open_snapshot
from ..errors import AgentMissingError
from ..report.text import one_line
from ..targets import host_target
from ..transport.local import LocalAgent
from .inventory import LOCAL, Inventory, open_device

__all__ = ["examine", "examine_snapshot"]


def examine(
    device: str, inventory: Inventory | None = None, note: Callable[[Mapping[str, Any]], object] = lambda told: None
) -> Evidence:
    """Evidence on a device that is there, or that cannot be reached: that is evidence too.

    Args:
        note: told of each collector that has ended.

    Raises:
        BadInputError: the name is unknown, or its entry in the inventory is not usable.
    """
    try:
        with open_device(device, inventory) as (transport, target):
            return gather(transport, target, note)
    except AgentMissingError as error:
        if device != LOCAL:
            raise
        # It does not start: what it tells without running may say why.
        evidence = gather(LocalAgent(state_dir() / LOCAL), host_target(), note)
        if evidence.told or evidence.link is None:
            return evidence
        return replace(
            evidence,
            link=replace(evidence.link, agent_problem=one_line(error.message), agent_hint=error.hint or None),
        )


def examine_snapshot(path: Path) -> Evidence:
    """Evidence out of a snapshot.

    Raises:
        BadInputError: it is none, or cannot be read.
    """
    return open_snapshot(path).evidence()

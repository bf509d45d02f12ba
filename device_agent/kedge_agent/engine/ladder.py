"""Build within the memory that a device has: try, find out why it failed, change the right limit, try again.

On a board whose CPU and GPU share memory, a builder that takes too much is killed by the kernel, and one that may take
too little finds no kernel that fits. The two call for opposite steps, so the failure is classified first:

    killed, bad_alloc, "Tactic Device request … Available"       less
    "within workspace limit", "insufficient workspace"           more workspace, up to what is available
    "OutOfMemory (Requested size was N bytes"                    more, where N bytes are there to be had: it is the
                                                                 workspace that was asked for and does not suffice
    "Could not find any implementation for node"                 as the lines before it say; if they do not, stop
    anything else                                                stop: memory is not what is wrong
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from .library import library_of
from .order import Order
from .report import CompileReport, EngineError

__all__ = ["Attempt", "classify", "climb", "first_order"]

MIB = 1 << 20
_FLOOR = 16 * MIB
_STEP = 4
_MOST_ATTEMPTS = 8
# Of what is available: the rest is the builder's own heap, the weights, and whatever else lives on the device.
_WORKSPACE_SHARE, _TACTIC_SHARE = 0.25, 0.5
_WORKSPACE_AT_FIRST = 1 << 30

_LESS = re.compile(
    r"bad_alloc|out of memory|outofmemory|Tactic Device request.*Available|Cannot allocate memory|NvMapMemAlloc",
    re.IGNORECASE,
)
_REQUESTED = re.compile(r"OutOfMemory \(Requested size was (\d{1,18}) bytes")
_MORE = re.compile(r"within workspace limit|insufficient workspace|increas\w+ the (allowed )?workspace", re.IGNORECASE)


@dataclass(frozen=True)
class Attempt:
    """One build. outcome: "built", or what its failure asks for, as `classify` says. reason: in words."""

    workspace_bytes: int | None
    tactic_dram_bytes: int | None
    available_bytes: int | None
    outcome: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "workspace_bytes": self.workspace_bytes,
            "tactic_dram_bytes": self.tactic_dram_bytes,
            "available_bytes": self.available_bytes,
            "outcome": self.outcome,
            "reason": self.reason,
        }


def classify(error: EngineError, workspace_bytes: int | None = None, available_bytes: int | None = None) -> str:
    """What a failed build asks for: "less" memory, "more" workspace, or "other".

    Args:
        workspace_bytes: that the build was allowed. available_bytes: of memory there was.
    """
    if error.kind == "killed":
        return "less"
    if error.kind not in ("memory", "refused", "crashed"):
        return "other"
    for line in reversed((*error.log, error.message)):
        requested = _REQUESTED.search(line)
        if requested is not None and workspace_bytes is not None and available_bytes is not None:
            return "more" if workspace_bytes <= int(requested[1]) <= available_bytes else "less"
        if _MORE.search(line):
            return "more"
        if _LESS.search(line):
            return "less"
    return "less" if error.kind == "memory" else "other"


def first_order(order: Order, available_bytes: int | None) -> Order:
    """The order with the limits of the first attempt, where it states none itself."""
    if available_bytes is None:
        return order
    workspace, tactic = order.workspace_bytes, order.tactic_dram_bytes
    if workspace is None:
        workspace = max(_FLOOR, min(_WORKSPACE_AT_FIRST, int(available_bytes * _WORKSPACE_SHARE)))
    # TensorRT for RTX tries no kernels: its limit would change nothing.
    if tactic is None and not library_of(order.runtime).cross:
        tactic = max(_FLOOR, int(available_bytes * _TACTIC_SHARE))
    return replace(order, workspace_bytes=workspace, tactic_dram_bytes=tactic)


def climb(
    order: Order,
    build: Callable[[Order], CompileReport],
    available: Callable[[], int | None],
    tell: Callable[[Attempt], None],
) -> tuple[CompileReport, tuple[Attempt, ...]]:
    """Build, with other limits after a failure that other limits can mend.

    Args:
        order: its own limits, where it states any, are those of the first attempt.
        build: compiles within the limits of the order it is given. available: bytes of memory to be had, asked before
            each attempt; None: unknown.
        tell: told of each attempt as it ends.

    Raises:
        EngineError: the last attempt's; its hint lists what was tried.
    """
    attempts: list[Attempt] = []
    tried = set()
    free = available()
    step = first_order(order, free)
    while True:
        tried.add((step.workspace_bytes, step.tactic_dram_bytes))
        try:
            report = build(step)
        except EngineError as error:
            failed = error
        else:
            attempts.append(Attempt(step.workspace_bytes, step.tactic_dram_bytes, free, "built", ""))
            tell(attempts[-1])
            return report, tuple(attempts)
        outcome = classify(failed, step.workspace_bytes, free)
        attempts.append(Attempt(step.workspace_bytes, step.tactic_dram_bytes, free, outcome, failed.message[:300]))
        tell(attempts[-1])
        free = available()
        following = _next(step, outcome, free)
        limits = None if following is None else (following.workspace_bytes, following.tactic_dram_bytes)
        if following is None or limits in tried or len(attempts) >= _MOST_ATTEMPTS:
            raise _given_up(failed, attempts)
        step = following


def _next(order: Order, outcome: str, available_bytes: int | None) -> Order | None:
    workspace, tactic = order.workspace_bytes or _WORKSPACE_AT_FIRST, order.tactic_dram_bytes
    if outcome == "more":
        most = available_bytes if available_bytes is not None else workspace * _STEP
        raised = min(workspace * _STEP, most)
        return replace(order, workspace_bytes=raised) if raised > workspace else None
    if outcome == "less":
        return replace(
            order, workspace_bytes=_lowered(workspace), tactic_dram_bytes=None if tactic is None else _lowered(tactic)
        )
    return None


def _lowered(size: int) -> int:
    return min(size, max(_FLOOR, size // _STEP))


def _given_up(error: EngineError, attempts: list[Attempt]) -> EngineError:
    if len(attempts) == 1:
        return error
    tried = ", ".join("?" if each.workspace_bytes is None else str(each.workspace_bytes // MIB) for each in attempts)
    return EngineError(
        error.message,
        kind=error.kind,
        hint=f"tried with a workspace of {tried} MiB; free memory on the machine, or build for a smaller batch",
        findings=error.findings,
        log=error.log,
    )

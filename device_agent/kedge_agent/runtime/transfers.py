"""How each tensor gets to the GPU and back: copied, or in place in mapped or managed memory; by measurement.

On a GPU with memory of its own a copy mostly wins; on one that shares the CPU's, reading in place wins for what is read
once, and loses for what is read again and again. No rule knows an engine's habits, so each tensor is tried each way on
the very engine while the others are copied, and then all choices together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..errors import AgentError
from .base import Transfer
from .cuda import DeviceProperties

__all__ = ["Chosen", "Measure", "Mode", "choose"]

Mode = Literal["copy", "mapped", "managed"]
Modes = Mapping[str, Mode]

Measure = Callable[[Modes], float]
"""Milliseconds of a whole request, filling and reading the buffers included, with these ways by tensor."""

GAIN = 0.98
"""A way must take at most this share of the time that copying takes: less is within the scatter of measurement."""

_BUDGET_S = 3.0


@dataclass(frozen=True)
class Chosen:
    """modes: by tensor. report: what was asked, measured and refused, as plain JSON; None: not measured."""

    modes: Modes
    report: Mapping[str, Any]


def choose(
    asked: Transfer,
    device: DeviceProperties,
    names: Sequence[str],
    measure: Measure,
    clock: Callable[[], float] = time.monotonic,
) -> Chosen:
    """Choose a way for each tensor. After 3 s of measuring, what is left stays copied.

    Raises:
        AgentError: this GPU cannot do what was asked (kind incompatible), or a run failed.
    """
    if asked != "auto":
        why = device.lacking(asked)
        if why is not None:
            raise AgentError(
                f"transfer {asked!r} cannot be had: {why}", kind="incompatible", hint="ask for auto, or for copy"
            )
        return Chosen(dict.fromkeys(names, asked), {"asked": asked})
    ways = [mode for mode in get_args(Mode) if mode != "copy" and device.lacking(mode) is None]
    refused = {mode: why for mode in get_args(Mode) if (why := device.lacking(mode)) is not None}
    copied: dict[str, Mode] = dict.fromkeys(names, "copy")
    report: dict[str, Any] = {"asked": asked, "refused": refused}
    if not ways:
        return Chosen(copied, report)
    end = clock() + _BUDGET_S
    least = measure(copied)
    chosen = dict(copied)
    tried: dict[str, dict[str, float | None]] = {name: {} for name in names}
    for name in names:
        best = least * GAIN
        for mode in ways:
            took = _tried(measure, {**copied, name: mode}) if clock() < end else None
            tried[name][mode] = took
            if took is not None and took <= best:
                chosen[name], best = mode, took
    report |= {"copied_ms": least, "tried_ms": tried}
    if chosen != copied:
        report["together_ms"] = together = _tried(measure, chosen)
        if together is None or together > least * GAIN:
            chosen = copied
    return Chosen(chosen, report)


def _tried(measure: Measure, modes: Modes) -> float | None:
    """A measurement, or None where there was no memory for it."""
    try:
        return measure(modes)
    except AgentError as error:
        if error.kind != "space":
            raise
        return None

"""Conditions that a release states of itself, and that a device checks before and after it switches to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .artefact import MAX_TENSORS
from .reader import ManifestError, Reader

__all__ = ["Gates", "LatencyGate", "ParityGate", "ParityLimits", "ProbationRules", "read_gates"]

_MAX_MS = 1e7
_MAX_MEMORY = 1 << 50
_MAX_PROBATION_S = 86400


@dataclass(frozen=True)
class ParityLimits:
    """Limits of one output against its golden one.

    cosine_min: cosine similarity of the flattened output, at least.
    relative_error_max: max |device - golden| / max |golden|, at most.
    max_abs_error_max: max |device - golden| in the output's own unit, at most; None: no limit.
    """

    cosine_min: float
    relative_error_max: float
    max_abs_error_max: float | None = None


@dataclass(frozen=True)
class ParityGate:
    """Limits of all outputs, and of those that have their own."""

    limits: ParityLimits
    outputs: Mapping[str, ParityLimits] = field(default_factory=dict)

    def of(self, output: str) -> ParityLimits:
        """The limits of an output by its name."""
        return self.outputs.get(output, self.limits)


@dataclass(frozen=True)
class LatencyGate:
    """Limits on the 99th percentile of the compute time of one request; None: no such limit.

    p99_ms: in milliseconds. p99_ratio_max: over that of the live release, measured in the same way just before.
    """

    p99_ms: float | None = None
    p99_ratio_max: float | None = None


@dataclass(frozen=True)
class ProbationRules:
    """What a release must keep to after the switch, or the device goes back by itself.

    seconds: how long it is watched; 0: not at all. error_share_max: of its requests, those that failed in the runtime.
    """

    seconds: int
    error_share_max: float = 0.01


@dataclass(frozen=True)
class Gates:
    """All of them; None: no limit, and as `probation`: the device's own settings say how long.

    memory_peak_bytes: what a process that loads and runs the model takes of its own (`measure.memory.OwnPeak`).
    """

    parity: ParityGate
    latency: LatencyGate | None = None
    memory_peak_bytes: int | None = None
    probation: ProbationRules | None = None


def read_gates(reader: Reader) -> Gates:
    """The gates of a manifest.

    Raises:
        ManifestError: they are none, or say nothing where they may say something.
    """
    gates = Gates(
        parity=_parity(reader.child("parity")),
        latency=_latency(reader.child("latency")) if "latency" in reader else None,
        memory_peak_bytes=_memory(reader.child("memory")) if "memory" in reader else None,
        probation=_probation(reader.child("probation")) if "probation" in reader else None,
    )
    reader.done()
    return gates


def _parity(reader: Reader) -> ParityGate:
    limits = ParityLimits(
        reader.decimal("cosine_min", -1, 1), reader.decimal("relative_error_max", 0, 1e6), _max_abs(reader)
    )
    outputs: dict[str, ParityLimits] = {}
    for item in reader.objects("outputs", MAX_TENSORS, least=1) if "outputs" in reader else ():
        name = item.text("name")
        own: dict[str, Any] = {}
        if "cosine_min" in item:
            own["cosine_min"] = item.decimal("cosine_min", -1, 1)
        if "relative_error_max" in item:
            own["relative_error_max"] = item.decimal("relative_error_max", 0, 1e6)
        if "max_abs_error_max" in item:
            own["max_abs_error_max"] = _max_abs(item)
        item.done()
        if not own or name in outputs:
            raise ManifestError(f"{item.path} says nothing, or names an output twice")
        outputs[name] = replace(limits, **own)
    reader.done()
    return ParityGate(limits, outputs)


def _max_abs(reader: Reader) -> float | None:
    return reader.decimal("max_abs_error_max", 0, 1e38) if "max_abs_error_max" in reader else None


def _latency(reader: Reader) -> LatencyGate:
    gate = LatencyGate(
        p99_ms=reader.decimal("p99_ms", 0, _MAX_MS) if "p99_ms" in reader else None,
        p99_ratio_max=reader.decimal("p99_ratio_max", 0, 1e6) if "p99_ratio_max" in reader else None,
    )
    reader.done()
    # What says nothing may not be written: one content, one manifest, one digest.
    if gate == LatencyGate():
        raise ManifestError(f"{reader.path} is empty")
    return gate


def _memory(reader: Reader) -> int:
    peak = reader.integer("peak_bytes", 1, _MAX_MEMORY)
    reader.done()
    return peak


def _probation(reader: Reader) -> ProbationRules:
    seconds = reader.integer("seconds", 0, _MAX_PROBATION_S)
    share = reader.decimal("error_share_max", 0, 1) if "error_share_max" in reader else None
    reader.done()
    return ProbationRules(seconds) if share is None else ProbationRules(seconds, share)

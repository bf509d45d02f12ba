"""Conditions that a device checks of a release: stated in a recipe or on the command line, noted in the ONNX file.

What is left unsaid is None, so that one who speaks later can be told from one who said nothing. `to_manifest` gives the
form of `kedge_agent.formats.gates`, which is also what refuses values that no device would take.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal
from typing import Any

from kedge_agent.formats.gates import read_gates
from kedge_agent.formats.reader import ManifestError, Reader

from ..errors import BadInputError

__all__ = ["GateOptions"]

_COSINE_MIN = "0.999"
_RELATIVE_ERROR_MAX = "0.02"
_PARITY = ("cosine_min", "relative_error_max", "max_abs_error_max")
_WHOLE = ("memory_peak_bytes", "probation_s")


@dataclass(frozen=True)
class GateOptions:
    """Limits, as decimal text where they have a point; None: not stated.

    cosine_min, relative_error_max, max_abs_error_max: of every output against its golden one.
    outputs: by an output's name, those of the same three that are its own.
    p99_ms: 99th percentile of a request's compute time, in milliseconds. p99_ratio_max: over that of the live release.
    memory_peak_bytes: what a process that loads and runs the model takes of its own, without shared pages of code.
    probation_s: how long the device watches the release after the switch; 0: not at all; None: the device decides.
    error_share_max: of the requests meanwhile, those that may fail in the runtime.

    Raises:
        BadInputError: a device would not take them.
    """

    cosine_min: str | None = None
    relative_error_max: str | None = None
    max_abs_error_max: str | None = None
    outputs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    p99_ms: str | None = None
    p99_ratio_max: str | None = None
    memory_peak_bytes: int | None = None
    probation_s: int | None = None
    error_share_max: str | None = None

    def __post_init__(self) -> None:
        if self.error_share_max is not None and self.probation_s is None:
            raise BadInputError(
                "gates: error_share_max says nothing without probation_s", hint="state how long the device watches too"
            )
        try:
            read_gates(Reader(self.to_manifest(), "gates"))
        except ManifestError as error:
            raise BadInputError(str(error), hint="docs/release-format.md has the bounds of every gate") from error

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any], where: str = "gates") -> GateOptions:
        """Read a recipe's `[gates]` table, or what `to_note` wrote.

        Raises:
            BadInputError: a key is unknown, or a value cannot be used; the line says where.
        """
        known = [item.name for item in fields(cls)]
        values: dict[str, Any] = {}
        for key, value in table.items():
            _require_known(key, known, where)
            if key == "outputs":
                values[key] = _outputs(value, f"{where}.outputs")
            elif key in _WHOLE:
                if type(value) is not int:
                    raise BadInputError(f"{where}.{key} is {value!r}", hint="it takes a whole number")
                values[key] = value
            else:
                values[key] = _decimal(value, f"{where}.{key}")
        return cls(**values)

    def to_note(self) -> dict[str, Any]:
        """What is stated, as plain JSON; `from_mapping` reads it."""
        stated = {item.name: getattr(self, item.name) for item in fields(self)}
        return {key: value for key, value in stated.items() if value not in (None, {})}

    def or_else(self, other: GateOptions) -> GateOptions:
        """The same, and what `other` says where this one says nothing; of an output, all that one of them says."""
        stated = {**other.to_note(), **self.to_note()}
        return GateOptions(**{**stated, "outputs": {**other.outputs, **self.outputs}})

    def to_manifest(self) -> dict[str, Any]:
        """The manifest's `gates`: what is not stated is absent there, but for parity, which has defaults."""
        parity: dict[str, Any] = {
            "cosine_min": self.cosine_min or _COSINE_MIN,
            "relative_error_max": self.relative_error_max or _RELATIVE_ERROR_MAX,
            **_stated(max_abs_error_max=self.max_abs_error_max),
        }
        if self.outputs:
            parity["outputs"] = [{"name": name, **limits} for name, limits in sorted(self.outputs.items())]
        probation = _stated(seconds=self.probation_s, error_share_max=self.error_share_max)
        return {
            "parity": parity,
            **_stated(
                latency=_stated(p99_ms=self.p99_ms, p99_ratio_max=self.p99_ratio_max) or None,
                memory=_stated(peak_bytes=self.memory_peak_bytes) or None,
                probation=probation or None,
            ),
        }


def _stated(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _require_known(key: Any, known: list[str], where: str) -> None:
    if key not in known:
        close = difflib.get_close_matches(str(key), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(known)}"
        raise BadInputError(f"{where} has no key {key!r}", hint=hint)


def _outputs(table: Any, where: str) -> dict[str, dict[str, str]]:
    if not isinstance(table, Mapping) or not all(isinstance(limits, Mapping) and limits for limits in table.values()):
        raise BadInputError(f"{where} is {table!r}", hint="limits by an output's name, as in [gates.outputs.logits]")
    for name, limits in table.items():
        for key in limits:
            _require_known(key, list(_PARITY), f"{where}.{name}")
    return {
        str(name): {key: _decimal(value, f"{where}.{name}.{key}") for key, value in limits.items()}
        for name, limits in table.items()
    }


def _decimal(value: Any, where: str) -> str:
    """A number as the manifest has it: decimal text, of at most 40 characters."""
    if isinstance(value, str):
        return value
    if type(value) not in (int, float) or not math.isfinite(value):
        raise BadInputError(f"{where} is {value!r}", hint="it takes a number")
    return format(Decimal(repr(value)), "f")

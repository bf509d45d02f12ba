"""What a deploy did, as the device tells it: checked here once, so that whoever shows it need not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from kedge_agent.formats.manifest import is_digest

__all__ = ["Deployed", "NonsenseError", "read_gate", "read_parity", "read_probation", "read_side"]

# Of gates' figures and limits, the numbers.
_FIGURES = (
    *("runs", "median_ms", "p99_ms", "live_p99_ms", "p99_ratio", "p99_ratio_max"),
    *("peak_bytes", "model_bytes", "libraries_bytes"),
)


@dataclass(frozen=True)
class Deployed:
    """What a deploy did (docs/deploy-report.md).

    previous: the release a rollback would return to. parity: the gate's findings per output. load: time and memory of
    loading on the device (docs/bench-report.md, `memory.load`). activate_s: from the end of the push to the switch.
    before, after: what served until then, and what serves now; None: nothing did, or the device does not tell.
    gates: what each gate found. probation: how it went; None: there was none, or it has not ended. limits: the
    manifest's gates. signed: the device verified signatures; None: it does not tell. size_bytes: of all files.
    sent_bytes: of content that the device lacked. wire_bytes: that travelled for it. skipped_bytes: that were in their
    place. copied_bytes: that the device had elsewhere.
    """

    device: str
    model: str
    version: int
    release: str
    previous: str | None
    sent_bytes: int
    skipped_bytes: int
    push_s: float
    activate_s: float
    parity: list[dict[str, Any]]
    load: dict[str, Any]
    wire_bytes: int = 0
    copied_bytes: int = 0
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    gates: list[dict[str, Any]] = field(default_factory=list)
    probation: dict[str, Any] | None = None
    limits: dict[str, Any] = field(default_factory=dict)
    signed: bool | None = None
    size_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


class NonsenseError(ValueError):
    """A device tells of its deploy what cannot be."""


def read_side(told: Mapping[str, Any]) -> dict[str, Any]:
    """What served before, or serves now: of a result, or a row of the status; what is not told is None.

    Raises:
        NonsenseError: it is none.
    """
    if not is_digest(str(told.get("release"))):
        raise NonsenseError("a release without a digest")
    return {
        "release": told["release"],
        "version": _of(told, "version", _count),
        "runtime": _of(told, "runtime", _text),
        "precision": _of(told, "precision", _text),
        "size_bytes": _of(told, "size_bytes", _count),
        "p99_ms": _of(told, "p99_ms", _number),
        "peak_bytes": _of(told, "peak_bytes", _count),
    }


def read_gate(told: Any) -> dict[str, Any]:
    """What a gate found, of a result or an event: `gate`, `passed`, `figures`, `limits`.

    Raises:
        NonsenseError: it is none.
    """
    if not isinstance(told, Mapping):
        raise NonsenseError("a gate that is none")
    figures, limits = told.get("figures"), told.get("limits")
    if not (_text(told.get("gate")) and isinstance(told.get("passed"), bool)):
        raise NonsenseError("a gate without a name or an outcome")
    if not (isinstance(figures, dict) and isinstance(limits, dict)):
        raise NonsenseError(f"the {told['gate']} gate without figures")
    for each in (figures, limits):
        for name in _FIGURES:
            _of(each, name, _number)
    more = {"outputs": read_parity(figures["outputs"])} if "outputs" in figures else {}
    return {"gate": told["gate"], "passed": told["passed"], "figures": {**figures, **more}, "limits": limits}


def read_parity(told: Any) -> list[dict[str, Any]]:
    """How each output agrees with its recording.

    Raises:
        NonsenseError: it does not tell that.
    """
    if not isinstance(told, list):
        raise NonsenseError("parity of no outputs")
    rows = []
    for row in told:
        if not isinstance(row, dict) or not _text(row.get("output")):
            raise NonsenseError("parity of an output without a name")
        rows.append(
            {
                "output": row["output"],
                "cosine": _of(row, "cosine", _number),
                "max_abs_error": _of(row, "max_abs_error", _number),
                "relative_error": _of(row, "relative_error", _number),
            }
        )
    return rows


def read_probation(told: Mapping[str, Any]) -> dict[str, Any]:
    """How a probation went or goes, of a result or an event.

    Raises:
        NonsenseError: it does not tell that.
    """
    found = {name: _of(told, name, _count) for name in ("seconds", "requests", "errors")}
    if None in found.values() or not _number(told.get("elapsed_s")):
        raise NonsenseError("a probation without its figures")
    return {
        "elapsed_s": told["elapsed_s"],
        **found,
        "p99_ms": _of(told, "p99_ms", _number),
        "cut_by": _of(told, "cut_by", _text),
    }


def _of(told: Mapping[str, Any], name: str, is_one: Callable[[Any], bool]) -> Any:
    value = told.get(name)
    if value is not None and not is_one(value):
        raise NonsenseError(f"{name} is {str(value)[:40]!r}")
    return value


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

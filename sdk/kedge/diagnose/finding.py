"""What a check of the doctor found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["Finding", "Result", "fault", "ok", "unknown", "warning"]

Result = Literal["ok", "fault", "warning", "unknown"]


@dataclass(frozen=True)
class Finding:
    """check: its name in `doctor.CHECKS`. evidence: one line with figures; of "unknown", why it is not known.

    cause: what is behind it. cure: a command that can be pasted, or what to set; both empty where nothing is amiss.
    brief: the evidence in a few words, to stand beside others in a sentence; empty where nothing is amiss.
    figures: what it was judged by, with units in the names.
    symptom: something else usually brings it about, and is looked for first.
    """

    check: str
    result: Result
    evidence: str
    cause: str = ""
    cure: str = ""
    brief: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    symptom: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def ok(check: str, evidence: str, **figures: Any) -> Finding:
    """Nothing is amiss."""
    return Finding(check, "ok", evidence, figures=figures)


def unknown(check: str, why: str, **figures: Any) -> Finding:
    """It could not be told."""
    return Finding(check, "unknown", why, figures=figures)


def fault(check: str, evidence: str, **more: Any) -> Finding:
    """Something is wrong; `more` are the other fields of a Finding."""
    return Finding(check, "fault", evidence, **more)


def warning(check: str, evidence: str, **more: Any) -> Finding:
    """Something is not as it should be, and alone stops nothing; `more` as for `fault`."""
    return Finding(check, "warning", evidence, **more)

"""The doctor: checks over evidence, in the order in which a person wants to read them, and which finding comes first.

Pure: the same evidence gives the same diagnosis, of a device that is there or out of a snapshot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .evidence import Evidence
from .finding import Finding

__all__ = ["CHECKS", "Check", "Diagnosis", "diagnose"]


@dataclass(frozen=True)
class Check:
    """One row of the table. title: for people."""

    name: str
    title: str
    look: Callable[[Evidence], Finding | list[Finding]]


@dataclass(frozen=True)
class Diagnosis:
    """What came of all checks. at_s: by the device's clock; None: it told no facts.

    first_cause: what to mend first; None: nothing is at fault. sentence: what is amiss, in one line.
    """

    device: str
    at_s: float | None
    first_cause: Finding | None
    findings: tuple[Finding, ...]
    sentence: str
    facts_seconds: float | None

    @property
    def faulty(self) -> bool:
        """Whether there is a fault: `kedge doctor` ends with exit code 10."""
        return any(finding.result == "fault" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The document of `kedge doctor --json` (docs/doctor.md)."""
        return {
            "device": self.device,
            "at": self.at_s,
            "first_cause": None if self.first_cause is None else self.first_cause.to_json(),
            "sentence": self.sentence,
            "findings": [finding.to_json() for finding in self.findings],
            "thresholds": {},
            "facts_seconds": self.facts_seconds,
        }


CHECKS: tuple[Check, ...] = ()


def diagnose(evidence: Evidence) -> Diagnosis:
    """Look at everything."""
    findings: list[Finding] = []
    for check in CHECKS:
        found = check.look(evidence)
        findings.extend(found if isinstance(found, list) else [found])
    return Diagnosis(evidence.device, evidence.at_s, None, tuple(findings), "", evidence.facts_seconds)

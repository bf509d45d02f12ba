"""What preflight found, and who says so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["SEVERITIES", "Finding", "PreflightReport", "agreed", "ordered"]

SEVERITIES = ("error", "warning", "info")
"""error: it will not run there. warning: it may not, or not well. info: worth knowing."""

_MOST = 1000


@dataclass(frozen=True)
class Finding:
    """One thing about one node, or about the model as a whole (node and op empty, place None).

    rule: a short name, the same for the same kind of finding. place: of the node in the graph's order, from 0.
    judge: whose word this is, with its version; several, with "; " between them, where they say the same.
    """

    severity: str
    rule: str
    message: str
    judge: str
    node: str = ""
    op: str = ""
    place: int | None = None
    suggestion: str = ""

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(f"unknown severity {self.severity!r}")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "severity": self.severity,
            "rule": self.rule,
            "message": self.message,
            "judge": self.judge,
            "node": self.node or None,
            "op": self.op or None,
            "place": self.place,
            "suggestion": self.suggestion or None,
        }


@dataclass(frozen=True)
class PreflightReport:
    """All of it. judges: who was asked. operators: how often each is used, as "domain.Op" or "Op".

    coverage: of quantised layers, as `check_qdq` counts them; None where nothing is quantised.
    """

    target: str
    runtime: str
    precision: str
    opset: int
    ir_version: int
    nodes: int
    operators: Mapping[str, int]
    judges: tuple[str, ...]
    findings: tuple[Finding, ...]
    memory: Mapping[str, Any] | None = None
    coverage: Mapping[str, Any] | None = None
    profiles: Mapping[str, Any] = field(default_factory=dict)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What will not run."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON (docs/preflight-report.md)."""
        counts = {severity: sum(each.severity == severity for each in self.findings) for severity in SEVERITIES}
        return {
            "target": self.target,
            "runtime": self.runtime,
            "precision": self.precision,
            "opset": self.opset,
            "ir_version": self.ir_version,
            "nodes": self.nodes,
            "operators": dict(self.operators),
            "judges": list(self.judges),
            "passed": not self.errors,
            "counts": counts,
            "findings": [finding.to_json() for finding in self.findings[:_MOST]],
            "memory": None if self.memory is None else dict(self.memory),
            "coverage": None if self.coverage is None else dict(self.coverage),
            "profiles": {name: [list(shape) for shape in shapes] for name, shapes in self.profiles.items()},
        }


def agreed(findings: Iterable[Finding]) -> Iterator[Finding]:
    """What several judges say of the same node in the same words once, with all of them as its judge."""
    judges: dict[Finding, list[str]] = {}
    for each in findings:
        judges.setdefault(replace(each, judge=""), []).append(each.judge)
    for each, said in judges.items():
        yield replace(each, judge="; ".join(dict.fromkeys(said)))


def ordered(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Errors first, then by place in the graph; the same finding by the same judge once."""
    unique = dict.fromkeys(findings)
    return tuple(
        sorted(
            unique,
            key=lambda each: (SEVERITIES.index(each.severity), -1 if each.place is None else each.place, each.rule),
        )
    )

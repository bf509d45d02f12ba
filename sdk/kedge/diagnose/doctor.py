"""The doctor: checks over evidence, in the order in which a person wants to read them, and which finding comes first.

Pure: the same evidence gives the same diagnosis, of a device that is there or out of a snapshot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .checks.agent import agent, installs
from .checks.disk import disk, disk_errors
from .checks.heat import thermal, throttling
from .checks.latency import latency, requests
from .checks.link import clock_skew, host_key, reachability
from .checks.load import gpu_users, processes
from .checks.logs import kernel, logs
from .checks.memory import memory, swap
from .checks.power import clocks, power_mode
from .checks.recorder import recorder
from .checks.releases import engines, models, releases
from .checks.runtimes import runtimes
from .checks.service import restarts, service
from .evidence import Evidence
from .finding import Finding
from .thresholds import thresholds_json

__all__ = ["CAUSES_FIRST", "CHECKS", "Check", "Diagnosis", "diagnose"]


@dataclass(frozen=True)
class Check:
    """One row of the table. title: for people."""

    name: str
    title: str
    look: Callable[[Evidence], Finding | list[Finding]]


@dataclass(frozen=True)
class Diagnosis:
    """What came of all checks. at_s: by the device's clock; None: it told no facts.

    first_cause: what to mend first; None: nothing is at fault. sentence: what is amiss, in one line; empty: nothing.
    problems: what is wrong with the snapshot's file that was judged, a line each.
    """

    device: str
    at_s: float | None
    first_cause: Finding | None
    findings: tuple[Finding, ...]
    sentence: str
    facts_seconds: float | None
    problems: tuple[str, ...] = ()

    @property
    def faulty(self) -> bool:
        """Whether there is a fault: `kedge doctor` ends with exit code 10."""
        return any(finding.result == "fault" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The document of `kedge doctor --json` (docs/doctor.md)."""
        titles = {check.name: check.title for check in CHECKS}
        findings = [{**finding.to_json(), "title": titles[finding.check]} for finding in self.findings]
        first = self.first_cause
        return {
            "device": self.device,
            "at": self.at_s,
            "first_cause": None if first is None else findings[self.findings.index(first)],
            "sentence": self.sentence,
            "findings": findings,
            "thresholds": thresholds_json(),
            "facts_seconds": self.facts_seconds,
            "problems": list(self.problems),
        }


CHECKS: tuple[Check, ...] = (
    Check("reachability", "way to the device", reachability),
    Check("host-key", "host key", host_key),
    Check("clock-skew", "clock", clock_skew),
    Check("disk", "disk space", disk),
    Check("disk-errors", "disk errors", disk_errors),
    Check("memory", "memory", memory),
    Check("swap", "swap", swap),
    Check("agent", "agent's version", agent),
    Check("installs", "one agent alone", installs),
    Check("service", "agent answers", service),
    Check("restarts", "agent stays up", restarts),
    Check("releases", "releases are whole", releases),
    Check("engines", "engines fit", engines),
    Check("runtimes", "runtimes", runtimes),
    Check("models", "models are served", models),
    Check("power-mode", "power mode", power_mode),
    Check("clocks", "clocks", clocks),
    Check("throttling", "throttling", throttling),
    Check("thermal", "thermal headroom", thermal),
    Check("gpu-users", "others on the GPU", gpu_users),
    Check("processes", "others on the CPU", processes),
    Check("latency", "latency", latency),
    Check("requests", "failed requests", requests),
    Check("logs", "agent's log", logs),
    Check("kernel", "kernel's messages", kernel),
    Check("recorder", "flight recorder", recorder),
)

CAUSES_FIRST: tuple[str, ...] = (
    # Nothing else can be known before these.
    "host-key",
    "reachability",
    "agent",
    # What everything stands on.
    "disk-errors",
    "disk",
    # What is installed, and what is to be served.
    "installs",
    "releases",
    "engines",
    "runtimes",
    # What makes a device slow, or ends its processes.
    "memory",
    "swap",
    "kernel",
    "power-mode",
    "gpu-users",
    "throttling",
    "thermal",
    "processes",
    "clocks",
    # What comes of all that.
    "restarts",
    "service",
    "models",
    "requests",
    "latency",
    # What makes nothing slow.
    "clock-skew",
    "recorder",
    "logs",
)
"""Every check, those first that bring the others about. Throttling before a process that computes: one that heats the
device is a fault of its own only where it also takes the cores."""

_SLOW = ("memory", "swap", "power-mode", "gpu-users", "throttling", "thermal", "processes", "clocks")
_EXPLAINS = {
    "latency": _SLOW,
    "requests": ("engines", "kernel", *_SLOW),
    "models": ("releases", "engines", "runtimes", "kernel", "restarts"),
}
"""Of a symptom: what may be behind it also where it alone would be no fault."""

_SENTENCE = ("latency", "requests", "throttling", "power-mode")
"""What a sentence on a device begins with: how bad it is, then why."""


def diagnose(evidence: Evidence) -> Diagnosis:
    """Look at everything."""
    findings: list[Finding] = []
    for check in CHECKS:
        found = check.look(evidence)
        findings.extend(found if isinstance(found, list) else [found])
    first = _first_cause(findings)
    return Diagnosis(
        evidence.device,
        evidence.at_s,
        first,
        tuple(findings),
        _sentence(findings),
        evidence.facts_seconds,
        evidence.problems,
    )


def _first_cause(findings: list[Finding]) -> Finding | None:
    """The fault that brings the others about; where only symptoms are faults, a warning that may."""
    faults = sorted((each for each in findings if each.result == "fault"), key=_depth)
    if not faults or not faults[0].symptom:
        return faults[0] if faults else None
    behind = {name for each in faults for name in _EXPLAINS.get(each.check, ())}
    warned = sorted((each for each in findings if each.result == "warning" and each.check in behind), key=_depth)
    return warned[0] if warned else faults[0]


def _sentence(findings: list[Finding]) -> str:
    """The faults in few words, and what may be behind their symptoms."""
    faults = [each for each in findings if each.result == "fault"]
    behind = {name for each in faults if each.symptom for name in _EXPLAINS.get(each.check, ())}
    told = [each for each in findings if each.result == "fault" or (each.result == "warning" and each.check in behind)]

    def order(finding: Finding) -> tuple[int, int]:
        place = _SENTENCE.index(finding.check) if finding.check in _SENTENCE else len(_SENTENCE)
        return place, _depth(finding)

    return "; ".join(dict.fromkeys(each.brief for each in sorted(told, key=order) if each.brief))


def _depth(finding: Finding) -> int:
    return CAUSES_FIRST.index(finding.check)

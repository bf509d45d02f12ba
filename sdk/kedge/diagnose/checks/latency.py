"""How fast models are now, against what they were when they were deployed; and how many requests fail.

What it was: the 99th percentile of the latency gate (of the runs that let the release go live, bare in the runtime)
and of the first ten minutes after it, once these are long over; of both the larger one, for a gate measures a device
that does nothing else. What it is: the recorder's last hour.
"""

from __future__ import annotations

from dataclasses import dataclass

from kedge_agent.formats.manifest import is_model_name

from ...report.text import milliseconds
from ..evidence import Evidence
from ..finding import Finding, fault, ok, unknown, warning
from ..node import Node
from ..thresholds import limit
from .words import counted, share

__all__ = ["Drift", "drifts", "latency", "requests", "worse"]

_FIRST_OVER_S = 1200
# What a model or the agent is to blame for; the others are the client's, or say that there was too much to do.
_OURS = ("internal", "integrity", "incompatible", "space")


@dataclass(frozen=True)
class Drift:
    """One model: 99th percentiles of compute, of the last hour and when it was deployed; None: not known.

    named: the model, for a command.
    """

    model: str
    named: str
    requests: int
    now_ms: float
    was_ms: float | None
    was: str

    @property
    def ratio(self) -> float | None:
        """How many times longer it takes; None: not known."""
        return self.now_ms / self.was_ms if self.was_ms else None

    def beyond(self, threshold: str) -> bool:
        """Whether it is slower than it was by so much."""
        ratio = self.ratio
        if ratio is None or self.was_ms is None or self.requests < limit("latency_requests"):
            return False
        return ratio >= limit(threshold) and self.now_ms - self.was_ms >= limit("p99_difference")


def drifts(evidence: Evidence) -> list[Drift]:
    """Of each model that was asked in the last hour."""
    data = evidence.data("recorder")
    out = []
    for name, figures in data.child("hour", "models").items():
        now = figures.amount("compute_p99_ms")
        if now is None:
            continue
        was, what = _was(evidence, name, figures.text("release"), data.child("since_deploy").child(name))
        out.append(Drift(name, name if is_model_name(name) else "MODEL", figures.size("requests") or 0, now, was, what))
    return out


def worse(evidence: Evidence) -> bool:
    """Whether any model is slower than it was by so much that it is a fault: what may be behind it is one too then."""
    return any(drift.beyond("p99_ratio_fault") for drift in drifts(evidence))


def latency(evidence: Evidence) -> list[Finding]:
    """The 99th percentile of each model, against what it was."""
    name, section = "latency", evidence.section("recorder")
    if section.why:
        return [unknown(name, section.why)]
    if not section.data.child("hour"):
        return [unknown(name, section.data.text("hour_why") or "nothing was recorded in the last hour")]
    found = [_judged(evidence, drift) for drift in drifts(evidence)]
    return found or [ok(name, "no model was asked anything in the last hour")]


def requests(evidence: Evidence) -> Finding:
    """How many requests of the last hour failed by a fault of the model or the agent."""
    name, section = "requests", evidence.section("recorder")
    if section.why:
        return unknown(name, section.why)
    hour = section.data.child("hour")
    if not hour:
        return unknown(name, section.data.text("hour_why") or "nothing was recorded in the last hour")
    answered = failed = busy = 0
    worst: tuple[float, str] = (0, "")
    for model, figures in hour.child("models").items():
        kinds = figures.child("failures").numbers()
        ours = sum(kinds.get(kind, 0) for kind in _OURS)
        answered += figures.size("requests") or 0
        failed += int(ours)
        busy += int(kinds.get("busy", 0))
        worst = max(worst, (ours, model))
    total = answered + failed + busy
    figures_told = {"answered": answered, "failed": failed, "busy": busy}
    if failed >= limit("failed_least") and failed > total * limit("failed_fault_share"):
        return fault(
            name,
            f"{failed:,} of {total:,} requests of the last hour failed, most of them of {worst[1]}",
            brief=f"{share(failed / total)} of the requests fail",
            cause="the model's runtime failed, or the agent did: its log says which and why",
            cure=f"kedge logs --on {evidence.device} --level error",
            figures=figures_told,
            symptom=True,
        )
    if busy > total * limit("failed_fault_share") and busy >= limit("failed_least"):
        return warning(
            name,
            f"{busy:,} of {total:,} requests of the last hour were refused: too many at once, or too late",
            brief="more is asked than it can answer",
            cause="clients ask faster than the model computes; or it computes slower than it did",
            cure="set models.NAME.workers, queue or deadline_ms in the settings (docs/agent.md)",
            figures=figures_told,
            symptom=True,
        )
    words = f", {failed:,} failed" if failed else ", none failed"
    return ok(name, f"{counted(total, 'request')} in the last hour{words if total else ''}", **figures_told)


def _judged(evidence: Evidence, drift: Drift) -> Finding:
    name, ratio = "latency", drift.ratio
    figures = {
        "model": drift.model,
        "requests": drift.requests,
        "p99_ms": drift.now_ms,
        "was_p99_ms": drift.was_ms,
        "ratio": None if ratio is None else round(ratio, 3),
    }
    now = f"{milliseconds(drift.now_ms)} of compute in the last hour"
    if drift.requests < limit("latency_requests"):
        few = counted(drift.requests, "request")
        return ok(
            name, f"{drift.model}: {few} in the last hour, too few to judge ({milliseconds(drift.now_ms)})", **figures
        )
    if ratio is None:
        return unknown(name, f"{drift.model}: p99 {now}; what it was when it was deployed is not known", **figures)
    brief = f"p99 {ratio:.1f} × what it was"
    words = f"{drift.model}: {brief} ({now}, {milliseconds(drift.was_ms)} {drift.was})"
    if not drift.beyond("p99_ratio_warning"):
        if ratio >= limit("p99_ratio_warning"):
            words += f": less than {limit('p99_difference'):g} ms more"
        return ok(name, words, **figures)
    # Where other checks say why, theirs come first.
    return (fault if drift.beyond("p99_ratio_fault") else warning)(
        name,
        words,
        brief=brief,
        cause="what the other checks found amiss; where they found nothing: other inputs or batch sizes than those of"
        " its gate",
        cure=f"kedge bench {drift.named} --on {evidence.device} --waterfall",
        figures=figures,
        symptom=True,
    )


def _was(evidence: Evidence, model: str, release: str | None, deploy: Node) -> tuple[float | None, str]:
    """The 99th percentile when it was deployed, and in words where the figure is from."""
    told = deploy.child("at_deploy")
    gate, first = told.child("gate").amount("p99_ms"), None
    at, now = told.amount("at_s"), evidence.at_s
    if gate is None:
        gate = _of_journal(evidence, model, release)
    if at is None or now is None or now - at >= _FIRST_OVER_S:
        figures = told.child("first", "models").child(model)
        if (figures.size("requests") or 0) >= limit("latency_requests"):
            first = figures.amount("compute_p99_ms")
    if first is not None and (gate is None or first > gate):
        return first, "in the ten minutes after its deploy"
    return gate, "at its gate"


def _of_journal(evidence: Evidence, model: str, release: str | None) -> float | None:
    for entry in reversed(evidence.data("journal").nodes("entries")):
        if (entry.text("step"), entry.text("model"), entry.text("release")) == ("gated", model, release):
            for gate in entry.nodes("gates"):
                if gate.text("gate") == "latency":
                    return gate.child("figures").amount("p99_ms")
    return None

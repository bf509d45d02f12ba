"""How fast models are now, against what they were when they were deployed; and how many requests fail.

What it was: by the latency gate, whose runs let the release go live, bare in the runtime; and by the first ten minutes
after it, once these are long over. Of both the longer one counts, for a gate measures a device that does nothing else.
What it is: the recorder's last hour; or since the deploy, where that was within the hour: the same release may have
served before it, on a device that was not yet mended. Beside it the last five minutes, where enough was asked in them:
what was slow and is so no more is no fault, and a median that has just become so is one. Medians are compared as well,
and alone where the gate had so few runs that their 99th percentile is the longest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kedge_agent.formats.manifest import is_model_name

from ...report.text import milliseconds
from ..evidence import Evidence
from ..finding import Finding, fault, ok, unknown, warning
from ..node import NOTHING, Node
from ..thresholds import limit
from .words import counted, edit_settings, restart_command, share

__all__ = ["drifting", "latency", "requests"]

_HOUR_S = 3600
_RECENT_S = 300
_FIRST_OVER_S = 1200
# The journal knows whole seconds, and a record tells of the second that ends with it.
_BEGINS_WITHIN_S = 2.0
# What a model or the agent is to blame for; the others are the client's, or say that there was too much to do.
_OURS = ("internal", "integrity", "incompatible", "space")


@dataclass(frozen=True)
class _Drift:
    """A percentile of one model's compute, of a time until now and when it was deployed, and where that is from."""

    percentile: str
    now_ms: float
    span: str
    was_ms: float
    was: str

    @property
    def ratio(self) -> float:
        """How many times longer it takes."""
        return self.now_ms / self.was_ms

    @property
    def brief(self) -> str:
        """In a few words."""
        return f"{self.percentile} {self.ratio:.1f} × what it was"

    def beyond(self, threshold: str) -> bool:
        """Whether it is slower by so much."""
        return self.ratio >= limit(threshold) and self.now_ms - self.was_ms >= limit("latency_difference")


@dataclass(frozen=True)
class _Model:
    """One that was asked in the last hour. span: of which time `requests` and `p99_ms` are; None: none was answered.
    drifts: the 99th percentile before the median; those that can be told. recent: the same of the last five minutes;
    none where too little was asked in these."""

    name: str
    span: str
    requests: int
    p99_ms: float | None
    drifts: tuple[_Drift, ...]
    recent: tuple[_Drift, ...]

    def worst(self, threshold: str) -> _Drift | None:
        """The first that is beyond a line, where there were requests enough."""
        if self.requests < limit("latency_requests"):
            return None
        # The 99th percentile of five minutes may be a few accidents.
        medians = [drift for drift in self.recent if drift.percentile == "p50"]
        return next((drift for drift in (*self.drifts, *medians) if drift.beyond(threshold)), None)

    @property
    def over(self) -> bool:
        """Whether it is as fast as it was in the last five minutes, whatever it was before."""
        return bool(self.recent) and not any(drift.beyond("latency_ratio_warning") for drift in self.recent)


def drifting(evidence: Evidence) -> bool:
    """Whether any model is slower than it was by so much that it is a fault: what may be behind it is one too then."""
    return any(model.worst("latency_ratio_fault") and not model.over for model in _models(evidence))


def latency(evidence: Evidence) -> list[Finding]:
    """The compute time of each model, against what it was."""
    name, section = "latency", evidence.section("recorder")
    if section.why:
        return [unknown(name, section.why)]
    if not section.data.child("hour"):
        return [unknown(name, section.data.text("hour_why") or "nothing was recorded in the last hour")]
    found = [_judged(evidence, model) for model in _models(evidence)]
    return found or [ok(name, "no model was asked anything in the last hour")]


def requests(evidence: Evidence) -> Finding:
    """How many requests of the last hour failed by a fault of the model or the agent; of a model, since its deploy."""
    name, section = "requests", evidence.section("recorder")
    if section.why:
        return unknown(name, section.why)
    hour = section.data.child("hour")
    if not hour:
        return unknown(name, section.data.text("hour_why") or "nothing was recorded in the last hour")
    answered = failed = busy = 0
    worst: tuple[float, str] = (0, "")
    for model, told in hour.child("models").items():
        since = section.data.child("since_deploy", model)
        deploy = since.child("at_deploy")
        # What a release before it failed at, a deploy has mended.
        figures = _since(since, model, deploy) if _within(_HOUR_S, evidence, deploy) else told
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
            cure=edit_settings(evidence, restart_command(evidence))
            + "  # models.NAME.workers, queue or deadline_ms: docs/agent.md",
            figures=figures_told,
            symptom=True,
        )
    words = f", {failed:,} failed" if failed else ", none failed"
    return ok(name, f"{counted(total, 'request')} in the last hour{words if total else ''}", **figures_told)


def _judged(evidence: Evidence, model: _Model) -> Finding:
    name = "latency"
    figures = {"model": model.name, "requests": model.requests, "p99_ms": model.p99_ms}
    for drift in model.drifts:
        figures |= {f"was_{drift.percentile}_ms": drift.was_ms, f"{drift.percentile}_ratio": round(drift.ratio, 3)}
    figures |= {f"recent_{drift.percentile}_ratio": round(drift.ratio, 3) for drift in model.recent}
    now = f"{milliseconds(model.p99_ms)} of compute at p99"
    if model.requests < limit("latency_requests"):
        few = counted(model.requests, "request")
        known = "" if model.p99_ms is None else f" ({now})"
        return ok(name, f"{model.name}: {few} {model.span}, too few to judge{known}", **figures)
    if not model.drifts:
        return unknown(name, f"{model.name}: {now}; what it was when it was deployed is not known", **figures)
    slower, verdict = model.worst("latency_ratio_fault"), fault
    if slower is None or model.over:
        slower, verdict = slower or model.worst("latency_ratio_warning"), warning
    if slower is None:
        return ok(name, f"{model.name}: {_told(model.drifts[0])}", **figures)
    over = "; as it was in the last five minutes" if model.over else ""
    # Where other checks say why, theirs come first.
    return verdict(
        name,
        f"{model.name}: {_told(slower)}{over}",
        brief=slower.brief,
        cause="what the other checks found amiss; where they found nothing: other inputs or batch sizes than those of"
        " its gate",
        cure=f"kedge bench {model.name if is_model_name(model.name) else 'MODEL'} --on {evidence.device} --waterfall",
        figures=figures,
        symptom=True,
    )


def _told(drift: _Drift) -> str:
    small = 0 < drift.now_ms - drift.was_ms < limit("latency_difference")
    little = ": too little to matter" if small and drift.ratio >= limit("latency_ratio_warning") else ""
    now = f"{milliseconds(drift.now_ms)} of compute {drift.span}"
    return f"{drift.brief} ({now}, {milliseconds(drift.was_ms)} {drift.was}){little}"


def _models(evidence: Evidence) -> Sequence[_Model]:
    """Each model that was asked in the last hour."""
    data = evidence.data("recorder")
    out = []
    for name, told in data.child("hour", "models").items():
        if told.amount("compute_p99_ms") is None:
            continue
        since = data.child("since_deploy", name)
        deploy = since.child("at_deploy")
        lately = _within(_HOUR_S, evidence, deploy)
        figures = _since(since, name, deploy) if lately else told
        span = "since its deploy" if lately else "in the last hour"
        gate = deploy.child("gate") or _gate_of_journal(evidence, name, told.text("release"))
        first = _first(evidence, name, deploy)
        drifts = _drifts(figures, span, gate, first)
        recent = _drifts(_recent(evidence, name, deploy), "in the last five minutes", gate, first)
        requests = figures.size("requests") or 0
        out.append(_Model(name, span, requests, figures.amount("compute_p99_ms"), drifts, recent))
    return out


def _drifts(figures: Node, span: str, gate: Node, first: Node) -> tuple[_Drift, ...]:
    drifts = []
    for percentile, at_gate, key in (("p99", "p99_ms", "compute_p99_ms"), ("p50", "median_ms", "compute_p50_ms")):
        now = figures.amount(key)
        runs = gate.size("runs")
        few = percentile == "p99" and runs is not None and runs < limit("gate_runs")
        was = [(None if few else gate.amount(at_gate), "at its gate")]
        was += [(first.amount(key), "in the ten minutes after its deploy")]
        known = [(each, what) for each, what in was if each]
        if now is not None and known:
            drifts.append(_Drift(percentile, now, span, *max(known)))
    return tuple(drifts)


def _recent(evidence: Evidence, model: str, deploy: Node) -> Node:
    """Figures of the last five minutes, where they say something and are wholly after the deploy."""
    figures = evidence.data("recorder").child("recent", "models", model)
    enough = (figures.size("requests") or 0) >= limit("latency_requests")
    return figures if enough and not _within(_RECENT_S, evidence, deploy) else NOTHING


def _within(last_s: float, evidence: Evidence, deploy: Node) -> bool:
    at, now = deploy.amount("at_s"), evidence.at_s
    return at is not None and now is not None and now - at < last_s


def _since(since: Node, model: str, deploy: Node) -> Node:
    """Figures of what was recorded after a deploy; nothing, where they begin before it."""
    begin, at = since.amount("from_s"), deploy.amount("at_s")
    after = begin is not None and at is not None and begin >= at - _BEGINS_WITHIN_S
    return since.child("models", model) if after else NOTHING


def _first(evidence: Evidence, model: str, deploy: Node) -> Node:
    """Figures of the first ten minutes, once they are no part of what is judged any more and say something."""
    at, now = deploy.amount("at_s"), evidence.at_s
    figures = deploy.child("first", "models", model)
    over = at is None or now is None or now - at >= _FIRST_OVER_S
    return figures if over and (figures.size("requests") or 0) >= limit("latency_requests") else NOTHING


def _gate_of_journal(evidence: Evidence, model: str, release: str | None) -> Node:
    for entry in reversed(evidence.data("journal").nodes("entries")):
        if (entry.text("step"), entry.text("model"), entry.text("release")) == ("gated", model, release):
            for gate in entry.nodes("gates"):
                if gate.text("gate") == "latency":
                    return gate.child("figures")
    return NOTHING

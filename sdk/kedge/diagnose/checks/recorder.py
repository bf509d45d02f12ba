"""The flight recorder: that it writes, without gaps, at the cost that it promises."""

from __future__ import annotations

from ...report.text import byte_size
from ..evidence import Evidence
from ..finding import Finding, ok, unknown, warning
from ..thresholds import limit
from .words import counted, duration, share

__all__ = ["recorder"]


def recorder(evidence: Evidence) -> Finding:
    """Whether the last hour can be told."""
    name, section = "recorder", evidence.section("recorder")
    if section.why:
        return unknown(name, section.why)
    data, now = section.data, evidence.at_s
    status, hour = data.child("status"), data.child("hour")
    last, cost, gaps = status.amount("last_s"), status.amount("cost"), hour.size("gaps")
    figures = {
        "bytes": status.size("bytes"),
        "first_s": status.amount("first_s"),
        "last_s": last,
        "cost": cost,
        "gaps_last_hour": gaps,
        "seconds_last_hour": hour.amount("seconds"),
    }
    if last is None:
        return unknown(name, data.text("hour_why") or "nothing was recorded yet", **figures)
    log = f"kedge logs --on {evidence.device}"
    silent = None if now is None else now - last
    if silent is not None and silent > limit("recorder_silent") and evidence.data("agent").flag("running"):
        return warning(
            name,
            f"nothing recorded for {duration(silent)}, and the agent runs",
            brief="the recorder is silent",
            cause="its folder cannot be written, or it was turned off in the settings",
            cure=log,
            figures=figures,
        )
    starts = _starts(evidence, hour.amount("from_s"))
    if (gaps or 0) > starts:
        return warning(
            name,
            f"{counted(gaps or 0, 'gap')} in the last hour, and {counted(starts, 'start')} of the agent",
            brief=counted(gaps or 0, "gap") + " in the recording",
            cause="the agent or the whole device was stopped and went on, or its disk did not take what was written",
            cure=f"kedge history --on {evidence.device} --since 1h",
            figures=figures,
            symptom=True,
        )
    if cost is not None and cost > limit("recorder_cost_share"):
        return warning(
            name,
            f"it takes {share(cost)} of a core, more than the {share(limit('recorder_cost_share'))} it promises",
            brief=f"the recorder takes {share(cost)} of a core",
            cause="a sensor that is slow to read",
            cure=f"{log}  # or turn it off: recorder.enabled in the settings (docs/agent.md)",
            figures=figures,
        )
    stopped = f", {counted(gaps, 'gap')} in the last hour while no agent ran" if gaps else ""
    spent = "" if cost is None else f", {share(cost)} of a core"
    since = "" if figures["first_s"] is None or now is None else f", {duration(max(now - figures['first_s'], 0))} back"
    return ok(name, f"{byte_size(status.size('bytes'))}{since}{spent}{stopped}", **figures)


def _starts(evidence: Evidence, since_s: float | None) -> int:
    """How often the agent was started since then: what was not recorded before each is no wonder."""
    times = [each.amount("at_s") for each in evidence.data("agent").nodes("starts")]
    return sum(at is not None and (since_s is None or at >= since_s) for at in times)

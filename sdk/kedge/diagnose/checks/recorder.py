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
    if gaps:
        return warning(
            name,
            f"{counted(gaps, 'gap')} in the last hour: nobody recorded then",
            brief=counted(gaps, "gap") + " in the recording",
            cause="the agent was stopped, crashed, or stood still; or the device did",
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
    spent = "" if cost is None else f", {share(cost)} of a core"
    since = "" if figures["first_s"] is None or now is None else f", {duration(max(now - figures['first_s'], 0))} back"
    return ok(name, f"{byte_size(status.size('bytes'))}{since}{spent}", **figures)

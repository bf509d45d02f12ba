"""The agent's process: that it runs, answers, and does not end over and over."""

from __future__ import annotations

from collections.abc import Mapping

from ..evidence import Evidence
from ..finding import Finding, fault, ok, unknown, warning
from ..node import NOTHING, Node
from ..thresholds import limit
from .words import counted, duration, edit_settings, model_name, restart_command, service_command, start_command

__all__ = ["restarts", "service"]

_HOUR_S = 3600
_RECENT_S = 600


def service(evidence: Evidence) -> Finding:
    """Whether the daemon runs and answers; as a service of systemd, or not."""
    name, section = "service", evidence.section("agent")
    data = section.data
    running, pid, state = data.flag("running"), data.pid(), data.text("process_state")
    if section.why:
        return unknown(name, section.why)
    figures = {
        "running": running,
        "pid": pid,
        "process_state": state,
        "responds": data.flag("responds"),
        "responds_ms": data.amount("responds_ms"),
        "unit": data.child("service").text("unit"),
        "active": data.child("service").text("active"),
    }
    if running is None:
        return unknown(name, data.text("running_why") or "whether the agent runs is not known", **figures)
    if not running:
        return _stopped(evidence, data, figures)
    hung = _hung(evidence, data, figures)
    if hung is not None:
        return hung
    problem = data.child("settings").text("problem")
    if problem:
        return warning(
            name,
            f"it answers, and its settings file is not in force: {problem}",
            brief="the settings file is wrong",
            cause="it serves by the settings that it read before; at its next start it will not come up",
            cure=edit_settings(evidence),
            figures=figures,
        )
    if data.child("service").text("enabled") == "disabled":
        return warning(
            name,
            "it answers, and does not come back after a reboot: its unit is disabled",
            brief="not started at boot",
            cause="the unit was started by hand, or was disabled",
            cure=evidence.shell(service_command(evidence, "enable") or "systemctl enable kedge-agent"),
            figures=figures,
        )
    answer, up = data.amount("responds_ms"), data.amount("uptime_s")
    told = [
        "it answers" if answer is None else f"it answers in {answer:.3g} ms",
        "" if up is None else f"up {duration(up)}",
        data.child("service").text("unit") or "no service of systemd",
    ]
    return ok(name, ", ".join(filter(None, told)), **figures)


def restarts(evidence: Evidence) -> Finding:
    """Whether it crashes, how often, and which release is to blame."""
    name, section = "restarts", evidence.section("agent")
    if section.why:
        return unknown(name, section.why)
    data, device = section.data, evidence.device
    crashes = _crashes_within(data, evidence.at_s, _HOUR_S)
    suspects = sorted(
        (each for each in data.child("crashes").nodes("suspects") if each.size("crashes")),
        key=lambda each: -(each.size("crashes") or 0),
    )
    by_systemd, up = data.child("service").size("restarts"), data.amount("uptime_s")
    figures = {
        "crashes_last_hour": crashes,
        "systemd_restarts": by_systemd,
        "uptime_s": up,
        "safe_mode": data.text("safe_mode"),
        "suspects": [{key: each.value.get(key) for key in ("model", "release", "crashes")} for each in suspects[:8]],
    }
    who = suspects[0] if suspects else None
    blamed = _blamed(who)
    if data.text("safe_mode"):
        return fault(
            name,
            f"safe mode, no model is served: {data.text('safe_mode')}",
            brief="safe mode",
            cause=blamed
            or "the agent ended five times in a row, and no model was running: see its log and the kernel's",
            cure=f"kedge deploy RELEASE --to {device}",
            figures=figures,
        )
    most = max(crashes or 0, (who.size("crashes") or 0) if who is not None else 0)
    looping = by_systemd is not None and by_systemd >= limit("restarts_fault") and (up is None or up < _RECENT_S)
    if most >= limit("crashes_fault") and not looping and _replaced(evidence, data, who):
        return warning(
            name,
            f"{counted(most, 'crash', 'crashes')}, and none since another release went live",
            brief="the agent crashed before the last deploy",
            cause=f"{blamed or 'what made it crash is not known'}; whether the other one helped shows within an hour",
            cure=f"kedge logs --on {device} --level error",
            figures=figures,
        )
    if most >= limit("crashes_fault") or looping:
        told = [
            f"{counted(crashes, 'crash', 'crashes')} in the last hour" if crashes else "",
            f"systemd restarted it {by_systemd:,} times, the last {duration(up)} ago" if looping and up else "",
            blamed,
        ]
        return fault(
            name,
            "; ".join(filter(None, told)) or f"systemd restarted it {by_systemd} times, and it does not run now",
            brief="the agent crashes over and over",
            cause=f"{blamed}: the model makes its runtime crash" if blamed else _why_it_ends(data),
            cure=_without_crashing(evidence, who, suspects)
            if who is not None
            else f"kedge logs --on {device} --level error",
            figures=figures,
        )
    if most:
        return warning(
            name,
            "; ".join(filter(None, ["1 crash", blamed])),
            brief="the agent crashed once",
            cause="one may be an accident; SIGKILL from outside, as when memory runs out, looks the same",
            cure=f"kedge history --on {device} --since 1h",
            figures=figures,
        )
    if crashes is None and not data.child("crashes"):
        why = data.text("starts_why")
        return unknown(name, f"how often it started is not known{f': {why}' if why else ''}", **figures)
    again = f"; systemd restarted it {by_systemd:,} times" if by_systemd else ""
    return ok(name, f"no crash in the last hour{again}", **figures)


def _stopped(evidence: Evidence, data: Node, figures: Mapping[str, object]) -> Finding:
    unit = data.child("service")
    said = evidence.data("logs").texts("start_log")
    problem = data.child("settings").text("problem")
    reasons = [
        f"its settings are wrong: {problem}" if problem else "",
        f"systemd says {unit.text('active')} ({unit.text('result')})" if unit.text("result") else "",
        f'it last said: "{said[-1][:160]}"' if said else "",
        "it did not end in order" if data.child("crashes").flag("unclean") else "",
    ]
    if unit.text("active") == "activating":
        reasons.insert(0, "systemd is about to start it again")
    return fault(
        "service",
        "; ".join(filter(None, ["no agent runs", *reasons])),
        brief="no agent runs",
        cause="its settings keep it from starting" if problem else "it was stopped, killed, or does not start at boot",
        cure=edit_settings(evidence, start_command(evidence)) if problem else start_command(evidence),
        figures=figures,
    )


def _hung(evidence: Evidence, data: Node, figures: Mapping[str, object]) -> Finding | None:
    state, pid, responds = data.text("process_state"), data.pid(), data.flag("responds")
    if state in ("T", "t"):
        return fault(
            "service",
            f"the agent (process {pid}) is stopped: nothing it is asked is answered",
            brief="the agent is stopped by a signal",
            cause="somebody sent it SIGSTOP, or a debugger holds it",
            cure=evidence.shell(f"kill -CONT {pid}") if pid else restart_command(evidence, hung=True),
            figures=figures,
        )
    if responds is not False:
        return None
    if state == "D":
        return fault(
            "service",
            f"the agent (process {pid}) waits for a disk or a driver, and does not answer",
            brief="the agent hangs in the kernel",
            cause="a disk or a GPU driver that does not come back: it cannot even be killed",
            cure=evidence.shell("sudo dmesg --level=err,warn | tail -n 40") + "  # then reboot it",
            figures=figures,
        )
    return fault(
        "service",
        f"the agent (process {pid}) runs and does not answer within 2 s",
        brief="the agent hangs",
        cause="every thread of it is busy or waits; its log may tell for what",
        cure=restart_command(evidence, hung=True),
        figures=figures,
    )


def _crashes_within(data: Node, now_s: float | None, seconds: float) -> int | None:
    """Starts after a crash; None: no start was written down."""
    if not isinstance(data.value, dict) or not isinstance(data.value.get("starts"), list):
        return None
    return sum(now_s is None or at >= now_s - seconds for at in _starts_after_crashes(data))


def _starts_after_crashes(data: Node) -> list[float]:
    after = [each for each in data.nodes("starts") if "crash" in (each.text("how") or "")]
    return [at for each in after if (at := each.amount("at_s")) is not None]


def _replaced(evidence: Evidence, data: Node, who: Node | None) -> bool:
    """Whether somebody had another release go live since the last crash; of the model that is blamed, if one still is.
    The agent's own going back to the one before is none: it is called `reverted`."""
    now_live = {"committed": "release", "rolled-back": "to"}
    went_live = [
        at
        for each in evidence.data("journal").nodes("entries")
        if (who is None or each.text("model") == who.text("model"))
        and each.text(now_live.get(each.text("step") or "", "")) not in (None, who and who.text("release"))
        and (at := each.amount("at_s")) is not None
    ]
    crashed = _starts_after_crashes(data)
    # The journal knows whole seconds.
    return bool(went_live and crashed) and max(went_live) + 1 >= max(crashed)


def _without_crashing(evidence: Evidence, who: Node, suspects: list[Node]) -> str:
    """Back to the release before, unless the agent went there by itself: a rollback would bring the crashes back."""
    rows = evidence.data("releases").nodes("models")
    state = next((each.child("state") for each in rows if each.text("model") == who.text("model")), NOTHING)
    before, crashing = state.text("previous"), {each.text("release") for each in suspects}
    if state.text("current") == who.text("release") and before is not None and before not in crashing:
        return f"kedge rollback {model_name(who)} --on {evidence.device}"
    return f"kedge deploy RELEASE --to {evidence.device}  # of {model_name(who)}, one that does not crash"


def _blamed(suspect: Node | None) -> str:
    if suspect is None:
        return ""
    release = (suspect.text("release") or "")[:12]
    return f"{suspect.text('model')} (release {release}) was running, {counted(suspect.size('crashes') or 0, 'time')}"


def _why_it_ends(data: Node) -> str:
    result = data.child("service").text("result")
    return {
        "oom-kill": "the kernel ended it for want of memory",
        "watchdog": "it did not answer, and systemd's watchdog ended it",
        "exit-code": "it ends by itself: its log says why",
    }.get(result or "", "no model was running when it ended: its log and the kernel's messages may say why")

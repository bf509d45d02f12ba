"""What the agent's log and the kernel say of things that went wrong."""

from __future__ import annotations

import re

from ..evidence import Evidence
from ..finding import Finding, fault, ok, unknown, warning
from ..thresholds import limit
from .words import counted, duration, seconds_of

__all__ = ["kernel", "logs", "recent_lines"]

# Linux, mm/oom_kill.c: "Out of memory: Killed process 1234 (name) total-vm:…", of a cgroup "Memory cgroup out of …".
_VICTIM = re.compile(r"Killed process (\d{1,10}) \(([^)]{1,64})\)")
_OURS = ("kedge", "python")


def logs(evidence: Evidence) -> Finding:
    """Errors that the agent logged in the last day."""
    name, section = "logs", evidence.section("logs")
    if section.why:
        return unknown(name, section.why)
    now, recent = evidence.at_s, []
    for entry in section.data.nodes("errors"):
        at = seconds_of(entry.text("at"))
        if at is None or now is None or now - at <= limit("log_errors_age"):
            recent.append((at, entry.text("line") or ""))
    size = section.data.size("bytes")
    figures = {"errors_last_day": len(recent), "log_bytes": size}
    if not recent:
        return ok(name, "no error in the last day", **figures)
    at, line = recent[-1]
    ago = "" if at is None or now is None else f" {duration(max(now - at, 0))} ago"
    return warning(
        name,
        f'{counted(len(recent), "error")} in the last day, the last{ago}: "{line[:200]}"',
        brief=counted(len(recent), "error") + " in the log",
        cause="as the log says",
        cure=f"kedge logs --on {evidence.device} --level error",
        figures=figures,
        symptom=True,
    )


def kernel(evidence: Evidence) -> Finding:
    """What the kernel told in the last day of memory that ran out, of the GPU, and of tasks that hang."""
    name, section = "kernel", evidence.section("kernel")
    if section.why:
        return unknown(name, section.why)
    counts = section.data.child("counts").numbers()
    if not counts:
        return unknown(name, section.data.text("source_why") or "the kernel's messages cannot be read")
    ended = recent_lines(evidence, _KILLED)
    if counts.get("oom") and ended:
        victims = [match[2] for line in ended if (match := _VICTIM.search(line))]
        ours = [victim for victim in victims if any(word in victim for word in _OURS)]
        who = ", ".join(dict.fromkeys(victims[-5:])) or "which, it does not tell"
        return (fault if ours else warning)(
            name,
            f"the kernel ended {counted(len(victims) or counts['oom'], 'process', 'processes')} for want of memory"
            f" in the last day: {who}",
            brief=f"{(ours or victims or ['a process'])[-1]} was ended for want of memory",
            cause="what ran together took more memory than there is",
            cure=evidence.shell("ps -eo pid,rss,args --sort=-rss | head -n 15") + "  # who holds it now",
            figures={**counts, "victims": victims[-5:]},
        )
    for key, words, what, verdict, cause in _KINDS:
        told = recent_lines(evidence, words) if counts.get(key) else []
        if told:
            return verdict(
                name,
                f'{what} in the last day, {counted(len(told), "line")}, the last: "{told[-1][:160]}"',
                brief=f"the kernel tells of {what}",
                cause=cause,
                cure=evidence.shell("sudo dmesg --level=emerg,alert,crit,err,warn | tail -n 40"),
                figures=counts,
            )
    crashed = (
        f"; {counted(counts['crash'], 'crash', 'crashes')} of Python since it started" if counts.get("crash") else ""
    )
    return ok(name, f"no memory that ran out, no fault of a GPU, nothing that hung{crashed}", **counts)


_KILLED = ("killed process", "out of memory", "oom-kill", "invoked oom-killer")
_KINDS = (
    (
        "gpu",
        ("nvgpu", "nvrm", "gk20a"),
        "faults of the GPU or its driver",
        fault,
        "a kernel that crashed on the GPU, its driver, or the GPU itself",
    ),
    (
        "hung",
        ("blocked for more than", "hung", "stall", "lockup"),
        "tasks that hang",
        warning,
        "a disk or a driver that does not come back",
    ),
)


def recent_lines(evidence: Evidence, words: tuple[str, ...]) -> list[str]:
    """The kernel's lines of the last day that hold one of these words; one that has no time counts as recent."""
    now = evidence.at_s
    out = []
    for line in evidence.data("kernel").texts("lines"):
        at = seconds_of(line.split(" ", 1)[0])
        recent = at is None or now is None or now - at <= limit("log_errors_age")
        if recent and any(word in line.lower() for word in words):
            out.append(line)
    return out

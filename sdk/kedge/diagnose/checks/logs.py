"""What the agent's log and the kernel say of things that went wrong."""

from __future__ import annotations

import re

from ..evidence import Evidence
from ..finding import Finding, fault, ok, unknown, warning
from ..thresholds import limit
from .words import counted, duration, seconds_of

__all__ = ["kernel", "logs"]

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
    """What the kernel tells of memory that ran out, of the GPU, of processes that crashed, and of tasks that hang."""
    name, section = "kernel", evidence.section("kernel")
    if section.why:
        return unknown(name, section.why)
    counts, lines = section.data.child("counts"), section.data.texts("lines")
    figures = counts.numbers()
    if not figures:
        return unknown(name, section.data.text("source_why") or "the kernel's messages cannot be read")
    victims = [match[2] for line in lines if (match := _VICTIM.search(line))]
    ours = [victim for victim in victims if any(word in victim for word in _OURS)]
    if figures.get("oom"):
        who = ", ".join(dict.fromkeys(victims[-5:])) or "processes whose names it does not tell"
        return (fault if ours else warning)(
            name,
            f"the kernel ended {counted(figures['oom'], 'process', 'processes')} for want of memory: {who}",
            brief=f"{(ours or victims or ['a process'])[-1]} was ended for want of memory",
            cause="what ran together took more memory than there is",
            cure=evidence.shell("ps -eo pid,rss,args --sort=-rss | head -n 15") + "  # who holds it now",
            figures={**figures, "victims": victims[-5:]},
        )
    for key, what, cause in (
        ("gpu", "message of the GPU's driver", "a kernel that crashed on the GPU, its driver, or the GPU itself"),
        ("hung", "task that hung", "a disk or a driver that does not come back"),
        ("crash", "crash of a Python process", "a library crashed: a runtime, or a driver below it"),
        ("thermal", "message of heat", "it was too hot"),
    ):
        count = figures.get(key)
        if count:
            return (fault if key == "gpu" else warning)(
                name,
                f"{counted(count, what, f'{what}s')} in the kernel's log"
                + (f', the last of all: "{lines[-1][:160]}"' if lines else ""),
                brief=f"the kernel tells of {counted(count, what, f'{what}s')}",
                cause=cause,
                cure=evidence.shell("sudo dmesg --level=emerg,alert,crit,err,warn | tail -n 40"),
                figures=figures,
            )
    return ok(name, "no memory that ran out, no fault of a GPU, nothing that hung", **figures)

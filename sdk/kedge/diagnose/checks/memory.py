"""Memory and swap: what is left, and how long the device stands still for want of it.

Sources: Linux, Documentation/accounting/psi.rst ("some": a task waits; "full": none of them does anything else);
Documentation/admin-guide/cgroup-v2.rst (memory.events, memory.pressure).
"""

from __future__ import annotations

from ...report.text import byte_size
from ..evidence import Evidence
from ..finding import Finding, fault, ok, unknown, warning
from ..node import Node
from ..thresholds import limit
from .words import counted, share

__all__ = ["memory", "swap"]

_LARGE_SHARE = 0.1


def memory(evidence: Evidence) -> Finding:
    """What is available of the system's memory and of the agent's cgroup, and what stalls for want of it."""
    name, section = "memory", evidence.section("memory")
    data = section.data
    if section.why:
        return unknown(name, section.why)
    total, available = data.size("total_bytes"), data.size("available_bytes")
    if not total or available is None:
        return unknown(name, data.text("available_bytes_why") or "the device does not tell how much there is")
    cgroup, kills = data.child("cgroup"), data.size("oom_kills")
    stalled = _stalled(data.child("pressure"), cgroup)
    left = f"{byte_size(available)} of {byte_size(total)} available ({share(available / total)})"
    figures = {
        "total_bytes": total,
        "available_bytes": available,
        "full_avg10": stalled.full,
        "some_avg60": stalled.some,
        "oom_kills": kills,
        "cgroup_limit_bytes": cgroup.size("limit_bytes"),
        "cgroup_current_bytes": cgroup.size("current_bytes"),
        "cgroup_oom_kills": cgroup.size("oom_kills"),
    }
    faults, warnings = _short(available / total, stalled, cgroup)
    if not faults and not warnings:
        pressure = "" if stalled.full is None else ", nothing waits for it"
        past = f"; {counted(kills, 'process', 'processes')} ended for memory since the start" if kills else ""
        return ok(name, f"{left}{pressure}{past}", **figures)
    cause, cure = _who(evidence, total)
    return (fault if faults else warning)(
        name,
        "; ".join([*faults, *warnings, left]),
        brief=(faults or warnings)[0],
        cause=cause,
        cure=cure,
        figures=figures,
    )


def swap(evidence: Evidence) -> Finding:
    """Whether pages are written out and read back all the time."""
    name, section = "swap", evidence.section("memory")
    data = section.data
    if section.why:
        return unknown(name, section.why)
    total, free = data.size("swap_total_bytes"), data.size("swap_free_bytes")
    into, out = data.amount("swap_in_per_s"), data.amount("swap_out_per_s")
    if total is None or free is None:
        return unknown(name, data.text("swap_total_bytes_why") or "the device does not tell of swap")
    figures = {"total_bytes": total, "free_bytes": free, "in_per_s": into, "out_per_s": out}
    if not total:
        return ok(name, "there is none", **figures)
    used = f"{byte_size(max(total - free, 0))} of {byte_size(total)} used"
    if into is None or out is None:
        return unknown(name, f"{used}; {data.text('swap_in_per_s_why') or 'how much moves is not known'}", **figures)
    moves = f"{into:,.0f} pages/s read back, {out:,.0f} written out"
    cause, cure = _who(evidence, data.size("total_bytes") or 0)
    if into + out >= limit("swapping_fault"):
        return fault(
            name,
            f"{moves}; {used}",
            brief=f"swapping, {into + out:,.0f} pages/s",
            cause=cause,
            cure=cure,
            figures=figures,
        )
    full = total - free > total * limit("swap_used_warning_share")
    if into + out >= limit("swapping_warning") or full:
        return warning(
            name,
            f"{used}; {moves}",
            brief="swap is full" if full else "swapping",
            cause=cause,
            cure=cure,
            figures=figures,
        )
    return ok(name, f"{used}, {'nothing moves' if into + out < 1 else moves}", **figures)


class _Stalled:
    """Per cent of the time, of the system or of the agent's cgroup, whichever is worse; None: not known."""

    def __init__(self, full: float | None, some: float | None) -> None:
        self.full = full
        self.some = some


def _stalled(system: Node, cgroup: Node) -> _Stalled:
    both = (system, cgroup.child("pressure"))

    def worst(key: str) -> float | None:
        told = [value for each in both if (value := each.amount(key)) is not None]
        return max(told) if told else None

    return _Stalled(worst("full_avg10"), worst("some_avg60"))


def _short(left: float, stalled: _Stalled, cgroup: Node) -> tuple[list[str], list[str]]:
    faults, warnings = [], []
    if stalled.full is not None and stalled.full >= limit("memory_stalled_fault"):
        faults.append(f"everything stands still for memory {stalled.full:.0f} % of the time")
    elif stalled.some is not None and stalled.some >= limit("memory_stalled_warning"):
        warnings.append(f"something waits for memory {stalled.some:.0f} % of the time")
    if left < limit("memory_available_fault_share"):
        faults.append(f"{share(left)} of the memory is left")
    elif left < limit("memory_available_warning_share"):
        warnings.append(f"{share(left)} of the memory is left")
    most, now, killed = (cgroup.size(key) for key in ("limit_bytes", "current_bytes", "oom_kills"))
    if most and now is not None and now >= most * limit("cgroup_used_warning_share"):
        line = f"the agent's cgroup holds {byte_size(now)} of its {byte_size(most)}"
        (faults or warnings).append(line)
    if killed:
        warnings.append(f"{counted(killed, 'process', 'processes')} of the agent's cgroup ended for memory")
    return faults, warnings


def _who(evidence: Evidence, total: int) -> tuple[str, str]:
    """Who holds most of it, and what to do about that."""
    top = evidence.data("processes").nodes("top")
    held = [(size, process) for process in top if (size := process.size("rss_bytes"))]
    if not held:
        return "who holds it is not known", evidence.shell("ps -eo pid,rss,args --sort=-rss | head -n 15")
    size, process = max(held, key=lambda each: each[0])
    pid, called = process.pid(), process.text("name") or "?"
    # Its cgroup limits the agent, and nobody else here.
    own_limit = min(evidence.data("memory").child("cgroup").size("limit_bytes") or total, total)
    if process.flag("ours") and size >= own_limit * _LARGE_SHARE:
        return (
            f"the agent itself holds most: {byte_size(size)}",
            f"kedge status --on {evidence.device}  # serve fewer models, or build smaller ones: kedge optimize",
        )
    if pid and size >= total * _LARGE_SHARE:
        return f"{called} (process {pid}) holds {byte_size(size)}", evidence.shell(f"sudo kill {pid}")
    return (
        f"no single process: the largest, {called}, holds {byte_size(size)}",
        evidence.shell("ps -eo pid,rss,args --sort=-rss | head -n 15"),
    )

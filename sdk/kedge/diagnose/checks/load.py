"""Who else computes on the device: on its processors, and on its GPU."""

from __future__ import annotations

from ...report.text import byte_size
from ..evidence import Evidence
from ..finding import Finding, fault, ok, unknown, warning
from ..thresholds import limit
from .latency import drifting
from .words import counted, share

__all__ = ["gpu_users", "processes"]

# As the collector says it (docs/diagnose.md) of a machine that has none.
_NO_GPU = "no NVIDIA GPU"


def processes(evidence: Evidence) -> Finding:
    """How much of all cores others take; a fault where models are slower than they were."""
    name, section = "processes", evidence.section("processes")
    if section.why:
        return unknown(name, section.why)
    cores = evidence.data("system").amount("cores")
    busy = [(used, each) for each in section.data.nodes("top") if (used := each.amount("cores")) is not None]
    if not busy or not cores:
        return unknown(name, "the device does not tell who computes")
    others = [(used, each) for used, each in busy if not each.flag("ours")]
    taken = sum(used for used, _ in others)
    ours = sum(used for used, each in busy if each.flag("ours"))
    figures = {
        "cores": cores,
        "others_cores": round(taken, 3),
        "ours_cores": round(ours, 3),
        "others": [
            {"pid": each.pid(), "name": each.text("name"), "cores": round(used, 3)} for used, each in others[:5]
        ],
    }
    slower = drifting(evidence)
    much = taken >= limit("others_cores_share") * cores
    if not much or not (slower or taken + ours >= limit("cores_busy_warning_share") * cores):
        return ok(name, f"others take {taken:.1f} of {cores:.0f} cores", **figures)
    used, hog = max(others, key=lambda each: each[0])
    pid, called = hog.pid(), hog.text("name") or "?"
    held = hog.size("rss_bytes")
    return (fault if slower else warning)(
        name,
        f"others take {taken:.1f} of {cores:.0f} cores ({share(taken / cores)}), most of it {called}"
        f" (process {pid}): {used:.1f}",
        brief=f"{called} takes {used:.1f} of {cores:.0f} cores",
        cause=f"it shares the cores with the models{f', and holds {byte_size(held)}' if held else ''}",
        cure=evidence.shell(f"sudo renice -n 19 -p {pid}") + f"  # or end it: sudo kill {pid}"
        if pid
        else evidence.shell("top -b -n 1 | head -n 20"),
        figures=figures,
    )


def gpu_users(evidence: Evidence) -> Finding:
    """Who else holds the GPU; a fault where models are slower than they were."""
    name, section = "gpu-users", evidence.section("processes")
    if section.why:
        return unknown(name, section.why)
    value = section.data.value.get("gpu_users")
    users = section.data.nodes("gpu_users")
    if not isinstance(value, list):
        why = section.data.text("gpu_users_why") or "who uses the GPU is not known"
        gpu = evidence.data("sensors").child("facts", "gpu")
        if not gpu and evidence.target is not None and evidence.target.gpu is None:
            return ok(name, "this kind of device has no GPU")
        if not gpu and evidence.target is None and _NO_GPU in why:
            return ok(name, why)
        return unknown(name, why)
    others = [each for each in users if not each.flag("ours")]
    figures = {"users": len(users), "others": [each.text("name") for each in others[:10]]}
    if not others:
        return ok(name, "nobody else uses the GPU" if users else "nobody uses a GPU", **figures)
    names = ", ".join(f"{each.text('name')} ({each.pid()})" for each in others[:4])
    pid = others[0].pid()
    return (fault if drifting(evidence) else warning)(
        name,
        f"{counted(len(others), 'other process', 'other processes')} on the GPU: {names}",
        brief=f"{others[0].text('name')} uses the GPU too",
        cause="a GPU serves one process after the other: each waits for the kernels of the others",
        cure=evidence.shell(f"ps -o pid,etime,args -p {pid}") + f"  # end it where it is not wanted: sudo kill {pid}"
        if pid
        else evidence.shell("sudo fuser -v /dev/nvidia* /dev/nvhost-*"),
        figures=figures,
    )

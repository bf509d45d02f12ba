"""Who else computes on the device: on its processors, and on its GPU."""

from __future__ import annotations

from ...report.text import byte_size
from ..evidence import Evidence
from ..finding import Finding, fault, ok, unknown, warning
from ..node import Node
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
    # Many that compute a little each are not all among those that are named.
    taken = max(section.data.amount("others_cores") or 0, sum(used for used, _ in others))
    ours = max(section.data.amount("ours_cores") or 0, sum(used for used, each in busy if each.flag("ours")))
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
    called, alike = _most(others)
    used, held = sum(used for used, _ in alike), sum(each.size("rss_bytes") or 0 for _, each in alike)
    pids = [str(pid) for _, each in alike if (pid := each.pid())]
    who = f"process {pids[0]}" if len(pids) == 1 else counted(len(alike), "process", "processes")
    return (fault if slower else warning)(
        name,
        f"others take {taken:.1f} of {cores:.0f} cores ({share(taken / cores)}), most of it {called}"
        f" ({who}): {used:.1f}",
        brief=f"{called} takes {used:.1f} of {cores:.0f} cores",
        cause=f"it shares the cores with the models{f', and holds {byte_size(held)}' if held else ''}",
        cure=evidence.shell(f"sudo renice -n 19 -p {' '.join(pids)}") + f"  # or end it: sudo kill {' '.join(pids)}"
        if pids
        else evidence.shell("top -b -n 1 | head -n 20"),
        figures=figures,
    )


def _most(others: list[tuple[float, Node]]) -> tuple[str, list[tuple[float, Node]]]:
    """Those of one name that take most together: a program may be many processes."""
    by_name: dict[str, list[tuple[float, Node]]] = {}
    for used, each in others:
        if used > 0:
            by_name.setdefault(each.text("name") or "?", []).append((used, each))
    return max(by_name.items(), key=lambda item: sum(used for used, _ in item[1]), default=("many small ones", []))


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

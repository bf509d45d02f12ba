"""Memory that a control group leaves to a process, in cgroup v1 and v2.

Sources: Linux, Documentation/admin-guide/cgroup-v2.rst (`memory.max`, `memory.current`, `memory.events`,
`memory.pressure`), cgroup-v1/memory.rst (`memory.limit_in_bytes`, `memory.usage_in_bytes`, `memory.oom_control`);
cgroups(7) (`/proc/PID/cgroup`); proc_pid_mountinfo(5).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .figures import Found, Table
from .files import number, text, there
from .system import read_pressure

__all__ = ["cgroup_figures", "read_cgroup"]

# What v1 says where there is no limit: the largest number of pages.
_NO_LIMIT = 1 << 60
_DEEPEST = 64
_CHANNELS = ("memory.cgroup", "memory.cgroup_limit")


def read_cgroup(root: Path, pid: str = "self") -> dict[str, Any] | None:
    """The control group that limits a process's memory most, or the process's own where none is limited.

    Returns:
        path; limit_bytes, null: none; current_bytes; high_events, how often it was slowed down for want of memory (v2);
        oom_kills; pressure as of `read_pressure` (v2). What the kernel does not
        say is null. None: the kernel says nothing of control groups.
    """
    groups = _groups(root, pid)
    if not groups:
        return None
    version, path, folder = min(groups, key=lambda group: _limit(group[0], group[2]) or _NO_LIMIT)
    if version == 1:
        events = _pairs(folder / "memory.oom_control")
        return {
            "path": path,
            "limit_bytes": _limit(version, folder),
            "current_bytes": number(folder / "memory.usage_in_bytes"),
            "high_events": None,
            "oom_kills": events.get("oom_kill"),
            "pressure": None,
        }
    events = _pairs(folder / "memory.events")
    return {
        "path": path,
        "limit_bytes": _limit(version, folder),
        "current_bytes": number(folder / "memory.current"),
        "high_events": events.get("high"),
        "oom_kills": events.get("oom_kill"),
        "pressure": read_pressure(folder / "memory.pressure"),
    }


def cgroup_figures(root: Path) -> Found:
    """What this process's control group holds, and its limit, where it has one."""
    groups = [group for group in _groups(root, "self") if _limit(group[0], group[2]) is not None]
    if not groups:
        return Found()
    version, _, folder = min(groups, key=lambda group: _limit(group[0], group[2]) or _NO_LIMIT)
    files = ("memory.usage_in_bytes", "memory.limit_in_bytes") if version == 1 else ("memory.current", "memory.max")
    return Found((Table(tuple(folder / file for file in files), _CHANNELS, _parse),))


def _parse(said: tuple[str | None, ...], _now_s: float) -> Mapping[str, float]:
    return {name: float(told) for name, told in zip(_CHANNELS, said, strict=True) if told and told.isdigit()}


def _groups(root: Path, pid: str) -> list[tuple[int, str, Path]]:
    """Version, path and folder of the group with the memory controller, and of those above it, the inmost first."""
    for line in (text(root / "proc" / pid / "cgroup") or "").splitlines():
        hierarchy, controllers, path = (*line.split(":", 2), "", "")[:3]
        version = 1 if "memory" in controllers.split(",") else 2 if hierarchy == "0" and not controllers else 0
        mount = _mount(root, pid, version) if version and path.startswith("/") and ".." not in path else None
        if mount is None:
            continue
        where, below = mount
        parts = [part for part in path.removeprefix(below).split("/") if part][:_DEEPEST]
        out = []
        for depth in range(len(parts), -1, -1):
            folder = root / where.lstrip("/") / Path(*parts[:depth])
            if there(folder / ("memory.limit_in_bytes" if version == 1 else "memory.current")):
                out.append((version, "/" + "/".join(parts[:depth]), folder))
        if out:
            return out
    return []


def _mount(root: Path, pid: str, version: int) -> tuple[str, str] | None:
    """Where the hierarchy is mounted, and which of its folders is there."""
    for line in (text(root / "proc" / pid / "mountinfo") or "").splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = (*rest.split(" ", 2), "", "")[:3]
        if (version == 2 and kind == "cgroup2") or (
            version == 1 and kind == "cgroup" and "memory" in options.split(",")
        ):
            words = fields.split()
            if len(words) > 4:
                return words[4], words[3].rstrip("/")
    return None


def _limit(version: int, folder: Path) -> int | None:
    limit = number(folder / ("memory.limit_in_bytes" if version == 1 else "memory.max"))
    return None if limit is None or limit >= _NO_LIMIT else limit


def _pairs(path: Path) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"^(\w+) (\d+)$", text(path) or "", re.MULTILINE)}

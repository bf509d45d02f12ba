"""Load, memory, swap and pressure of any Linux.

Sources: proc_stat(5), proc_meminfo(5); Linux, Documentation/accounting/psi.rst (`some avg10=…`, percent of the time).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from .figures import Found, Table
from .files import text

__all__ = ["find_system", "meminfo"]

_MEMINFO = re.compile(r"^(\w+(?:\(\w+\))?):\s+(\d+) kB$", re.MULTILINE)


def find_system(root: Path) -> Found:
    """Load of all processors, memory, swap, and what stalls for want of memory, processor, or storage."""
    tables, missing = [], []
    for table, what in (
        (Table(root / "proc/stat", ("load.cpu",), _load()), "load of the processors"),
        (Table(root / "proc/meminfo", _MEMORY, _memory), "memory"),
        *(
            (Table(root / f"proc/pressure/{name}", _pressures(name), _pressure(name)), f"pressure on {name}")
            for name in ("cpu", "io", "memory")
        ),
    ):
        if text(table.path) is None:
            missing.append(f"{what}: /{table.path.relative_to(root)} cannot be read")
        else:
            tables.append(table)
    return Found((), tuple(tables), tuple(missing))


def meminfo(said: str) -> dict[str, int]:
    """Bytes by the kernel's names."""
    return {key: int(value) * 1024 for key, value in _MEMINFO.findall(said)}


_MEMORY = ("memory.available", "memory.total", "swap.used", "swap.total")


def _memory(said: str) -> Mapping[str, float]:
    told = meminfo(said)
    out = {}
    if "MemAvailable" in told:
        out["memory.available"] = float(told["MemAvailable"])
    if "MemTotal" in told:
        out["memory.total"] = float(told["MemTotal"])
    if "SwapTotal" in told and "SwapFree" in told:
        out["swap.used"] = float(told["SwapTotal"] - told["SwapFree"])
        out["swap.total"] = float(told["SwapTotal"])
    return out


def _load() -> Callable[[str], Mapping[str, float]]:
    last: list[tuple[int, int]] = []

    def parse(said: str) -> Mapping[str, float]:
        try:
            ticks = [int(field) for field in said.splitlines()[0].split()[1:9]]
        except (IndexError, ValueError):
            return {}
        if len(ticks) < 8:
            return {}
        # cpu user nice system idle iowait irq softirq steal
        now = (sum(ticks), ticks[3] + ticks[4])
        before, last[:] = last[:], [now]
        if not before or now[0] <= before[0][0]:
            return {}
        return {"load.cpu": min(max(1 - (now[1] - before[0][1]) / (now[0] - before[0][0]), 0.0), 1.0)}

    return parse


def _pressures(name: str) -> tuple[str, ...]:
    return (f"pressure.{name}_some", f"pressure.{name}_full")


def _pressure(name: str) -> Callable[[str], Mapping[str, float]]:
    line = re.compile(r"^(some|full) avg10=(\d+\.\d+) ", re.MULTILINE)

    def parse(said: str) -> Mapping[str, float]:
        return {f"pressure.{name}_{share}": float(percent) / 100 for share, percent in line.findall(said)}

    return parse

"""Load, memory, swap and pressure of any Linux.

Sources: proc_stat(5), proc_meminfo(5), proc_swaps(5); Linux, Documentation/accounting/psi.rst (`some avg10=…`, percent
of the time), Documentation/admin-guide/blockdev/zram.rst (`mm_stat`), mm/vmstat.c (`pswpin`, `pswpout`, in pages).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .figures import Found, Table
from .files import number, text

__all__ = ["find_system", "meminfo", "read_pressure", "read_zram", "swaps"]

_MEMINFO = re.compile(r"^(\w+(?:\(\w+\))?):\s+(\d+) kB$", re.MULTILINE)
_STALL = re.compile(r"^(some|full) avg10=(\d+\.\d+) avg60=(\d+\.\d+) ", re.MULTILINE)
_MEMORY = ("memory.available", "memory.total", "swap.used", "swap.total")
_SWAPPING = ("swap.in_per_s", "swap.out_per_s")
_STALLS = ("cpu", "io", "memory")

_Parse = Callable[[tuple[str | None, ...], float], Mapping[str, float]]


def find_system(root: Path) -> Found:
    """Load of all processors, memory, swap, and what stalls for want of memory, processor, or storage."""
    proc = root / "proc"
    stalls = [
        (Table((proc / "pressure" / what,), (f"pressure.{what}_some", f"pressure.{what}_full"), _pressure(what)), what)
        for what in _STALLS
    ]
    wanted = [
        (Table((proc / "stat",), ("load.cpu",), _load()), "load of the processors"),
        (Table((proc / "meminfo",), _MEMORY, _memory), "memory"),
        (Table((proc / "vmstat",), _SWAPPING, _swapping()), "swapping"),
        *((table, f"pressure on {what}") for table, what in stalls),
    ]
    there = [table for table, _ in wanted if text(table.paths[0]) is not None]
    missing = [
        f"{what}: /{table.paths[0].relative_to(root)} cannot be read" for table, what in wanted if table not in there
    ]
    return Found(tuple(there), tuple(missing))


def meminfo(said: str) -> dict[str, int]:
    """Bytes by the kernel's names."""
    return {key: int(value) * 1024 for key, value in _MEMINFO.findall(said)}


def swaps(root: Path) -> list[str] | None:
    """What is swapped to: paths of files and block devices; None where the kernel does not say."""
    said = text(root / "proc/swaps")
    return None if said is None else [line.split()[0] for line in said.splitlines()[1:] if line.split()]


def read_pressure(path: Path) -> dict[str, float | None] | None:
    """some_avg10, full_avg10, some_avg60, full_avg60 of a pressure file, in per cent of the time, as the kernel tells
    them; null: it does not say. None: there is no such file."""
    said = text(path)
    if said is None:
        return None
    told = {share: (float(tens), float(sixties)) for share, tens, sixties in _STALL.findall(said)}
    return {
        f"{share}_avg{seconds}": told[share][n] if share in told else None
        for n, seconds in enumerate((10, 60))
        for share in ("some", "full")
    }


def read_zram(root: Path) -> list[dict[str, Any]]:
    """Compressed block devices in memory that are in use: name, disk_bytes, original_bytes and compressed_bytes of what
    is in it; null where the kernel does not say."""
    out = []
    for folder in sorted((root / "sys/block").glob("zram*")):
        disk = number(folder / "disksize")
        if not disk:
            continue
        told = (text(folder / "mm_stat") or "").split()
        sizes = [int(word) if word.isdigit() else None for word in told[:2]] if len(told) >= 2 else [None, None]
        original, compressed = sizes
        out.append(
            {"name": folder.name, "disk_bytes": disk, "original_bytes": original, "compressed_bytes": compressed}
        )
    return out


def _memory(said: tuple[str | None, ...], _now_s: float) -> Mapping[str, float]:
    told, out = meminfo(said[0] or ""), {}
    if "MemAvailable" in told:
        out["memory.available"] = float(told["MemAvailable"])
    if "MemTotal" in told:
        out["memory.total"] = float(told["MemTotal"])
    if "SwapTotal" in told and "SwapFree" in told:
        out["swap.used"] = float(told["SwapTotal"] - told["SwapFree"])
        out["swap.total"] = float(told["SwapTotal"])
    return out


def _load() -> _Parse:
    """Shares of the time between two readings; the first has none."""
    last: list[tuple[int, int]] = []

    def parse(said: tuple[str | None, ...], _now_s: float) -> Mapping[str, float]:
        try:
            # cpu user nice system idle iowait irq softirq steal
            ticks = [int(field) for field in (said[0] or "").splitlines()[0].split()[1:9]]
            total, idle = sum(ticks), ticks[3] + ticks[4]
        except (IndexError, ValueError):
            return {}
        before, last[:] = last[:], [(total, idle)]
        if not before or total <= before[0][0]:
            return {}
        return {"load.cpu": min(max(1 - (idle - before[0][1]) / (total - before[0][0]), 0.0), 1.0)}

    return parse


def _swapping() -> _Parse:
    """Bytes a second between two readings; the first has none."""
    last: list[tuple[float, int, int]] = []
    page = os.sysconf("SC_PAGE_SIZE")
    lines = [re.compile(rf"^{name} (\d+)$", re.MULTILINE) for name in ("pswpin", "pswpout")]

    def parse(said: tuple[str | None, ...], now_s: float) -> Mapping[str, float]:
        found = [line.search(said[0] or "") for line in lines]
        if found[0] is None or found[1] is None:
            return {}
        now = (now_s, int(found[0][1]), int(found[1][1]))
        before, last[:] = last[:], [now]
        if not before or now_s <= before[0][0]:
            return {}
        seconds = now_s - before[0][0]
        return {name: max(now[n] - before[0][n], 0) * page / seconds for n, name in enumerate(_SWAPPING, 1)}

    return parse


def _pressure(what: str) -> _Parse:
    def parse(said: tuple[str | None, ...], _now_s: float) -> Mapping[str, float]:
        return {f"pressure.{what}_{share}": float(tens) / 100 for share, tens, _ in _STALL.findall(said[0] or "")}

    return parse

"""Who computes, who holds memory, and who uses the GPU.

Sources: proc_pid_stat(5), proc_pid_fd(5). A process uses an NVIDIA GPU through /dev/nvidia0 and the like, or
/dev/nvidia-uvm, and on a Jetson through /dev/nvgpu/igpu0/…, before through /dev/nvhost-gpu and /dev/nvhost-ctrl-gpu
(NVIDIA, nvgpu, include/uapi/linux/nvgpu-ctrl.h names both).
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..device import Collected, Device, UnavailableError
from .holder import daemon_of, process_stat

__all__ = ["Process", "collect", "descendants", "read_processes"]

_WINDOW_S = 0.5
_BY_CORES, _BY_MEMORY = 10, 5
_MOST_PROCESSES = 20_000
_MOST_FILES = 200_000
_GPU_NODE = re.compile(r"/dev/(nvidia\d+|nvidia-uvm|nvgpu/\S+|nvhost-gpu|nvhost-ctrl-gpu|nvhost-as-gpu)")
_GPU_NODES = ("nvidia[0-9]*", "nvgpu/*", "nvhost-gpu", "nvhost-ctrl-gpu")


@dataclass(frozen=True)
class Process:
    """began: ticks after the system's start: another process under the same number began later."""

    pid: int
    name: str
    parent: int
    began: int
    cpu_s: float
    rss_bytes: int


def collect(device: Device) -> Collected:
    """See docs/diagnose.md."""
    if not device.live:
        raise UnavailableError("a recorded tree has no processes")
    begin, before = time.monotonic(), read_processes()
    # The diagnosis, and the daemon.
    roots = {os.getppid(), daemon_of(device)}
    ours = descendants(before, roots)
    gpu_users, gpu_users_why = _gpu_users(device, before, ours)
    time.sleep(max(_WINDOW_S - (time.monotonic() - begin), 0.0))
    after, window_s = read_processes(), time.monotonic() - begin
    ours |= descendants(after, roots)
    cores = _cores(before, after, window_s)
    return Collected(
        {
            "window_s": window_s,
            "top": _top(after, cores, ours),
            # Many that compute a little each take as much as one that computes a lot.
            "others_cores": sum(used for pid, used in cores.items() if pid not in ours),
            "ours_cores": sum(used for pid, used in cores.items() if pid in ours),
            "gpu_users": gpu_users,
            "gpu_users_why": gpu_users_why,
        }
    )


def read_processes() -> dict[int, Process]:
    """Every process of this machine that can be seen."""
    tick_s, page = 1 / os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    found = {}
    for name in os.listdir("/proc")[:_MOST_PROCESSES]:
        if not name.isdigit():
            continue
        # It may have ended meanwhile.
        with contextlib.suppress(OSError, ValueError):
            with open(f"/proc/{name}/stat", "rb", buffering=0) as file:
                comm, fields = process_stat(file.read(4096).decode("utf-8", "replace"))
            cpu_s = (int(fields[11]) + int(fields[12])) * tick_s
            pid = int(name)
            found[pid] = Process(pid, comm, int(fields[1]), int(fields[19]), cpu_s, int(fields[21]) * page)
    return found


def descendants(processes: dict[int, Process], roots: Iterable[int | None]) -> set[int]:
    """These processes, and all that come from them."""
    children: dict[int, list[int]] = {}
    for each in processes.values():
        children.setdefault(each.parent, []).append(each.pid)
    out: set[int] = set()
    left = [pid for pid in roots if pid is not None]
    while left:
        pid = left.pop()
        if pid not in out:
            out.add(pid)
            left += children.get(pid, [])
    return out


def _cores(before: dict[int, Process], after: dict[int, Process], window_s: float) -> dict[int, float]:
    out = {}
    for each in after.values():
        earlier = before.get(each.pid)
        same = earlier is not None and earlier.began == each.began
        out[each.pid] = (each.cpu_s - (earlier.cpu_s if earlier is not None and same else 0.0)) / window_s
    return out


def _top(processes: dict[int, Process], cores: dict[int, float], ours: set[int]) -> list[dict[str, Any]]:
    by_cores = sorted(processes.values(), key=lambda each: (-cores[each.pid], each.pid))[:_BY_CORES]
    rest = [each for each in processes.values() if each not in by_cores]
    chosen = by_cores + sorted(rest, key=lambda each: (-each.rss_bytes, each.pid))[:_BY_MEMORY]
    return [
        {
            "pid": each.pid,
            "name": each.name,
            "cores": cores[each.pid],
            "rss_bytes": each.rss_bytes,
            "ours": each.pid in ours,
        }
        for each in chosen
    ]


def _gpu_users(
    device: Device, processes: dict[int, Process], ours: set[int]
) -> tuple[list[dict[str, Any]] | None, str | None]:
    if not any(next((device.root / "dev").glob(pattern), None) for pattern in _GPU_NODES):
        return None, "no NVIDIA GPU: /dev has none of its nodes"
    found, hidden, looked = [], 0, 0
    for each in processes.values():
        try:
            names = os.listdir(f"/proc/{each.pid}/fd")
        except PermissionError:
            hidden += 1
            continue
        except OSError:
            continue
        nodes = set()
        for name in names:
            looked += 1
            with contextlib.suppress(OSError):
                nodes.add(os.readlink(f"/proc/{each.pid}/fd/{name}"))
        if looked > _MOST_FILES:
            return None, f"there are more than {_MOST_FILES} open files"
        used = sorted(filter(_GPU_NODE.fullmatch, nodes))
        if used:
            found.append({"pid": each.pid, "name": each.name, "ours": each.pid in ours, "devices": used})
    why = f"{hidden} processes of other users cannot be looked into; root can" if hidden else None
    return found, why

"""Evidence for the doctor: what a healthy Jetson tells, to be spoiled one fact at a time."""

from __future__ import annotations

import copy
from typing import Any

from kedge.diagnose.evidence import Clock, Evidence, Link, evidence_of
from kedge.targets import Target, load_target
from kedge_agent import __version__

NOW_S = 1_795_600_000.0
STATE = "/home/kedge/.local/state/kedge"
LIVE, BEFORE = "a" * 64, "b" * 64
LINK = Link(
    "ssh",
    reachable=True,
    address="kedge@192.0.2.7",
    connect_ms=80.0,
    round_trip_ms=12.0,
    host_key="pinned",
    login=True,
    clock=Clock(0.2, 0.3),
)
_GIB = 1 << 30


def healthy() -> dict[str, Any]:
    """The facts of an Orin Nano that is well and serves one model with an engine."""
    return copy.deepcopy(_DOCUMENT)


def data(document: dict[str, Any], collector: str) -> dict[str, Any]:
    """The data of a collector, to be changed."""
    found: dict[str, Any] = document["collectors"][collector]["data"]
    return found


def judged(
    document: dict[str, Any] | None,
    link: Link | None = LINK,
    target: str | None = "orin-nano-8gb",
    device: str = "nano",
) -> Evidence:
    """Evidence of this document; None: the device told none."""
    profile: Target | None = None if target is None else load_target(target)
    if document is None:
        return Evidence(device, profile, link)
    return evidence_of(device, document, profile, link)


def slow(document: dict[str, Any], times: float = 2.3) -> dict[str, Any]:
    """The same device, its model slower than it was."""
    data(document, "recorder")["hour"]["models"]["camera"]["compute_p99_ms"] = 14.8 * times
    return document


def _ok(found: dict[str, Any]) -> dict[str, Any]:
    return {"status": "ok", "reason": None, "ms": 12.5, "data": found}


def _file_system(what: str, path: str) -> dict[str, Any]:
    room = {"total_bytes": 64 * _GIB, "free_bytes": 30 * _GIB, "inodes_free": 3_000_000, "inodes_total": 4_000_000}
    return {"what": what, "path": path, "kind": "ext4", "read_only": False, **room}


def _summary(p50: float, p99: float) -> dict[str, Any]:
    return {
        "from_s": NOW_S - 3600,
        "to_s": NOW_S,
        "seconds": 3600,
        "models": {
            "camera": {
                "release": LIVE,
                "version": 3,
                "requests": 36_000,
                "failures": {},
                "waiting": 0,
                "total_p50_ms": p50 + 1,
                "total_p99_ms": p99 + 2,
                "compute_p50_ms": p50,
                "compute_p99_ms": p99,
            }
        },
        "channels": {"temperature.cpu": {"min": 48.0, "mean": 51.0, "max": 55.0, "last": 50.5, "unit": "°C"}},
        "throttled_share": 0.0,
        "throttles": {"over-current oc1": 0},
        "gaps": 0,
        "clock_jumps": 0,
    }


_PASSPORT = {
    "runtime": "tensorrt",
    "runtime_version": "10.3.0.30",
    "os": "linux",
    "arch": "aarch64",
    "compute_capabilities": ["8.7"],
    "module": "nvidia,p3768-0000+p3767-0005",
    "l4t": "36.4.3",
    "cuda": "12.6",
    "power_mode": "2",
}

_RELEASE = {"whole": True, "checked_bytes": 9_000_000, "bad": [], "signed": True, "keys": ["SHA256:x"]}

_DOCUMENT: dict[str, Any] = {
    "kedge_facts": 1,
    "at_s": NOW_S,
    "agent_version": __version__,
    "state": STATE,
    "seconds": 1.4,
    "collectors": {
        "system": _ok(
            {
                "os": "linux",
                "arch": "aarch64",
                "kernel": "5.15.148-tegra",
                "python": "3.10.12",
                "libc": "glibc 2.35",
                "module": "NVIDIA Jetson Orin Nano Developer Kit",
                "l4t": "36.4.3",
                "boot_id": "503f603c-a1f2-4e83-b91d-75a5e0538e4e",
                "uptime_s": 360_000.0,
                "cores": 6,
                "load_1m": 0.8,
                "at_s": NOW_S,
                "synchronised": True,
                "container": False,
            }
        ),
        "disk": _ok(
            {
                "file_systems": [_file_system("state", STATE), _file_system("root", "/")],
                "store": {
                    "objects_bytes": 200_000_000,
                    "releases": 3,
                    "incoming_bytes": 0,
                    "recorder_bytes": 20_000_000,
                    "log_bytes": 40_000,
                },
            }
        ),
        "memory": _ok(
            {
                "total_bytes": 8 * _GIB,
                "available_bytes": 5 * _GIB,
                "swap_total_bytes": 4 * _GIB,
                "swap_free_bytes": 4 * _GIB,
                "zram": [],
                "pressure": {"some_avg10": 0.0, "full_avg10": 0.0, "some_avg60": 0.0, "full_avg60": 0.0},
                "swap_in_per_s": 0.0,
                "swap_out_per_s": 0.0,
                "oom_kills": 0,
                "cgroup": {
                    "path": "/system.slice/kedge-agent.service",
                    "limit_bytes": None,
                    "current_bytes": 400_000_000,
                    "high_events": 0,
                    "oom_kills": 0,
                    "pressure": {"some_avg10": 0.0, "full_avg10": 0.0, "some_avg60": 0.0, "full_avg60": 0.0},
                },
            }
        ),
        "agent": _ok(
            {
                "pid": 812,
                "running": True,
                "process_state": "S",
                "responds": True,
                "responds_ms": 1.2,
                "ready": True,
                "safe_mode": None,
                "info": {"version": __version__, "runtimes": {"onnxruntime": "1.23.2", "tensorrt": "10.3.0"}},
                "status": {
                    "ready": True,
                    "safe_mode": None,
                    "models": [
                        {"model": "camera", "state": "serving", "release": LIVE, "runtime": "tensorrt", "problem": None}
                    ],
                },
                "started_at_s": NOW_S - 350_000,
                "uptime_s": 350_000.0,
                "threads": 24,
                "open_files": 40,
                "rss_bytes": 400_000_000,
                "settings": {"file": None, "problem": None},
                "service": {
                    "unit": "kedge-agent.service",
                    "active": "active",
                    "sub": "running",
                    "result": "success",
                    "restarts": 0,
                    "enabled": "enabled",
                    "main_pid": 812,
                },
                "starts": [{"at_s": NOW_S - 350_000, "version": __version__, "how": "start"}],
                "crashes": {"unclean": True, "anonymous": 0, "suspects": [], "computing": []},
                "upgrade_last": None,
            }
        ),
        "installs": _ok(
            {
                "agents": [
                    {
                        "what": "process",
                        "path": f"{STATE}/agent/current/run.py",
                        "version": None,
                        "state": STATE,
                        "pid": 812,
                        "user": "kedge",
                        "running": True,
                    }
                ],
                "duplicates": [],
            }
        ),
        "releases": _ok(
            {
                "models": [
                    {
                        "model": "camera",
                        "state": {"current": LIVE, "previous": BEFORE, "floor": 3},
                        "problem": None,
                        "releases": [
                            {"release": LIVE, "version": 3, "role": "current", "device_built": True, **_RELEASE},
                            {"release": BEFORE, "version": 2, "role": "previous", "device_built": True, **_RELEASE},
                        ],
                    }
                ],
                "read_bytes_per_s": 400e6,
                "left_out": [],
            }
        ),
        "engines": _ok(
            {
                "engines": [
                    {
                        "model": "camera",
                        "release": LIVE,
                        "artefact": "model.engine",
                        "runtime": "tensorrt",
                        "version": "10.3.0.30",
                        "passport": _PASSPORT,
                        "header": {"runtime": "tensorrt", "version": "10.3.0.30", "size_bytes": 8_000_000},
                        "fits": True,
                        "refusals": [],
                        "warnings": [],
                    }
                ]
            }
        ),
        "runtimes": _ok(
            {
                "numpy": "1.26.4",
                "onnxruntime": "1.23.2",
                "tensorrt": "10.3.0",
                "tensorrt_rtx": None,
                "cuda_bindings": None,
                "pycuda": "2024.1",
                "zstd": "1.0.0",
                "nvml": None,
                "driver": "540.4.0",
                "cuda": "12.6",
                "providers": None,
            }
        ),
        "sensors": _ok(
            {
                "facts": {
                    "module": "NVIDIA Jetson Orin Nano Developer Kit",
                    "l4t": "36.4.3",
                    "power_mode": {
                        "name": "MAXN_SUPER",
                        "id": 2,
                        "modes": [
                            {"id": 0, "name": "15W"},
                            {"id": 1, "name": "25W"},
                            {"id": 2, "name": "MAXN_SUPER"},
                        ],
                        "highest": 2,
                        "default": 1,
                    },
                    "jetson_clocks": False,
                    "clocks": [
                        {
                            "name": "processor",
                            "hz": 1_100_000_000,
                            "low_hz": 115_000_000,
                            "high_hz": 1_728_000_000,
                            "locked": False,
                            "hardware_high_hz": 1_728_000_000,
                        }
                    ],
                    "governors": {"processor": "schedutil"},
                    "thermal": [
                        {"zone": "cpu", "celsius": 50.5, "trip_throttle_celsius": 99.0, "trip_shutdown_celsius": 104.5}
                    ],
                    "headroom": [{"zone": "cpu", "celsius": 48.5}],
                    "throttling_now": [],
                    "swap_on": True,
                    "zram_on": False,
                    "gpu": None,
                    "gpus": None,
                },
                "readings": [{"name": "temperature.cpu", "kind": "temperature", "value": 50.5, "unit": "°C"}],
                "unavailable": [],
                "throttles": {"over-current oc1": 0},
            }
        ),
        "processes": _ok(
            {
                "window_s": 0.5,
                "top": [
                    {"pid": 812, "name": "python3", "cores": 0.6, "rss_bytes": 400_000_000, "ours": True},
                    {"pid": 700, "name": "gnome-shell", "cores": 0.1, "rss_bytes": 300_000_000, "ours": False},
                ],
                "others_cores": 0.3,
                "ours_cores": 0.7,
                "gpu_users": [{"pid": 812, "name": "python3", "ours": True, "devices": ["/dev/nvhost-gpu"]}],
                "gpu_users_why": None,
            }
        ),
        "journal": _ok(
            {
                "entries": [
                    {
                        "sequence": 7,
                        "model": "camera",
                        "release": LIVE,
                        "step": "gated",
                        "at_s": int(NOW_S) - 90_000,
                        "gates": [{"gate": "latency", "passed": True, "figures": {"p99_ms": 14.8}, "limits": {}}],
                    },
                    {
                        "sequence": 8,
                        "model": "camera",
                        "release": LIVE,
                        "step": "committed",
                        "at_s": int(NOW_S) - 89_000,
                    },
                ]
            }
        ),
        "recorder": _ok(
            {
                "status": {
                    "files": 12,
                    "bytes": 20_000_000,
                    "first_s": NOW_S - 600_000,
                    "last_s": NOW_S - 1,
                    "cost": 0.004,
                },
                "hour": _summary(12.0, 15.1),
                "recent": None,
                "recent_why": "nothing was recorded in the last five minutes",
                "since_deploy": {
                    "camera": {
                        **_summary(12.0, 15.0),
                        "at_deploy": {
                            "release": LIVE,
                            "at_s": int(NOW_S) - 89_000,
                            "gate": {"runs": 250, "median_ms": 12.0, "p99_ms": 14.8},
                            "first": None,
                        },
                    }
                },
            }
        ),
        "logs": _ok({"errors": [], "start_log": [], "bytes": 40_000}),
        "kernel": _ok(
            {
                "source": "dmesg",
                "lines": [],
                "counts": {"oom": 0, "gpu": 0, "thermal": 0, "storage": 0, "hung": 0, "crash": 0},
            }
        ),
    },
}

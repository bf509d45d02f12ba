"""Room on the file systems that the agent needs, and what its store takes.

Sources: statvfs(3) (`f_bavail`, `f_favail`: for users that are not root), proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from ...store.releases import has_release, release_digests
from ..device import Collected, Device, UnavailableError, reason_of, within

__all__ = ["collect"]

_MOST_FILES = 200_000
_PATIENCE_S = 1.0
_STORE_S = 5.0
_FIGURES = ("kind", "total_bytes", "free_bytes", "inodes_free", "inodes_total", "read_only")
_STORED = ("objects_bytes", "releases", "incoming_bytes", "recorder_bytes", "log_bytes")


def collect(device: Device) -> Collected:
    """See docs/diagnose.md."""
    places = [("state", device.state)]
    if device.live:
        places += [("root", Path("/")), ("tmp", Path(tempfile.gettempdir())), ("log", Path("/var/log"))]
    mounts = _mounts(device)
    found = [_answered(device, *place, mounts) for place in places]
    gone = found[0]["total_bytes"] is None
    # Whoever did not answer once is not asked again.
    store = {**dict.fromkeys(_STORED), "objects_bytes_why": found[0]["total_bytes_why"]} if gone else _store(device)
    return Collected({"file_systems": found, "store": store})


def _answered(device: Device, what: str, path: Path, mounts: list[tuple[Path, str, str]]) -> dict[str, Any]:
    """Of one that gives no answer, the others are told all the same."""
    try:
        if what == "state":
            device.needs_state()
        return within(_PATIENCE_S, lambda: _file_system(what, _existing(path), mounts), f"the file system of {path}")
    except UnavailableError as error:
        return {"what": what, "path": str(path), **dict.fromkeys(_FIGURES), "total_bytes_why": str(error)}


def _existing(path: Path) -> Path:
    """The path, or the nearest of its parents that is there."""
    while not os.path.exists(path) and path != path.parent:
        path = path.parent
    return path


def _file_system(what: str, path: Path, mounts: list[tuple[Path, str, str]]) -> dict[str, Any]:
    out: dict[str, Any] = {"what": what, "path": str(path), "kind": _kind(path, mounts)}
    try:
        found = os.statvfs(path)
    except OSError as error:
        return {**dict.fromkeys(_FIGURES), **out, "total_bytes_why": reason_of(error, path)}
    counts_inodes = found.f_files > 0
    return {
        **out,
        "total_bytes": found.f_blocks * found.f_frsize,
        "free_bytes": found.f_bavail * found.f_frsize,
        "inodes_free": found.f_favail if counts_inodes else None,
        "inodes_total": found.f_files if counts_inodes else None,
        "read_only": bool(found.f_flag & os.ST_RDONLY),
    }


def _mounts(device: Device) -> list[tuple[Path, str, str]]:
    """Mount points with their device and kind."""
    try:
        lines = device.text("proc/self/mountinfo").splitlines()
    except UnavailableError:
        return []
    out = []
    for line in lines:
        fields, _, rest = line.partition(" - ")
        parts = fields.split(" ")
        if len(parts) > 4 and rest:
            # Spaces in names are written as octal numbers.
            point = parts[4].encode().decode("unicode_escape", "replace")
            out.append((Path(point), parts[2], rest.split(" ")[0]))
    return out


def _kind(path: Path, mounts: list[tuple[Path, str, str]]) -> str | None:
    """Of the innermost mount point above it; of several there, the last covers the others."""
    above = [
        (len(point.parts), place) for place, (point, _, _) in enumerate(mounts) if path.resolve().is_relative_to(point)
    ]
    return mounts[max(above)[1]][2] if above else None


def _store(device: Device) -> dict[str, Any]:
    try:
        return within(_STORE_S, lambda: _counted(device), str(device.state))
    except UnavailableError as error:
        return {**dict.fromkeys(_STORED), "objects_bytes_why": str(error)}


def _counted(device: Device) -> dict[str, Any]:
    state, layout = device.state, device.layout
    try:
        names = os.listdir(state)
    except OSError as error:
        return {**dict.fromkeys(_STORED), "objects_bytes_why": reason_of(error, state)}
    objects_bytes = _used_bytes(state / "objects")
    logs = [state / name for name in names if name == "start.log" or name.startswith("agent.log")]
    return {
        "objects_bytes": objects_bytes,
        "objects_bytes_why": f"there are more than {_MOST_FILES} files" if objects_bytes is None else None,
        "releases": sum(has_release(layout, digest) for digest in release_digests(layout)),
        "incoming_bytes": _used_bytes(layout.incoming),
        "recorder_bytes": _used_bytes(state / "recorder"),
        "log_bytes": sum(_blocks(path) for path in logs),
    }


def _used_bytes(folder: Path) -> int | None:
    """Blocks of all files below it; None: there are too many to count."""
    total = count = 0
    for place, _, names in os.walk(folder):
        for name in names:
            total += _blocks(Path(place, name))
            count += 1
            if count > _MOST_FILES:
                return None
    return total


def _blocks(path: Path) -> int:
    try:
        return path.lstat().st_blocks * 512
    except OSError:
        # It went meanwhile.
        return 0

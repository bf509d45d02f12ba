"""Room on the device's disks, and what the kernel says of them."""

from __future__ import annotations

import shlex

from ...report.text import byte_size
from ..evidence import Evidence
from ..finding import Finding, fault, ok, unknown, warning
from ..node import Node
from ..thresholds import limit
from .logs import recent_lines
from .words import counted, share

__all__ = ["disk", "disk_errors"]

_DISK = ("mmc", "nvme", "ext4", "i/o error", "blk_update", "remounting", "medium error", "unc at", "squashfs")
_WHAT = {"state": "the agent's state folder", "root": "the root", "tmp": "temporary files", "log": "the logs"}


def disk(evidence: Evidence) -> Finding:
    """Room, inodes, and whether the state folder can be written at all."""
    name, section = "disk", evidence.section("disk")
    if section.why:
        return unknown(name, section.why)
    systems = section.data.nodes("file_systems")
    state = next((each for each in systems if each.text("what") == "state"), None)
    if state is None or state.size("free_bytes") is None:
        why = state.text("free_bytes_why") if state is not None else None
        return unknown(name, f"room of the state folder: {why or 'the device does not tell'}")
    path = state.text("path") or "/"
    figures = {
        "path": path,
        "free_bytes": state.size("free_bytes"),
        "total_bytes": state.size("total_bytes"),
        "inodes_free": state.size("inodes_free"),
        "inodes_total": state.size("inodes_total"),
        "read_only": state.flag("read_only"),
    }
    if state.flag("read_only"):
        return fault(
            name,
            f"{path} is mounted read-only",
            brief="the disk is read-only",
            cause="the kernel mounts a file system so after an error of the disk, or the image is made so",
            cure=evidence.shell(f"sudo mount -o remount,rw {shlex.quote(path)}"),
            figures=figures,
        )
    full = _fullness(state)
    if full is not None:
        verdict, words = full
        return (fault if verdict == "fault" else warning)(
            name,
            f"{_WHAT['state']}, {path}: {words}",
            brief="the disk is full" if verdict == "fault" else "the disk is nearly full",
            cause=f"what fills it is found with the command below; {_ours(section.data.child('store'))}",
            cure=_largest(evidence, path),
            figures=figures,
        )
    for other in systems:
        found = _fullness(other)
        if found is not None and found[0] == "fault":
            what, where = other.text("what") or "", other.text("path") or "/"
            return warning(
                name,
                f"{_WHAT.get(what, what)}, {where}: {found[1]}; the state folder has room",
                brief=f"{where} is full",
                cause="not the agent's own disk, but systemd, SSH and logs need it",
                cure=_largest(evidence, where),
                figures=figures,
            )
    return ok(name, f"{_room(state)} free at {path}", **figures)


def disk_errors(evidence: Evidence) -> Finding:
    """What the kernel says of disks that fail."""
    name, section = "disk-errors", evidence.section("kernel")
    if section.why:
        return unknown(name, section.why)
    count = section.data.child("counts").size("storage")
    if count is None:
        return unknown(name, section.data.text("source_why") or "the kernel's messages cannot be read")
    lines = recent_lines(evidence, _DISK) if count else []
    if not lines:
        past = f"; {counted(count, 'line')} before, since it started" if count else ""
        return ok(name, f"the kernel told of no error of a disk in the last day{past}", storage=count)
    return fault(
        name,
        f'disk errors, {counted(len(lines), "line")} of the kernel in the last day, the last: "{lines[-1][:160]}"',
        brief="the disk fails",
        cause="a worn-out or loose SD card, NVMe or eMMC: what it holds cannot be trusted",
        cure=evidence.shell("sudo dmesg --level=err,warn | tail -n 40") + "  # then replace the disk",
        figures={"storage": count, "last_day": len(lines)},
    )


def _fullness(system: Node) -> tuple[str, str] | None:
    free, total = system.size("free_bytes"), system.size("total_bytes")
    inodes, most = system.size("inodes_free"), system.size("inodes_total")
    # Images that are read-only by nature (squashfs) are full by nature.
    if free is None or not total or system.flag("read_only"):
        return None
    if free < min(limit("disk_free_fault"), total / 4):
        return "fault", f"{byte_size(free)} free of {byte_size(total)}"
    if inodes is not None and most and inodes < most * limit("inodes_free_fault_share"):
        return "fault", f"{counted(inodes, 'inode')} free of {most:,}: too many small files"
    if free < limit("disk_free_warning") and free < total * limit("disk_free_warning_share"):
        return "warning", f"{byte_size(free)} free of {byte_size(total)}"
    return None


def _largest(evidence: Evidence, path: str) -> str:
    """What shows the largest folders of the file system that a path lies on."""
    mounted = f'"$(df --output=target {shlex.quote(path)} | tail -n 1)"'
    return evidence.shell(f"sudo du -xh --max-depth=3 {mounted} | sort -h | tail -n 20")


def _room(system: Node) -> str:
    free, total = system.size("free_bytes"), system.size("total_bytes")
    return byte_size(free) if free is None or not total else f"{byte_size(free)} ({share(free / total)})"


def _ours(store: Node) -> str:
    parts = [
        f"{byte_size(size)} {what}"
        for key, what in (
            ("objects_bytes", "releases and agents"),
            ("incoming_bytes", "pushes that have not ended"),
            ("recorder_bytes", "recordings"),
            ("log_bytes", "logs"),
        )
        if (size := store.size(key))
    ]
    return f"the agent's own: {', '.join(parts)}" if parts else "the agent's own part of it is not known"

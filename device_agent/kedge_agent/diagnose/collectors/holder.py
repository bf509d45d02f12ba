"""The daemon's process, as the kernel tells of it.

Sources: proc_locks(5), proc_pid_stat(5), proc_pid_status(5), proc_stat(5) (`btime`).
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass

from ..device import Device, UnavailableError, reason_of, within

__all__ = ["ProcessFacts", "boot_time_s", "daemon_of", "lock_holder", "process_facts", "process_stat"]

_MOST_LOCKS_BYTES = 4 << 20
_PATIENCE_S = 1.0


@dataclass(frozen=True)
class ProcessFacts:
    """None: not known."""

    state: str | None = None
    started_at_s: float | None = None
    uptime_s: float | None = None
    threads: int | None = None
    open_files: int | None = None
    rss_bytes: int | None = None


def lock_holder(device: Device) -> int | None:
    """The process that holds the state folder's lock; None: nobody.

    The kernel is asked who does, for to try the lock is to keep an agent that begins at that moment from it.

    Raises:
        UnavailableError: it cannot be told.
    """
    if not device.live:
        raise UnavailableError("a recorded tree has no processes")
    device.needs_state()
    path = device.layout.lock
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnavailableError(reason_of(error, path)) from error
    try:
        found = os.fstat(handle)
        written = os.pread(handle, 32, 0).strip()
        named = int(written) if written.isdigit() else None
        place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
        try:
            table = device.text("proc/locks", _MOST_LOCKS_BYTES)
        except UnavailableError:
            return named if _taken(handle) else None
        return _holder(table, place, named)
    finally:
        os.close(handle)


def daemon_of(device: Device) -> int | None:
    """As `lock_holder`; None too where it cannot be told, or the state folder gives no answer."""
    try:
        return within(_PATIENCE_S, lambda: lock_holder(device), str(device.state))
    except UnavailableError:
        return None


def _holder(table: str, place: str, named: int | None) -> int | None:
    for line in table.splitlines():
        # 1: FLOCK  ADVISORY  WRITE 4242 08:01:131 0 EOF; one that waits has -> behind the number.
        fields = line.split()
        if len(fields) < 6 or fields[1] != "FLOCK" or not fields[4].isdigit():
            continue
        # Some file systems show files under another device than the one of their locks.
        same_file = fields[5].rpartition(":")[2] == place.rpartition(":")[2]
        if fields[5] == place or (same_file and int(fields[4]) == named):
            return int(fields[4])
    return None


def _taken(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def process_stat(text: str) -> tuple[str, list[str]]:
    """Name of a process, and the fields that follow it, from /proc/PID/stat; the name may hold anything.

    Raises:
        ValueError: it is none.
    """
    begin, _, rest = text.rpartition(")")
    fields = rest.split()
    if "(" not in begin or len(fields) < 22:
        raise ValueError("no process's stat")
    return begin.partition("(")[2], fields


def process_facts(device: Device, pid: int) -> ProcessFacts:
    """What the kernel tells of a process."""
    try:
        _, fields = process_stat(device.text(f"proc/{pid}/stat", 4096))
    except (UnavailableError, ValueError):
        return ProcessFacts()
    started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    boot_s, up_s = boot_time_s(device), _uptime_s(device)
    try:
        # Its own user and root alone may look.
        open_files: int | None = len(os.listdir(device.root / f"proc/{pid}/fd"))
    except OSError:
        open_files = None
    return ProcessFacts(
        fields[0],
        None if boot_s is None else boot_s + started_s,
        None if up_s is None else max(up_s - started_s, 0.0),
        int(fields[17]),
        open_files,
        int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
    )


def boot_time_s(device: Device) -> int | None:
    """When the system started, in seconds since 1970 by its clock of now."""
    try:
        lines = device.text("proc/stat").splitlines()
    except UnavailableError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("btime ")), None)


def _uptime_s(device: Device) -> float | None:
    try:
        return float(device.text("proc/uptime", 128).split()[0])
    except (UnavailableError, ValueError, IndexError):
        return None

"""What the kernel said, of what matters here: read where this user may.

Sources: Linux, Documentation/ABI/testing/dev-kmsg (records of /dev/kmsg) and dmesg_restrict in
Documentation/admin-guide/sysctl/kernel.rst; journalctl(1), `-k`, and its groups. The messages: mm/oom_kill.c,
kernel/hung_task.c, kernel/watchdog.c, arch/x86/kernel/traps.c and mm/fault.c, drivers/thermal/intel/therm_throt.c,
drivers/thermal/thermal_core.c, fs/ext4/super.c, block/blk-core.c, drivers/nvme/host/pci.c, drivers/mmc; NVIDIA's "Xid
Errors", nvgpu's `[ERR]`, and soctherm's `OC ALARM` (NVIDIA's forum, topic 204815).
"""

from __future__ import annotations

import errno
import os
import re
import time
from dataclasses import dataclass

from .agent_log import plain
from .device import Device, UnavailableError, reason_of

__all__ = ["KINDS", "KernelLog", "kinds_of", "read_kernel_log"]

KINDS = {
    "oom": r"Out of memory|out of memory: Killed|oom-kill:|invoked oom-killer|Killed process \d+",
    "gpu": r"NVRM: Xid|NVRM:.*(?:fail|error)|nvgpu.*(?:\[ERR\]|fault|timeout|timed out)|gk20a.*(?:fault|timeout)",
    "thermal": r"OC ALARM|clock (?:is )?throttled|critical temperature|temperature above threshold|hot surface"
    r"|thermal.*(?:shutting down|shutdown)|throttling (?:due|cpu|gpu)|over-?current",
    "storage": r"I/O error|blk_update_request:.*error|EXT4-fs (?:error|\(.*\): .*error)"
    r"|[Rr]emounting filesystem read-only|nvme.*(?:timeout|controller is down|resetting)"
    r"|mmc\d.*(?:error|timeout|timed out)|critical medium error",
    "hung": r"blocked for more than \d+ seconds|soft lockup|hard LOCKUP|rcu: INFO: .*(?:stall|starved)",
    "crash": r"(?:python|kedge)\S*\[\d+\]:? (?:segfault|general protection|trap )|traps: (?:python|kedge)"
    r"|(?:python|kedge)\S*\[\d+\]: unhandled (?:exception|.* fault)",
}
"""What a line tells of, by patterns. Lines that say how the kernel is set up at its start are none."""

_PATTERNS = {kind: re.compile(pattern) for kind, pattern in KINDS.items()}
_MOST_RECORDS = 100_000
_RECORD_BYTES = 8192
_PATIENCE_S = 5.0
_MOST_BYTES = 8 << 20
# Where the system keeps them too; of a recorded tree the only ones there are.
_FILES = ("var/log/kern.log", "var/log/dmesg")


@dataclass(frozen=True)
class KernelLog:
    """source: "dmesg" (the kernel's own buffer), "journalctl" or "kern.log"."""

    source: str
    lines: list[str]


def kinds_of(line: str) -> list[str]:
    """What a line tells of, of KINDS."""
    if "ommand line:" in line:
        return []
    return [kind for kind, pattern in _PATTERNS.items() if pattern.search(line)]


def read_kernel_log(device: Device) -> KernelLog:
    """All that can be read, oldest first, each line with its time.

    Raises:
        UnavailableError: nothing can; it names what would help.
    """
    reasons = []
    for read in (_buffer, _journal, _file):
        try:
            return read(device)
        except UnavailableError as error:
            reasons.append(str(error))
    helps = "the groups systemd-journal and adm may read it, and root"
    raise UnavailableError(f"{'; '.join(dict.fromkeys(reasons))}: {helps}")


def _buffer(device: Device) -> KernelLog:
    if not device.live:
        raise UnavailableError("a recorded tree has no kernel")
    try:
        handle = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UnavailableError(reason_of(error, "/dev/kmsg")) from error
    # The kernel counts without the time that the system slept, as CLOCK_MONOTONIC does.
    began_s = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)
    lines: list[str] = []
    try:
        for _ in range(_MOST_RECORDS):
            try:
                record = os.read(handle, _RECORD_BYTES).decode("utf-8", "replace")
            except BlockingIOError:
                break
            except OSError as error:
                # EPIPE: that one was overwritten meanwhile; the next one is there.
                if error.errno == errno.EPIPE:
                    continue
                raise UnavailableError(reason_of(error, "/dev/kmsg")) from error
            fields, _, message = record.partition(";")
            parts = fields.split(",")
            if len(parts) > 2 and parts[2].isdigit():
                at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began_s + int(parts[2]) / 1e6))
                lines.append(f"{at} {plain(message.partition(chr(10))[0])}")
    finally:
        os.close(handle)
    return KernelLog("dmesg", lines)


def _journal(device: Device) -> KernelLog:
    told = device.command(
        "journalctl", "-k", "-b", "-q", "--no-pager", "--utc", "-o", "short-iso", "-n", "20000", timeout_s=_PATIENCE_S
    )
    lines = [plain(line) for line in told.splitlines()]
    if not lines:
        raise UnavailableError("journalctl shows this user nothing of the kernel")
    return KernelLog("journalctl", lines)


def _file(device: Device) -> KernelLog:
    reasons = []
    for path in _FILES:
        try:
            text = device.text(path, _MOST_BYTES)
        except UnavailableError as error:
            reasons.append(str(error))
            continue
        return KernelLog("kern.log", [plain(line) for line in text.splitlines()])
    raise UnavailableError("; ".join(reasons))

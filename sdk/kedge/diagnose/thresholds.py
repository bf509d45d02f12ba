"""Where the doctor draws its lines, and why there: one table, which `kedge doctor --json` shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["THRESHOLDS", "Threshold", "limit", "thresholds_json"]


@dataclass(frozen=True)
class Threshold:
    """A line, and the reason why it is drawn there."""

    value: float
    unit: str
    reason: str


THRESHOLDS: dict[str, Threshold] = {
    "clock_skew_fault": Threshold(
        60, "s", "a minute apart, the device's logs and history cannot be laid beside what others wrote down"
    ),
    "clock_skew_warning": Threshold(5, "s", "a clock that follows a time server is right within a second"),
    "disk_free_fault": Threshold(
        64_000_000, "bytes", "the agent writes up to 32 MB of recordings and 12 MB of log, and a push wants 16 MiB more"
    ),
    "disk_free_warning_share": Threshold(
        0.05, "share", "ext4 keeps as much for root; below it files are scattered, and writing is slow"
    ),
    "disk_free_warning": Threshold(2_000_000_000, "bytes", "a release and an agent fit beside those that are there"),
    "inodes_free_fault_share": Threshold(0.01, "share", "no file can be made without one, however much room there is"),
    "memory_available_fault_share": Threshold(
        0.05, "share", "the kernel then reclaims the pages of programs that run, and soon ends one"
    ),
    "memory_available_warning_share": Threshold(0.10, "share", "a model that is tried beside the live one wants more"),
    "memory_stalled_fault": Threshold(
        10, "per cent of 10 s", "for a tenth of the time nothing at all could run but for want of memory (PSI, full)"
    ),
    "memory_stalled_warning": Threshold(
        10, "per cent of 60 s", "for a tenth of the time something waited for memory (PSI, some)"
    ),
    "cgroup_used_warning_share": Threshold(0.95, "share", "at its limit the group is reclaimed from at each request"),
    "swapping_fault": Threshold(
        1000, "pages/s, in and out", "4 MB/s each way: pages are fetched back that were just written out"
    ),
    "swapping_warning": Threshold(100, "pages/s, in and out", "an idle system moves none"),
    "swap_used_warning_share": Threshold(0.90, "share", "what else is to be moved out then has nowhere to go"),
    "crashes_fault": Threshold(
        2, "in an hour, or in a row", "one may be an accident; at the second the agent takes the release back itself"
    ),
    "restarts_fault": Threshold(3, "by systemd, the last within 10 min", "it ends and is started over and over"),
    "clock_limit_warning_share": Threshold(
        0.95, "of the hardware's highest", "latency goes with the clock; less than 5 % is within its own variation"
    ),
    "throttled_fault_share": Threshold(
        0.05, "of the last hour", "of a hundred requests five are slowed then, and the 99th percentile shows it"
    ),
    "headroom_fault": Threshold(2, "°C to throttling", "zones are read to half a degree or one: it throttles now"),
    "headroom_warning": Threshold(8, "°C to throttling", "a warmer room, or a little dust, makes the difference"),
    "others_cores_share": Threshold(
        0.5, "of all cores", "a model's threads, one a core where nothing else is set, wait for whoever holds theirs"
    ),
    "cores_busy_warning_share": Threshold(0.9, "of all cores, all in all", "none is left then for the next request"),
    "latency_ratio_fault": Threshold(
        2.0, "times what it was", "twice as long is no variation of a device that is well"
    ),
    "latency_ratio_warning": Threshold(1.5, "times what it was", "runs of one model on a quiet device differ by less"),
    "latency_difference": Threshold(
        0.5, "ms more than it was", "what the scheduler adds to a request that comes alone; ratios mean little below it"
    ),
    "latency_requests": Threshold(
        100,
        "requests in the hour, or in the last five minutes",
        "of fewer, the 99th percentile is the slowest one: an accident",
    ),
    "gate_runs": Threshold(100, "runs of the gate", "of fewer, the 99th percentile is the longest one: an accident"),
    "failed_fault_share": Threshold(
        0.01, "of the hour's requests", "as the probation after a deploy, where the release does not say"
    ),
    "failed_least": Threshold(3, "requests in the hour", "as the probation after a deploy"),
    "log_errors_age": Threshold(86_400, "s", "what is older has been lived with"),
    "recorder_silent": Threshold(120, "s", "it writes each second, and tries again each minute where it cannot"),
    "recorder_cost_share": Threshold(0.01, "of one core", "what the recorder promises"),
}


def limit(name: str) -> float:
    """The line of this name."""
    return THRESHOLDS[name].value


def thresholds_json() -> dict[str, Any]:
    """All of them, in plain JSON."""
    return {name: {"value": each.value, "unit": each.unit, "reason": each.reason} for name, each in THRESHOLDS.items()}

"""What slows the device down against its will: throttling, and how near it is.

Sources: NVIDIA, Jetson Linux Developer Guide, "Over-Current Event Handling" (soctherm's counters) and "jetson_clocks"
(`--fan`); Linux, Documentation/driver-api/thermal/sysfs-api.rst (trip points); NVML, "Clocks Event Reasons".
"""

from __future__ import annotations

from ..evidence import Evidence
from ..finding import Finding, fault, ok, unknown, warning
from ..node import Node
from ..thresholds import limit
from .words import counted, share

__all__ = ["thermal", "throttling"]

_POWER_CAP = "limit.GPU power cap"


def throttling(evidence: Evidence) -> Finding:
    """What slows it down now, the recorder's last hour, and counters since the system started."""
    name, sensors = "throttling", evidence.section("sensors")
    hour = evidence.data("recorder").child("hour")
    part, risen = hour.amount("throttled_share"), _risen(hour.child("throttles"))
    counts = _risen(sensors.data.child("throttles"))
    now = sensors.data.child("facts").texts("throttling_now")
    known = {**sensors.data.child("throttles").numbers(), **hour.child("throttles").numbers()}
    if part is not None and (part > 1 or not (part or known)):
        # That nothing was seen says nothing where nothing counts.
        part = None
    capped = hour.child("channels", _POWER_CAP).amount("mean")
    figures = {
        "throttled_share": part,
        "last_hour": risen,
        "since_boot": counts,
        "now": now,
        "power_cap_share": capped,
    }
    most = max(risen or counts or {"": 0.0}, key=(risen or counts or {"": 0.0}).__getitem__)
    since = "; ".join(f"{what}: {counted(count, 'time')}" for what, count in sorted(counts.items())[:4])
    by = "; ".join(f"{what}: {counted(count, 'time')}" for what, count in sorted(risen.items())[:4])
    told = [
        f"throttled {share(part)} of the last hour{f' ({by})' if by else ''}" if part else "",
        f"throttled now: {', '.join(now[:4])}" if now else "",
        f"since it started {since}" if since else "",
        "" if part is not None or not counts else "when is not known: nothing was recorded in the last hour",
    ]
    often = part is not None and part >= limit("throttled_fault_share")
    if part or now or (part is None and counts):
        return (fault if often or now else warning)(
            name,
            "; ".join(filter(None, told)),
            brief=f"throttled {share(part)} of the last hour"
            if part
            else "throttled now"
            if now
            else "throttled before",
            cause=_cause(most, now),
            cure=_cure(evidence, most, now),
            figures=figures,
        )
    if part is None and not known:
        why = sensors.why or next((line for line in sensors.data.texts("unavailable") if "throttl" in line), None)
        return unknown(name, why or "nothing here counts it", **figures)
    if part is None:
        return ok(name, "not once since it started", **figures)
    said = ["not in the last hour", f"since it started {since}" if since else ""]
    # Which is normal at full load, and may explain a clock.
    said.append(f"at its GPU's power limit {share(capped)} of the last hour" if capped else "")
    return ok(name, "; ".join(filter(None, said)), **figures)


def thermal(evidence: Evidence) -> Finding:
    """How many degrees are left until something is slowed down."""
    name, section = "thermal", evidence.section("sensors")
    if section.why:
        return unknown(name, section.why)
    facts = section.data.child("facts")
    zones = [(left, each) for each in facts.nodes("headroom") if (left := each.number("celsius")) is not None]
    if not zones:
        hot = [(degrees, each) for each in facts.nodes("thermal") if (degrees := each.number("celsius")) is not None]
        said = next((line for line in section.data.texts("unavailable") if "therm" in line or "temper" in line), None)
        if hot:
            degrees, zone = max(hot, key=lambda each: each[0])
            where = zone.text("zone")
            return unknown(
                name, f"{where} has {degrees:.0f} °C; at which it is slowed down is not told", celsius=degrees
            )
        return unknown(name, said or "no temperature can be read")
    left, zone = min(zones, key=lambda each: each[0])
    figures = {"zone": zone.text("zone"), "headroom_celsius": left}
    if left >= limit("headroom_warning"):
        return ok(name, f"{left:.0f} °C to throttling, in {zone.text('zone')}", **figures)
    hot_now = left < limit("headroom_fault")
    return (fault if hot_now else warning)(
        name,
        f"{zone.text('zone')} is {max(left, 0):.0f} °C from throttling"
        if left >= 0
        else f"{zone.text('zone')} is {-left:.0f} °C above its throttling point",
        brief=f"{max(left, 0):.0f} °C to throttling",
        cause=_cause("thermal", []),
        cure=_cure(evidence, "thermal", []),
        figures=figures,
    )


def _risen(counters: Node) -> dict[str, float]:
    return {name: count for name, count in counters.numbers().items() if count}


def _electrical(counter: str, now: list[str]) -> bool:
    """Whether it is for want of power, by what slows it down now, else by what counted most."""
    said = " ".join(now).lower() or counter
    return "current" in said or "power" in said


def _cause(counter: str, reasons: list[str]) -> str:
    if _electrical(counter, reasons):
        return "it draws more than its supply or its power budget gives"
    return "it is too hot: the room, a fan that does not turn, dust, or a heat sink that does not touch"


def _cure(evidence: Evidence, counter: str, reasons: list[str]) -> str:
    target = evidence.target
    jetson = target.family == "jetson" if target is not None else bool(evidence.data("system").text("l4t"))
    if _electrical(counter, reasons):
        look = "sudo nvpmodel -q" if jetson else "nvidia-smi -q -d POWER"
        return evidence.shell(look) + "  # a stronger power supply, or a lower power mode"
    if jetson:
        return evidence.shell("sudo jetson_clocks --fan") + "  # and let air to it"
    return evidence.shell("grep . /sys/class/thermal/thermal_zone*/temp") + "  # clean the fan, let air to it"

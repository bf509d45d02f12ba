"""The gates of a wave: what must hold of it before the next one begins.

What could not be measured is neither passed nor failed (`passed` is null), and says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from ...report.text import milliseconds, per_cent
from .device import DeviceState
from .options import Options

__all__ = ["devices_of", "judge", "too_many"]


def judge(
    devices: Sequence[DeviceState], wave: int, failures: int, options: Options, *, looked: bool
) -> list[dict[str, Any]]:
    """Judge a wave by its devices' answers, and by what each said when it was looked at.

    Args:
        devices: all that were reached in this wave or before.
        failures: in all waves, without those that were skipped.
        looked: its devices were asked once more, after its pause.
    """
    ours = [each for each in devices if each.round == wave]
    return [
        _failures(failures, options),
        _live(ours, failures, options, looked=looked),
        _errors(ours, options),
        _p99(devices, ours, wave, options),
    ]


def too_many(failures: int, allowed: int) -> str:
    """`3 devices failed, and 2 may`."""
    return f"{devices_of(failures)} failed, and {allowed or 'none'} may"


def devices_of(count: int) -> str:
    """`1 device`, `1,000 devices`."""
    return f"{count:,} device{'' if count == 1 else 's'}"


def _gate(
    name: str, passed: bool | None, why: str, figures: Mapping[str, Any], limits: Mapping[str, Any]
) -> dict[str, Any]:
    return {"gate": name, "passed": passed, "why": why, "figures": dict(figures), "limits": dict(limits)}


def _failures(failures: int, options: Options) -> dict[str, Any]:
    passed = failures <= options.max_failures
    few = f"{devices_of(failures)} failed" if failures else "no device failed"
    why = few if passed else too_many(failures, options.max_failures)
    return _gate("failures", passed, why, {"failures": failures}, {"max_failures": options.max_failures})


def _live(ours: Sequence[DeviceState], failures: int, options: Options, *, looked: bool) -> dict[str, Any]:
    serving = [each for each in ours if each.serves_release]
    gone = [each for each in ours if each.left]
    figures = {"serving": len(serving), "gone": len(gone), "looked": looked}
    limits = {"max_failures": options.max_failures}
    if not serving and not gone:
        return _gate("live", None, "no device of this wave was updated", figures, limits)
    if gone:
        named = ", ".join(f"{each.planned.name} {each.state}" for each in gone[:3])
        more = f" and {len(gone) - 3} more" if len(gone) > 3 else ""
        why = f"{devices_of(len(gone))} of {len(gone) + len(serving)} no longer found to serve it: {named}{more}"
        return _gate("live", failures <= options.max_failures, why, figures, limits)
    if not looked:
        return _gate("live", True, "each said so when it had switched, and there was no pause since", figures, limits)
    return _gate(
        "live", True, f"{devices_of(len(serving))} serve it" if len(serving) > 1 else "it serves it", figures, limits
    )


def _errors(ours: Sequence[DeviceState], options: Options) -> dict[str, Any]:
    most = options.max_error_rate
    limits = {"max_error_rate": most}
    told = [
        each.look
        for each in ours
        if each.look is not None and each.look["requests"] and each.look["errors"] is not None
    ]
    requests = sum(look["requests"] for look in told)
    errors = sum(look["errors"] for look in told)
    figures: dict[str, Any] = {
        "devices": len(told),
        "requests": requests or None,
        "errors": errors if requests else None,
    }
    if not requests:
        return _gate("errors", None, "not measured: no device told of requests", figures, limits)
    rate = errors / requests
    figures |= {"requests": requests, "errors": errors, "rate": rate}
    said = f"{errors:,} of {requests:,} requests failed, {per_cent(rate)}"
    if most is None:
        return _gate("errors", None, f"{said}; no limit was asked for", figures, limits)
    if rate > most:
        return _gate("errors", False, f"{said}, above {per_cent(most)}", figures, limits)
    return _gate("errors", True, said, figures, limits)


def _p99(devices: Iterable[DeviceState], ours: Sequence[DeviceState], wave: int, options: Options) -> dict[str, Any]:
    drift = options.max_p99_drift
    limits = {"max_p99_drift": drift}
    now = _by_target(ours)
    earlier: dict[int, list[DeviceState]] = defaultdict(list)
    for each in devices:
        if each.round < wave:
            earlier[each.round].append(each)
    # The nearest wave in which this kind of device was measured: a wave need not have all kinds.
    before: dict[str, float] = {}
    for number in sorted(earlier):
        before.update(_by_target(earlier[number]))
    figures = {
        target: {
            "p99_ms": value,
            "before_ms": before.get(target),
            "ratio": value / before[target] if before.get(target) else None,
        }
        for target, value in sorted(now.items())
    }
    ratios = {target: row["ratio"] for target, row in figures.items() if row["ratio"] is not None}
    if not now:
        return _gate("p99", None, "not measured: no device told of a p99", figures, limits)
    if not ratios:
        return _gate("p99", None, "no wave before to compare with", figures, limits)
    worst = max(ratios, key=lambda target: ratios[target])
    said = (
        f"{worst}: median p99 {milliseconds(now[worst])}, {ratios[worst]:.3g} times the {milliseconds(before[worst])} "
        "of the wave before"
    )
    if drift is None:
        return _gate("p99", None, f"{said}; no limit was asked for", figures, limits)
    passed = ratios[worst] <= 1 + drift
    return _gate("p99", passed, said if passed else f"{said}, above {1 + drift:.3g}", figures, limits)


def _by_target(devices: Iterable[DeviceState]) -> dict[str, float]:
    """Median p99 by kind of device, in milliseconds, of those that told theirs when they were looked at."""
    found: dict[str, list[float]] = defaultdict(list)
    for each in devices:
        if each.look is not None and each.look["p99_ms"] is not None:
            found[each.planned.target].append(each.look["p99_ms"])
    return {target: median(values) for target, values in found.items()}

"""The gates of a wave: what must hold of it before the next one begins.

What could not be measured is neither passed nor failed (`passed` is null), and says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    asked = [each for each in serving if each.look is not None]
    gone = [each for each in ours if each.left]
    found = asked if looked else serving
    figures = {"serving": len(found), "gone": len(gone), "not_asked": len(serving) - len(asked), "looked": looked}
    limits = {"max_failures": options.max_failures}
    if not serving and not gone:
        return _gate("live", None, "no device of this wave was updated", figures, limits)
    if not looked:
        return _gate("live", True, "each said so when it had switched, and there was no pause since", figures, limits)
    skipped = f"; {devices_of(len(serving) - len(asked))} not asked" if len(asked) < len(serving) else ""
    if gone:
        named = ", ".join(f"{each.planned.name} {each.state}" for each in gone[:3])
        more = f" and {len(gone) - 3} more" if len(gone) > 3 else ""
        of = f"{devices_of(len(gone))} of {len(gone) + len(asked)}"
        why = f"{of} no longer found to serve it: {named}{more}{skipped}"
        return _gate("live", failures <= options.max_failures, why, figures, limits)
    why = f"{devices_of(len(asked))} serve{'s' if len(asked) == 1 else ''} it{skipped}"
    return _gate("live", None if skipped else True, why, figures, limits)


def _errors(ours: Sequence[DeviceState], options: Options) -> dict[str, Any]:
    most = options.max_error_rate
    limits = {"max_error_rate": most}
    told = [counts for each in ours if (counts := _counts(each)) is not None and counts[0]]
    requests = sum(count for count, _ in told)
    errors = sum(count for _, count in told)
    figures: dict[str, Any] = {
        "devices": len(told),
        "requests": requests or None,
        "errors": errors if requests else None,
    }
    if not requests:
        since = " since they were judged last" if any(each.judged is not None for each in ours) else ""
        return _gate("errors", None, f"not measured: no device told of requests{since}", figures, limits)
    rate = errors / requests
    figures["rate"] = rate
    said = f"{errors:,} of {requests:,} requests failed, {per_cent(rate)}"
    if most is None:
        return _gate("errors", None, f"{said}; no limit was asked for", figures, limits)
    if rate > most:
        return _gate("errors", False, f"{said}, above {per_cent(most)}", figures, limits)
    return _gate("errors", True, said, figures, limits)


def _counts(each: DeviceState) -> tuple[int, int] | None:
    """Requests and errors of a device that no gate has judged yet; None: it told of none."""
    look, before = each.look, each.judged
    if look is None or look["requests"] is None or look["errors"] is None:
        return None
    requests, errors = look["requests"], look["errors"]
    if before is None or before["release"] != look["release"] or before["requests"] is None or before["errors"] is None:
        return requests, errors
    if requests < before["requests"] or errors < before["errors"]:
        # The release was loaded anew, and its counters began anew.
        return requests, errors
    return requests - before["requests"], errors - before["errors"]


def _p99(devices: Iterable[DeviceState], ours: Sequence[DeviceState], wave: int, options: Options) -> dict[str, Any]:
    drift = options.max_p99_drift
    limits = {"max_p99_drift": drift}
    earlier: dict[int, list[DeviceState]] = defaultdict(list)
    for each in devices:
        if each.round < wave:
            earlier[each.round].append(each)
    # The nearest wave in which this kind of device was measured so: a wave need not have all kinds.
    before: dict[tuple[str, str], float] = {}
    for number in sorted(earlier):
        before.update(_medians(earlier[number]))
    figures = _compared(_medians(ours), before)
    ratios = {target: row["ratio"] for target, row in figures.items() if row["ratio"] is not None}
    if not figures:
        return _gate("p99", None, "not measured: no device told of a p99", figures, limits)
    if not ratios:
        return _gate("p99", None, "no wave before to compare with", figures, limits)
    worst = max(ratios, key=lambda target: ratios[target])
    row = figures[worst]
    by_gate = ", measured by its gate on golden inputs, before the switch," if row["basis"] == "gate" else ","
    said = (
        f"{worst}: median p99 {milliseconds(row['p99_ms'])}{by_gate} {ratios[worst]:.3g} times the "
        f"{milliseconds(row['before_ms'])} of the wave before"
    )
    if drift is None:
        return _gate("p99", None, f"{said}; no limit was asked for", figures, limits)
    passed = ratios[worst] <= 1 + drift
    return _gate("p99", passed, said if passed else f"{said}, above {1 + drift:.3g}", figures, limits)


def _compared(now: Mapping[tuple[str, str], float], before: Mapping[tuple[str, str], float]) -> dict[str, Any]:
    """Figures by kind of device, on the first basis that both waves have: what was measured otherwise is not mixed."""
    figures: dict[str, Any] = {}
    for target in sorted({target for target, _ in now}):
        own = [basis for basis in _BASES if (target, basis) in now]
        basis = next((each for each in own if before.get((target, each))), own[0])
        value, old = now[target, basis], before.get((target, basis))
        ratio = value / old if old else None
        figures[target] = {"basis": basis, "p99_ms": value, "before_ms": old, "ratio": ratio}
    return figures


def _traffic_ms(each: DeviceState) -> float | None:
    return None if each.look is None else each.look["p99_ms"]


def _gate_ms(each: DeviceState) -> float | None:
    return each.gate_p99_ms if each.serves_release else None


#: What a p99 is of: what clients sent, as the device told when it was looked at; or golden inputs, at its gate.
_BASES: Mapping[str, Callable[[DeviceState], float | None]] = {"traffic": _traffic_ms, "gate": _gate_ms}


def _medians(devices: Iterable[DeviceState]) -> dict[tuple[str, str], float]:
    """Median p99 by kind of device and basis, in milliseconds."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for each in devices:
        for basis, told in _BASES.items():
            value = told(each)
            if value is not None:
                found[each.planned.target, basis].append(value)
    return {key: median(values) for key, values in found.items()}

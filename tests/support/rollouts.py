"""Rollouts' documents (docs/rollout-report.md), made up: as many devices as wanted, the same each time."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

__all__ = ["END_S", "rollout_document"]

_BEGAN_S = 1_795_680_000.0
_DIGEST = "397271dc20a2" + "5" * 52
_STEPS = ("plan", "push", "verify", "stage", "gate", "switch", "probation")
_REASONS = {
    "refused": (5, "latency gate: p99 of 1000 runs is 14.2 ms, above 12 ms", "kedge history --on {}"),
    "unreachable": (4, "cannot be reached: timed out", "see why: kedge doctor --on {}"),
    "late": (4, "did not end within 30 min, while it was at push", "kedge rollout resume --skip-failed"),
    "failed": (8, "the agent needs 301989888 bytes, /var/lib/kedge has 104857600 free", "free some"),
    "reverted": (5, "it serves release 0011aabbccdd again", "kedge history --on {}"),
}
END_S = _BEGAN_S + 7200


def rollout_document(
    count: int, *, bad: Mapping[int, str] | None = None, halted_in: int | None = None, pause_s: int = 20
) -> dict[str, Any]:
    """A rollout in the waves 1, 5 %, 25 %, 100 %.

    Args:
        bad: place of a device → its state.
        halted_in: the wave in which it halts; later ones do not begin. None: it is done.
    """
    dice, wrong = random.Random(count), dict(bad or {})  # noqa: S311  (figures of a test)
    cuts = sorted({1, -(-count // 20), -(-count // 4), count})
    waves, devices, now = [], [], _BEGAN_S + 0.4
    for number, cut in enumerate(cuts, 1):
        begins = halted_in is None or number <= halted_in
        rows = [
            _device(place, number, wrong.get(place), now, dice, begins=begins) for place in range(len(devices), cut)
        ]
        devices += rows
        wave: dict[str, Any] = {"wave": number, "count": cut, "state": "waiting", "gates": []}
        wave |= {"begun_s": None, "watched_s": None, "ended_s": None}
        if begins:
            # As many at a time as --concurrency allows.
            for place, row in enumerate(rows):
                later = (place // 32) * 12.0
                row["begun_s"] += later
                row["ended_s"] += later
            failed = sum(row["state"] != "updated" for row in devices)
            halts = number == halted_in
            deployed = max(row["ended_s"] for row in rows)
            end = deployed + (0 if halts else pause_s)
            wave |= {"state": "failed" if halts else "passed", "begun_s": now, "ended_s": end}
            wave |= {"watched_s": None if halts else deployed, "gates": _gates(failed, len(devices), halts)}
            now = end
        waves.append(wave)
    counts: dict[str, int] = {}
    for row in devices:
        counts[row["state"]] = counts.get(row["state"], 0) + 1
    return {
        "kedge_rollout": 1,
        "id": "20261126-081500-3f2a",
        "model": "digits",
        "version": 2,
        "release": _DIGEST,
        "source": "/srv/releases/digits.release",
        "state": "done" if halted_in is None else "halted",
        "reason": None if halted_in is None else "2 devices failed, and 1 may",
        "hint": None if halted_in is None else "kedge rollout resume --skip-failed",
        "created_s": _BEGAN_S,
        "ended_s": now,
        "seconds": now - _BEGAN_S,
        "waves": waves,
        "devices": devices,
        "counts": counts,
        "options": {
            "canary": ["1", "5%", "25%", "100%"],
            "pause_s": pause_s,
            "max_failures": 1,
            "deadline_s": 1800.0,
            "concurrency": 32,
            "max_error_rate": 0.01,
            "max_p99_drift": None,
            "on_halt": "stop",
            "limit_bytes_per_s": None,
            "attest": None,
            "cluster": None,
        },
        "cluster": None,
    }


def _device(
    place: int, wave: int, state: str | None, begun_s: float, dice: random.Random, *, begins: bool
) -> dict[str, Any]:
    name = f"edge-{place:04}"
    row: dict[str, Any] = dict.fromkeys(
        ("step", "reason", "hint", "exit_code", "begun_s", "ended_s", "seconds", "push_s", "wire_bytes")
    )
    row |= {"device": name, "target": "cpu-generic-x86_64", "wave": wave, "state": state or "updated", "attempts": 1}
    row |= dict.fromkeys(("p99_ms", "previous", "engine_from", "worker"))
    row["steps"] = {}
    if not begins:
        return row | {"state": "waiting", "attempts": 0}
    steps = {step: round(dice.uniform(0.02, 1.5), 3) for step in _STEPS}
    steps |= {"push": round(dice.lognormvariate(0.6, 0.5), 3), "probation": 3.0}
    row |= {"steps": steps, "worker": "host:4711", "begun_s": begun_s + dice.uniform(0, 0.4), "exit_code": 0}
    row |= {"push_s": steps["push"], "wire_bytes": 905_000, "p99_ms": round(dice.uniform(3, 5), 2)}
    row["previous"] = "0011aabbccdd" + "0" * 52
    if state in _REASONS:
        code, reason, hint = _REASONS[state]
        row |= {"exit_code": code, "reason": f"{name}: {reason}", "hint": hint.format(name), "p99_ms": None}
        row["steps"] = dict(list(steps.items())[:2])
    row["seconds"] = sum(row["steps"].values())
    row["ended_s"] = row["begun_s"] + row["seconds"]
    return row


def _gates(failed: int, count: int, halts: bool) -> list[dict[str, Any]]:
    why = f"{failed} of {count} devices failed" if failed else "no device failed"
    return [
        {"gate": "failures", "passed": not halts, "why": why, "figures": {"failed": failed}, "limits": {"failed": 1}},
        {"gate": "live", "passed": True, "why": "each serves the release", "figures": {}, "limits": {}},
        {"gate": "errors", "passed": True, "why": "3 of 12,004 requests failed", "figures": {}, "limits": {}},
        {"gate": "p99", "passed": None, "why": "no wave before to compare with", "figures": {}, "limits": {}},
    ]

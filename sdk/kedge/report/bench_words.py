"""What text and page say of a bench report alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .text import byte_size, milliseconds

__all__ = ["GPU_PARTS", "PHASES", "PHASE_COLUMNS", "conditions_sentence", "lock_word", "phase_rows", "trust_lines"]

GPU_PARTS = ("h2d", "kernel", "d2h")
"""Parts of `compute` that a GPU's events tell; None in a report where there are none."""

PHASES = {
    "import": "import of the runtime",
    "first_load": "first load",
    "first_run": "first run",
    "warm_load": "warm load",
    "inference": "inference",
}
PHASE_COLUMNS = ("", "time", "memory before", "peak", "after", "the system lost")


def trust_lines(trust: Mapping[str, Any]) -> list[str]:
    """Why a result is not stable; one word where it is."""
    reasons = [str(reason["text"]) for reason in trust["reasons"]]
    return [f"not stable: {reasons[0]}", *reasons[1:]] if reasons else ["stable"]


def lock_word(locked: bool | None) -> str:
    """Whether a clock is held at one frequency."""
    return {None: "not known whether locked", True: "locked", False: "not locked"}[locked]


def phase_rows(phases: Mapping[str, Any]) -> list[list[str]]:
    """Time and memory of each phase, under PHASE_COLUMNS; of inference the time of one run."""
    rows = []
    for key, label in PHASES.items():
        part = phases[key]
        took, of = milliseconds(part["ms"]), ""
        if key == "inference":
            took, of = f"{milliseconds(phases['latency']['median_ms'])} (p50)", f", {phases['runs']} runs"
        sizes = [part["begin_bytes"], part["peak_bytes"], part["end_bytes"], part["available_bytes"]]
        rows.append([label + of, took, *map(byte_size, sizes)])
    return rows


def conditions_sentence(report: Mapping[str, Any]) -> str:
    """How it was measured."""
    conditions = report["conditions"]
    end, inside, agent = report["end_to_end"], report["in_agent"], conditions["agent"]
    if conditions["rate_per_s"] is not None:
        loop = f"from the host one request at a time; in the agent {conditions['rate_per_s']:g} requests/s (open loop)"
    else:
        several = ", ".join(map(str, conditions["concurrency"]))
        loop = f"closed loop, from the host one request at a time, in the agent {several}"
    return (
        f"{loop}; batch {conditions['batch']},"
        f" warm-up {conditions['warmup_ms']} ms ({end['warmup_runs']} + {inside['warmup_runs']} runs),"
        f" {agent['threads']} threads on {agent['cores']} cores,"
        f" {report['runtime']} {agent['runtimes'][report['runtime']]}{_chosen_words(report['chosen'])}"
    )


def _chosen_words(chosen: Mapping[str, Any]) -> str:
    """What the runtime chose when it loaded the model; its details are for the report in JSON."""
    words = []
    if isinstance(providers := chosen.get("providers"), list):
        words.append(" then ".join(map(str, providers)))
    if isinstance(transfers := chosen.get("transfers"), dict):
        ways = transfers.get("chosen", {})
        words.append("transfers: " + ", ".join(f"{name} {way}" for name, way in ways.items()))
    if isinstance(graphs := chosen.get("graphs"), dict):
        why_not = graphs.get("why_not")
        words.append(f"{graphs.get('captured')} CUDA graphs" if why_not is None else f"no CUDA graphs: {why_not}")
    if isinstance(kernels := chosen.get("kernels"), dict) and kernels.get("state") != "none":
        words.append(f"kernels {kernels.get('state')}")
    return f" ({'; '.join(words)})" if words else ""

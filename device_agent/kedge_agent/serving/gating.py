"""The gates that a release must pass before it goes live: parity, latency and memory, tried in a child process.

Each gate's figures and limits are told, whether it is passed or not, and also where the release states no limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..errors import AgentError
from ..formats.gates import LatencyGate, ParityGate
from ..measure.memory import read_memory
from ..measure.parity import OutputParity, failures
from ..measure.schedule import TimingRules
from ..store.journal import Journal
from ..store.layout import Layout
from .golden import read_golden
from .loading import LiveModel, loadable
from .staging import Staged

if TYPE_CHECKING:
    from ..measure.apart import GateTrial

__all__ = ["Gated", "Tell", "describe_live", "judge_parity", "needs_bytes", "run_gates"]

Tell = Callable[[dict[str, Any]], None]
"""Told of each event, as plain JSON."""

# Of 250 runs two may take longer than the 99th percentile, as formats.latency has it; of 100 none could.
# trtexec, too, warms up for 200 ms. Where there is nothing to be refused for, a glance will do.
_LIMITED = TimingRules(warm_up_s=0.2, least_runs=250, least_s=2.0, most_runs=1000, most_s=10.0)
_UNLIMITED = TimingRules(warm_up_s=0.02, least_runs=100, least_s=0.0, most_runs=100, most_s=0.3)

# Address space that a thread reserves and does not use: its stack, and an arena of the allocator.
_THREAD_BYTES = 80 << 20


@dataclass(frozen=True)
class Gated:
    """A release that passed. gates: what each was, as the events tell it. live_p99_ms: None: not measured."""

    trial: GateTrial
    gates: tuple[dict[str, Any], ...]
    live_p99_ms: float | None


def run_gates(layout: Layout, staged: Staged, live: Staged | None, tell: Tell) -> Gated:
    """Load a release in a child process, run its golden inputs there, and hold what was found against its gates.

    Args:
        live: what serves now: timed in the same way just before, where the release is to be compared with it.

    Raises:
        AgentError: a gate refuses (gate); or it could not even be tried there: the runtime refuses it or crashed on it
            (incompatible), there is not enough memory (space), or it took too long (gate).
    """
    gates = staged.manifest.gates
    limits = gates.latency or LatencyGate()
    timing = _UNLIMITED if gates.latency is None else _LIMITED
    live_p99_ms = None
    if live is not None and limits.p99_ratio_max is not None:
        live_p99_ms = _tried(layout, live, timing, compared=False).latency.p99_ms
    trial = _tried(layout, staged, timing, compared=True)
    refused: list[str] = []
    told = (
        _parity(gates.parity, trial.parity, refused),
        _latency(limits, trial, live_p99_ms, refused),
        _memory(gates.memory_peak_bytes, trial, refused),
    )
    for event in told:
        tell(event)
    if refused:
        raise _refusal(staged.manifest.digest, refused)
    return Gated(trial, told, live_p99_ms)


def judge_parity(digest: str, gate: ParityGate, found: Mapping[str, OutputParity]) -> None:
    """Hold outputs against the parity gate.

    Raises:
        AgentError: it refuses (gate).
    """
    broken = failures(gate, found)
    if broken:
        raise _refusal(digest, ["parity gate: " + "; ".join(broken)])


def describe_live(live: LiveModel, journal: Journal) -> dict[str, Any]:
    """`LiveModel.describe`; of a release that an agent before this one had tried, with the figures of its journal."""
    told = live.describe()
    tried = (entry for entry in reversed(journal.history(live.manifest.model)) if entry.step == "gated")
    gates = next((entry.body.get("gates") for entry in tried if entry.release == live.manifest.digest), None)
    for gate in gates if isinstance(gates, list) else ():
        figures = gate.get("figures") if isinstance(gate, dict) else None
        for name in ("p99_ms", "peak_bytes"):
            value = figures.get(name) if isinstance(figures, dict) else None
            if told[name] is None and isinstance(value, (int, float)):
                told[name] = value
    return told


def needs_bytes(trial: GateTrial) -> int | None:
    """What the model takes when it is loaded and run, beyond what its runtime took before; None: unavailable.

    Libraries that came with it are not in it: an agent that serves has them already.
    """
    peak, before = trial.trial.peak_bytes, trial.imported_bytes
    return None if peak is None or before is None else max(peak - before, 0)


def _tried(layout: Layout, staged: Staged, timing: TimingRules, *, compared: bool) -> GateTrial:
    from ..measure.apart import try_gates

    manifest, artefact = staged.manifest, staged.artefact
    inputs = read_golden(layout, manifest, manifest.golden.inputs)
    golden = read_golden(layout, manifest, manifest.golden.outputs) if compared else {}
    available = read_memory().available_bytes
    threads_bytes = _THREAD_BYTES * (staged.options.threads + 1)
    memory = available + threads_bytes if staged.on_cpu and available is not None else None
    timeout_s = staged.patience_s
    with loadable(layout, manifest, artefact) as path:
        try:
            return try_gates(
                path, artefact.runtime, staged.options, inputs, golden, timing, timeout_s=timeout_s, memory_bytes=memory
            )
        except AgentError as error:
            if error.kind != "busy":
                raise
            # To try again would change nothing: it is this release that takes so long.
            raise AgentError(error.message, kind="gate", hint="the live release serves on") from error


def _parity(gate: ParityGate, found: Mapping[str, OutputParity], refused: list[str]) -> dict[str, Any]:
    broken = failures(gate, found)
    if broken:
        refused.append("parity gate: " + "; ".join(broken))
    limits = {name: asdict(gate.of(name)) for name in found}
    return _event("parity", not broken, {"outputs": [each.to_json() for each in found.values()]}, {"outputs": limits})


def _latency(limits: LatencyGate, trial: GateTrial, live_p99_ms: float | None, refused: list[str]) -> dict[str, Any]:
    found = trial.latency
    ratio = found.p99_ms / live_p99_ms if live_p99_ms else None
    broken = []
    if limits.p99_ms is not None and not found.p99_ms <= limits.p99_ms:
        broken.append(f"latency gate: p99 of {found.count} runs is {found.p99_ms:.3f} ms, above {limits.p99_ms:g} ms")
    if limits.p99_ratio_max is not None and ratio is not None and not ratio <= limits.p99_ratio_max:
        broken.append(
            f"latency gate: p99 is {found.p99_ms:.3f} ms, {ratio:.2f} times that of the live release, "
            f"above {limits.p99_ratio_max:g} times"
        )
    refused.extend(broken)
    figures = {
        "runs": found.count,
        "median_ms": found.median_ms,
        "p99_ms": found.p99_ms,
        "live_p99_ms": live_p99_ms,
        "p99_ratio": ratio,
    }
    return _event("latency", not broken, figures, asdict(limits))


def _memory(limit: int | None, trial: GateTrial, refused: list[str]) -> dict[str, Any]:
    peak = trial.trial.peak_bytes
    passed = limit is None or (peak is not None and peak <= limit)
    if not passed:
        unknown = f"an unknown amount of memory of its own, and may take {limit} bytes"
        takes = unknown if peak is None else f"{peak} bytes of its own, above {limit}"
        refused.append(f"memory gate: a process that loads and runs the model takes {takes}")
    figures = {"peak_bytes": peak, "model_bytes": needs_bytes(trial), "libraries_bytes": trial.libraries_bytes}
    return _event("memory", passed, figures, {"peak_bytes": limit})


def _event(gate: str, passed: bool, figures: dict[str, Any], limits: dict[str, Any]) -> dict[str, Any]:
    return {"event": "gate", "gate": gate, "passed": passed, "figures": figures, "limits": limits}


def _refusal(digest: str, refused: list[str]) -> AgentError:
    return AgentError(
        f"release {digest[:12]} was refused: {'; '.join(refused)}",
        kind="gate",
        hint="the live release serves on; build for this device's target, or loosen the gate in the build",
    )

"""The demo's steps: train, quantise, release, deploy, run the held-out images, measure."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..bench.batches import infer_batches
from ..bench.run import BenchRules, run_bench
from ..build.gates import GateOptions
from ..build.release import BuildOptions, build_release
from ..deploy.push import Deployed, deploy
from ..errors import BadInputError
from ..optimize.evaluate import Accuracy, top1
from ..optimize.quick import quantize_int8
from ..release.bundle import Release
from ..targets import Target, host_target
from ..transport.base import Deadline
from ..transport.client import AgentClient
from ..transport.local import LocalAgent
from .digits import Digits, load_digits, train_and_export

__all__ = ["SCHEMA", "run_demo"]

SCHEMA = 1
MODEL = "digits"
_CALIBRATION_SAMPLES = 256
_START_S = 60.0
_ROUNDS = 3
_ROUND_MS = 500
# A device watches for longer; here it is long enough for the held-out images.
_PROBATION_S = 2

Tick = Callable[[str, float], None]


@dataclass(frozen=True)
class _Candidate:
    precision: str
    path: Path
    version: int


def run_demo(folder: Path, stack: ExitStack, tick: Tick, keep: Path | None = None) -> dict[str, Any]:
    """The whole way; returns the document of docs/demo-report.md.

    Args:
        folder: where everything is made.
        stack: closes the agents.
        tick: told of each step's name and its done share.
        keep: where to leave models and data, or None.

    Raises:
        KedgeError: the first thing that went wrong.
    """
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise BadInputError(f"{keep} is not empty", hint="give a folder that does not exist yet")
    target = host_target()
    tick("reading the digits", 0.0)
    digits = load_digits()
    models = folder / "models"
    models.mkdir()
    fp32 = _Candidate("fp32", models / "digits-fp32.onnx", 1)
    int8 = _Candidate("int8", models / "digits-int8.onnx", 2)
    train_and_export(digits, fp32.path, tick)
    tick("quantising to INT8", 0.0)
    calibration = digits.train_images[:_CALIBRATION_SAMPLES]
    quantized = quantize_int8(fp32.path, {"image": calibration}, target, int8.path)
    releases = {c.precision: _release(c, models, target, digits) for c in (fp32, int8)}
    agents: dict[str, LocalAgent] = {}
    deployed: dict[str, Deployed] = {}
    accuracy: dict[str, Accuracy] = {}
    for precision, release in releases.items():
        tick(f"deploying {precision.upper()} to a local agent", 0.0)
        agents[precision] = _start(folder / f"device-{precision}", stack)
        deployed[precision], accuracy[precision] = _deploy(agents[precision], release, digits, tick)
    reports = _measure(agents, tick)
    if keep is not None:
        _keep(keep, models, digits)
    return {
        "schema": SCHEMA,
        "kind": "kedge-demo",
        "data": {
            "name": "scikit-learn digits (UCI Optical Recognition of Handwritten Digits)",
            "train_images": len(digits.train_labels),
            "held_out_images": len(digits.test_labels),
            "calibration_images": len(calibration),
        },
        "target": target.name,
        "rounds": _ROUNDS,
        "quantization": {
            "scheme": "static",
            "activations": quantized.activations,
            "weights": quantized.weights,
            "reduced_range": quantized.reduced_range,
        },
        "results": {
            precision: {
                "release": releases[precision].digest,
                "model_bytes": reports[precision]["memory"]["model_bytes"],
                "accuracy": accuracy[precision].to_json(),
                "parity": deployed[precision].parity,
                "gates": deployed[precision].gates,
                "probation": deployed[precision].probation,
                "bench": reports[precision],
            }
            for precision in agents
        },
        "int8_over_fp32": _ratios(reports, accuracy),
    }


def _release(candidate: _Candidate, folder: Path, target: Target, digits: Digits) -> Release:
    options = BuildOptions(MODEL, candidate.version, GateOptions(probation_s=_PROBATION_S))
    golden = {"image": digits.test_images}
    return build_release(candidate.path, target, folder / f"{candidate.path.stem}.release", options, golden).release


def _start(state: Path, stack: ExitStack) -> LocalAgent:
    agent = LocalAgent(state, ephemeral=True)
    # Registered before it is started: whatever interrupts the start, it is stopped.
    stack.callback(agent.close)
    agent.start(Deadline.after(_START_S, "starting the local agent"))
    return agent


def _deploy(agent: LocalAgent, release: Release, digits: Digits, tick: Tick) -> tuple[Deployed, Accuracy]:
    """Deploy a release, and run the held-out images through it while it is on probation."""
    with ThreadPoolExecutor(1) as pool:
        measured: list[Future[Accuracy]] = []

        def state(name: str) -> None:
            if name == "probation":
                tick("on probation, answering the held-out images", 0.0)
                measured.append(pool.submit(_accuracy, agent, digits))

        done = deploy(agent, release, state=state, remember=False)
        return done, measured[0].result()


def _accuracy(agent: LocalAgent, digits: Digits) -> Accuracy:
    client = AgentClient(agent)
    try:
        outputs, _ = infer_batches(client, MODEL, {"image": digits.test_images}, batch=1)
    finally:
        client.close()
    return top1(outputs["logits"], digits.test_labels)


def _measure(agents: dict[str, LocalAgent], tick: Tick) -> dict[str, dict[str, Any]]:
    """Measure in alternation, and keep each model's round of median latency: this machine has other work too."""
    rounds: dict[str, list[dict[str, Any]]] = {precision: [] for precision in agents}
    total = _ROUNDS * len(agents)
    for number in range(_ROUNDS):
        for index, (precision, agent) in enumerate(agents.items()):
            tick("measuring latency and memory", (number * len(agents) + index) / total)
            rounds[precision].append(run_bench(agent, MODEL, BenchRules(duration_ms=_ROUND_MS)))
    return {
        precision: sorted(reports, key=lambda report: float(report["in_agent"]["total"]["median_ms"]))[_ROUNDS // 2]
        for precision, reports in rounds.items()
    }


def _ratios(reports: dict[str, dict[str, Any]], accuracy: dict[str, Accuracy]) -> dict[str, float]:
    fp32, int8 = reports["fp32"], reports["int8"]
    return {
        "model_bytes": int8["memory"]["model_bytes"] / fp32["memory"]["model_bytes"],
        "compute_median": int8["in_agent"]["compute"]["median_ms"] / fp32["in_agent"]["compute"]["median_ms"],
        "end_to_end_median": int8["end_to_end"]["total"]["median_ms"] / fp32["end_to_end"]["total"]["median_ms"],
        "accuracy_points": (accuracy["int8"].share - accuracy["fp32"].share) * 100,
    }


def _keep(keep: Path, models: Path, digits: Digits) -> None:
    keep.mkdir(parents=True, exist_ok=True)
    for model in models.glob("*.onnx"):
        shutil.copy(model, keep)
    np.save(keep / "calibration.npy", digits.train_images[:_CALIBRATION_SAMPLES])
    np.save(keep / "images.npy", digits.test_images)
    np.save(keep / "labels.npy", digits.test_labels)

"""The goals that were set for optimisation (B), the agent (D), releases (E), diagnosis (F) and fleets (G).

A goal is "met" or "not met" by figures of the full size alone. Some goals are no figure but a behaviour: those name
what holds them, a test that fails where they are not met.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tools.bench import page_verdicts as of
from tools.bench.page_read import Documents
from tools.bench.page_verdicts import Verdict

__all__ = ["GOALS", "PARTS", "Goal", "judge"]

PARTS = {"B": "Optimise", "D": "The agent", "E": "Releases", "F": "Diagnosis", "G": "Fleets"}


@dataclass(frozen=True)
class Goal:
    """part: a key of PARTS. benchmark measures it, `measure` reads it. test: what holds it where it is no figure.

    file: of the figures, without ending, where the benchmark has several.
    """

    part: str
    wording: str
    benchmark: str = ""
    measure: Callable[[Documents], Verdict] | None = None
    test: str = ""
    file: str = ""


def judge(goal: Goal, documents: Documents) -> Verdict | None:
    """What the figures say; None where they are not there, or lack what the goal is about."""
    if goal.measure is None:
        return None
    try:
        return goal.measure(documents)
    except (KeyError, IndexError, StopIteration, TypeError, ValueError):
        return None


UNIX, TCP = "kedge, Unix socket", "kedge, TCP"

GOALS: tuple[Goal, ...] = (
    Goal(
        "B",
        "INT8 of ResNet-20, -56, -8, mnist_cnn loses at most 0.3 points, for `cpu-generic-x86_64`, `rtx-ada-2000`",
        "optimize",
        of.drops,
    ),
    Goal("B", "magika in INT8: argmax agreement with FP32, both targets, with its interval", "optimize", of.magika),
    Goal("B", "INT8 ResNets run at least 1.8 × as fast as FP32 on this CPU", "optimize", of.speedups),
    Goal("B", "their INT8 artefacts for `rtx-ada-2000` compile in TensorRT for RTX", "engines", of.compiles),
    Goal(
        "B",
        "`--quantize auto --max-drop 0.002` keeps to it where W4A8 rounded to nearest does not",
        "recipes",
        of.mixed,
    ),
    Goal(
        "B",
        "ResNet-56 pruned to at most 50 % of its MACs, recovered, INT8: at least 90.5 % within 60 minutes",
        "recipes",
        of.pruned_accuracy,
    ),
    Goal("B", "pruned INT8 at least 1.3 × as fast as unpruned INT8", "recipes", of.pruned_speed),
    Goal("B", "2:4 and recovery on ResNet-20: at least 90.0 %", "recipes", of.two_of_four),
    Goal("B", "QAT at W4A8 beats PTQ at W4A8", "recipes", of.trained),
    Goal("B", "5-bit clusters: at least 91.3 %, pushed bytes at most 0.25 × FP32's", "recipes", of.clustered),
    Goal("B", "kwt1 in FP16 and dynamic INT8: cosine at least 0.99 on real audio", "recipes", of.transformer),
    Goal(
        "B",
        "never less accurate than the best of onnxruntime and ModelOpt by more than 0.1 point",
        "optimize",
        of.held("accuracy", "within 0.1 point"),
    ),
    Goal("B", "faster to run than ModelOpt's models", "optimize", of.held("latency", "faster")),
    Goal("B", "bad input gets one line and a hint, no given file is modified", test="tests/unit/test_bad_models.py"),
    Goal("D", "an unmodified `tritonclient[http]` passes our suite", test="tests/loopback/test_tritonclient.py"),
    Goal("D", "ONNX's node tests: none fails that onnxruntime itself passes", test="tests/unit/test_onnx_nodes.py"),
    Goal("D", f"{UNIX}: p50 at 602 KB at most 1.03 × bare", "serving", of.serving(UNIX, "over_bare", 1.03)),
    Goal("D", f"{TCP}: the same", "serving", of.serving(TCP, "over_bare", 1.03)),
    Goal("D", f"{UNIX}: at most 150 µs added to a tiny model", "serving", of.serving(UNIX, "added_us", 150.0)),
    Goal("D", f"{TCP}: the same", "serving", of.serving(TCP, "added_us", 150.0)),
    Goal("D", "RSS of an agent that has loaded no runtime: at most 40 MB", "serving", of.idle_memory),
    Goal("D", "agent ready within 0.5 s", "serving", of.ready),
    Goal("D", "30 minutes at half of capacity: no failed request, RSS grows by less than 1 %", "soak", of.soak),
    Goal("D", "100,000 hostile requests: no crash, no hang, no 500 without a cause", "fuzz", of.fuzz),
    Goal(
        "D",
        "GPU: agent's latency at most 1.05 × a bare `execute_async_v3` loop",
        "gpu",
        of.gpu_latency,
        file="gpu-latency",
    ),
    Goal("D", "GPU: copies overlap computation, by event timestamps", "gpu", of.gpu_overlap, "", "gpu-overlap"),
    Goal("D", "GPU: bandwidth, page-locked against pageable", "gpu", of.gpu_bandwidth, "", "gpu-bandwidth"),
    Goal("D", "values outside calibration are counted and reported", test="tests/loopback/test_drift.py"),
    Goal("E", "twenty faults, after each of which a whole release serves", test="tests/loopback/faults"),
    Goal("E", "push at least 0.95 × the best of the others in every column at 64 MB and more", "push", of.push),
    Goal("E", "redeploy after 5 % in one place changed: at most 6 % of the bytes", "push", of.redeploy),
    Goal("E", "a redeploy never sends more than rsync", "push", of.rsync),
    Goal("E", "an interrupted push re-sends at most the frames in flight", "push", of.again),
    Goal(
        "E",
        "50 activations and 10 forced rollbacks under eight clients lose no request",
        test="tests/loopback/test_deploy_under_load.py",
    ),
    Goal("E", "who could attack, what stops each, what does not", test="docs/threat-model.md"),
    Goal("F", "`kedge doctor` on a healthy device: all green in under 5 s", "doctor", of.doctor),
    Goal("F", "the flight recorder takes at most 1 % of a core", "recorder", of.recorder),
    Goal(
        "G",
        "16 agents, two bad: halts, and resumes after its host is killed",
        test="tests/loopback/test_fleet_rollout.py",
    ),
    Goal("G", "an emulated arm64 device passes the suite of devices", test="tests/device"),
    Goal(
        "G",
        "1,000 simulated devices, threads: at most 2 MB of the host a device",
        "fleet",
        of.fleet("threads", "memory", "MB"),
    ),
    Goal("G", "the same, dask", "fleet", of.fleet("dask", "memory", "MB")),
    Goal("G", "time grows at most 1.1 × linear from 100 to 1,000, threads", "fleet", of.fleet("threads", "time", "×")),
    Goal("G", "the same, dask", "fleet", of.fleet("dask", "time", "×")),
    Goal("G", "dask gives the same result table as threads", "fleet", of.same_table),
    Goal("G", "a figure shows rollout time against N", "fleet", of.drawn),
)
"""In the wording of those who set them, shortened."""

"""The goals that were set for the keel (A), optimisation (B), building (C), the agent (D), releases (E), diagnosis (F)
and fleets (G).

A goal is "met" or "not met" by figures of the full size alone. Some goals are no figure but a behaviour: those name
what holds them, a test that fails where they are not met, or a document. One that asks for several things is several
rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tools.bench import page_verdicts as of
from tools.bench import page_verdicts_agent as agent
from tools.bench.page_read import Documents
from tools.bench.page_verdicts import Verdict

__all__ = ["GOALS", "PARTS", "Goal", "judge", "tell"]

PARTS = {
    "A": "The keel",
    "B": "Optimise",
    "C": "Build",
    "D": "The agent",
    "E": "Releases",
    "F": "Diagnosis",
    "G": "Fleets",
}


@dataclass(frozen=True)
class Goal:
    """part: a key of PARTS. benchmark measures it, `measure` reads it. test: what holds it where it is no figure.

    file: of the figures, without ending, where the benchmark has several. unrun: of a test that has never run, why.
    """

    part: str
    wording: str
    benchmark: str = ""
    measure: Callable[[Documents], Verdict] | None = None
    test: str = ""
    file: str = ""
    unrun: str = ""


def judge(goal: Goal, documents: Documents) -> Verdict | None:
    """What the figures say; None where they are not there, or lack some of what the goal is about."""
    verdict = tell(goal, documents)
    return verdict if verdict is not None and verdict.whole else None


def tell(goal: Goal, documents: Documents) -> Verdict | None:
    """What the figures say, be it of a part of what the goal is about, which nobody may judge."""
    if goal.measure is None:
        return None
    try:
        return goal.measure(documents)
    except (KeyError, IndexError, StopIteration, TypeError, ValueError):
        return None


UNIX, TCP = "kedge, Unix socket", "kedge, TCP"

GOALS: tuple[Goal, ...] = (
    Goal("A", "the demo: INT8 within 1 point of FP32 on the held-out images", "demo", of.demo),
    Goal("A", "`kedge --help` within 0.25 s of processor time", "startup", of.help_time),
    Goal("A", "`kedge --help` imports no numpy, torch, onnx, onnxruntime, paramiko", test="tests/unit/test_cli.py"),
    Goal("A", "the quickstart over a real `sshd` works as written", test="tests/loopback/test_quickstart.py"),
    Goal("A", "Ctrl-C leaves no process and no folder of the demo", test="tests/loopback/test_demo.py"),
    Goal(
        "B",
        "INT8 of ResNet-20, -56, -8, mnist_cnn loses at most 0.3 points, for `cpu-generic-x86_64`, `rtx-ada-2000`",
        "optimize",
        of.drops,
    ),
    Goal("B", "magika in INT8: argmax agreement with FP32, both targets, with its interval", "optimize", of.magika),
    Goal("B", "INT8 ResNets run at least 1.8 × as fast as FP32 on this CPU", "optimize", of.speedups),
    Goal("B", "their INT8 artefacts for `rtx-ada-2000` compile in TensorRT for RTX", "engines", of.compiles),
    Goal("B", "the checker of Q/DQ finds nothing in those artefacts", "engines", of.checked),
    Goal(
        "B",
        "`--quantize auto --max-drop 0.002` keeps to it where W4A8 rounded to nearest does not",
        "recipes",
        of.mixed,
    ),
    Goal("B", "`--measure-on local` ranks by measured time", test="tests/loopback/test_measure_on.py"),
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
    Goal("B", "silero_vad goes through unharmed in FP16", test="tests/unit/test_low_precision.py"),
    Goal("B", "silero_vad in INT8 is refused with the reason", test="tests/unit/test_optimize.py"),
    Goal(
        "B",
        "never less accurate than the best of onnxruntime and ModelOpt by more than 0.1 point",
        "optimize",
        of.held("accuracy", "within 0.1 point"),
    ),
    Goal("B", "faster to run than ModelOpt's models", "optimize", of.held("latency", "faster")),
    Goal("B", "bad input gets one line and a hint, no given file is modified", test="tests/unit/test_bad_models.py"),
    Goal("C", "an engine for each model that TensorRT for RTX supports, the others refused", "engines", of.engines),
    Goal("C", "refused by preflight first, with the node named", test="tests/unit/test_preflight.py"),
    Goal("C", "without a device: a release with a plan; `--require-engine` exits 7", test="tests/unit/test_build.py"),
    Goal(
        "C",
        "built on the device: budget ladder, kill of the child, cancel, cache hit on the second device",
        test="tests/loopback/test_build_on_device.py",
    ),
    Goal(
        "C", "corrupted, truncated, foreign engines are refused before loading", test="tests/unit/test_plan_header.py"
    ),
    Goal(
        "C",
        "an engine of TensorRT on a GPU computes what onnxruntime does",
        test="tests/gpu/test_engine_runs.py",
        unrun="it has run nowhere: it needs a GPU on which TensorRT is",
    ),
    Goal("C", "what the adapter calls is in four versions' bindings", test="tests/packaging/test_tensorrt_api.py"),
    Goal("C", "README's first screen says what cross-building means", test="README.md"),
    Goal("D", "an unmodified `tritonclient[http]` passes our suite", test="tests/loopback/test_tritonclient.py"),
    Goal("D", "answers are as the public description of OIP has them", test="tests/unit/test_oip_schema.py"),
    Goal("D", "ONNX's node tests: none fails that onnxruntime itself passes", test="tests/unit/test_onnx_nodes.py"),
    Goal("D", f"{UNIX}: p50 at 602 KB at most 1.03 × bare", "serving", agent.serving(UNIX, "over_bare", 1.03)),
    Goal("D", f"{TCP}: the same, p50", "serving", agent.serving(TCP, "over_bare", 1.03)),
    Goal("D", f"{UNIX}: at most 150 µs added to a tiny model", "serving", agent.serving(UNIX, "added_us", 150.0)),
    Goal("D", f"{TCP}: the same, a tiny model", "serving", agent.serving(TCP, "added_us", 150.0)),
    Goal("D", "RSS of an agent that has loaded no runtime: at most 40 MB", "serving", agent.idle_memory),
    Goal("D", "agent ready within 0.5 s, no model", "serving", agent.ready("kedge, no model")),
    Goal("D", "the same until three models are loaded", "serving", agent.ready("kedge")),
    Goal("D", "30 minutes at half of capacity: no failed request, RSS grows by less than 1 %", "soak", agent.soak),
    Goal("D", "100,000 hostile requests: no crash, no hang, no 500 without a cause", "fuzz", agent.fuzz),
    Goal(
        "D",
        "GPU: agent's latency at most 1.05 × a bare `execute_async_v3` loop",
        "gpu",
        agent.gpu_latency,
        file="gpu-latency",
    ),
    Goal("D", "GPU: copies overlap computation, by event timestamps", "gpu", agent.gpu_overlap, "", "gpu-overlap"),
    Goal("D", "GPU: bandwidth, page-locked against pageable", "gpu", agent.gpu_bandwidth, "", "gpu-bandwidth"),
    Goal("D", "values outside calibration are counted and reported", test="tests/loopback/test_drift.py"),
    Goal("E", "twenty faults, after each of which a whole release serves", test="tests/loopback/faults"),
    Goal("E", "push at least 0.95 × the best of the others in every column at 64 MB and more", "push", agent.push),
    Goal("E", "redeploy after 5 % in one place changed: at most 6 % of the bytes", "push", agent.redeploy),
    Goal("E", "a redeploy never sends more than rsync", "push", agent.rsync),
    Goal("E", "an interrupted push re-sends at most the frames in flight", "push", agent.again),
    Goal(
        "E",
        "50 activations and 10 forced rollbacks under eight clients lose no request",
        test="tests/loopback/test_deploy_under_load.py",
    ),
    Goal("E", "who could attack, what stops each, what does not", test="docs/threat-model.md"),
    Goal("F", "ten planted faults are each named as first cause, with the cure", test="tests/loopback/doctor"),
    Goal("F", "`kedge doctor` on a healthy device in under 5 s, and no check faults or warns", "doctor", agent.doctor),
    Goal("F", "a snapshot of an agent that is stopped, hung or dead", test="tests/loopback/test_snapshot.py"),
    Goal("F", "the flight recorder takes at most 1 % of a core", "recorder", agent.recorder),
    Goal(
        "F",
        "HTML reports in Chromium: no console error, axe finds nothing serious",
        test="tests/loopback/test_pages_in_chromium.py",
    ),
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
        agent.fleet("threads", "memory", 2.0, "MB"),
    ),
    Goal("G", "1,000 simulated devices, dask: the same", "fleet", agent.fleet("dask", "memory", 2.0, "MB")),
    Goal(
        "G",
        "time grows at most 1.1 × linear from 100 to 1,000, threads",
        "fleet",
        agent.fleet("threads", "time", 1.1, "×"),
    ),
    Goal(
        "G",
        "time grows at most 1.1 × linear from 100 to 1,000, dask",
        "fleet",
        agent.fleet("dask", "time", 1.1, "×"),
    ),
    Goal("G", "dask gives the same result table as threads", "fleet", agent.same_table),
    Goal("G", "docs/fleet.md works as written", test="tests/loopback/test_fleet_document.py"),
    Goal("G", "a figure shows rollout time against N", "fleet", agent.drawn),
)
"""In the wording of those who set them, shortened."""

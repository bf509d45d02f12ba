"""The gates before a release goes live, tried on real releases in real child processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kedge.release.bundle import Release
from kedge_agent.errors import AgentError
from kedge_agent.formats.gates import ParityGate, ParityLimits
from kedge_agent.measure.parity import OutputParity
from kedge_agent.measure.schedule import TimingRules
from kedge_agent.runtime.onnxruntime import OnnxRuntime
from kedge_agent.serving import staging
from kedge_agent.serving.gating import judge_parity, needs_bytes, run_gates
from kedge_agent.serving.staging import Staged, stage_release
from kedge_agent.store.layout import Layout
from tests.support.bad_models import FOREVER, TOO_MUCH, obedient_release, order, wrong_outputs
from tests.unit.test_store import deliver

GATES = ["parity", "latency", "memory"]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state")


def staged(layout: Layout, release: Release) -> Staged:
    deliver(layout, release)
    return stage_release(layout, {"onnxruntime": OnnxRuntime()}, release.digest, 1)


def refused(layout: Layout, release: Release, **live: Staged) -> tuple[AgentError, dict[str, Any]]:
    told: list[dict[str, Any]] = []
    with pytest.raises(AgentError) as caught:
        run_gates(layout, staged(layout, release), live.get("live"), told.append)
    return caught.value, {event["gate"]: event for event in told}


def test_every_gate_is_told_with_its_figures_though_none_is_limited(layout: Layout, tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    gated = run_gates(layout, staged(layout, obedient_release(tmp_path, version=1)), None, told.append)
    assert list(gated.gates) == told
    assert [event["gate"] for event in told] == GATES
    parity, latency, memory = told
    assert all(event["event"] == "gate" and event["passed"] for event in told)
    assert parity["figures"]["outputs"][0]["cosine"] > 0.999
    assert parity["limits"]["outputs"]["y"]["cosine_min"] == 0.999
    assert latency["limits"] == {"p99_ms": None, "p99_ratio_max": None}
    assert 0 < latency["figures"]["median_ms"] <= latency["figures"]["p99_ms"] == gated.trial.latency.p99_ms
    assert latency["figures"]["live_p99_ms"] is None
    assert memory["limits"] == {"peak_bytes": None}
    assert memory["figures"]["peak_bytes"] > (needs_bytes(gated.trial) or 0) > 0
    trial = gated.trial.trial
    assert trial.peak_rss_bytes is not None
    # What is resident of libraries is no limit's business: the page cache decides on it.
    assert memory["figures"]["peak_bytes"] == trial.peak_bytes < trial.peak_rss_bytes
    assert memory["figures"]["libraries_bytes"] > 1 << 20, "Python's at the least"
    json.dumps(told, allow_nan=False)


def test_all_gates_are_told_when_one_refuses_and_the_reason_has_figure_and_limit(
    layout: Layout, tmp_path: Path
) -> None:
    limits = {"latency": {"p99_ms": "0.000001"}, "memory": {"peak_bytes": 1}}
    error, gates = refused(layout, obedient_release(tmp_path, version=1, gates=limits))
    assert error.kind == "gate"
    assert "above 1e-06 ms" in error.message
    assert "bytes of its own, above 1" in error.message
    assert [name for name in GATES if not gates[name]["passed"]] == ["latency", "memory"]
    assert gates["latency"]["figures"]["runs"] >= 250, "one hiccup must not refuse a release"


@pytest.mark.slow
def test_a_release_that_is_slower_than_the_live_one_by_more_than_it_may_is_refused(
    layout: Layout, tmp_path: Path
) -> None:
    live = staged(layout, obedient_release(tmp_path, version=1))
    slow = order(turns=500)
    gates = {"latency": {"p99_ratio_max": "1.5"}}
    error, told = refused(layout, obedient_release(tmp_path, version=2, golden=slow, gates=gates), live=live)
    assert "times that of the live release, above 1.5 times" in error.message
    figures = told["latency"]["figures"]
    assert figures["p99_ratio"] == pytest.approx(figures["p99_ms"] / figures["live_p99_ms"])
    # Without a live release there is nothing to compare with.
    alone = run_gates(layout, staged(layout, obedient_release(tmp_path, version=3, gates=gates)), None, lambda _: None)
    assert alone.live_p99_ms is None


def test_outputs_that_differ_are_refused(layout: Layout, tmp_path: Path) -> None:
    error, gates = refused(layout, wrong_outputs(obedient_release(tmp_path, version=1), tmp_path / "wrong"))
    assert error.kind == "gate"
    assert "output 'y'" in error.message
    assert not gates["parity"]["passed"]


def test_memory_without_end_ends_the_child_and_not_the_device(layout: Layout, tmp_path: Path) -> None:
    error, gates = refused(layout, obedient_release(tmp_path, version=1, golden=order(size=TOO_MUCH)))
    assert error.kind == "space", error
    assert gates == {}


def test_a_release_that_never_answers_is_refused_at_its_deadline(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_CPU_S", 2.0)
    error, _ = refused(layout, obedient_release(tmp_path, version=1, golden=order(turns=FOREVER)))
    assert error.kind == "gate", "whoever asks again would wait as long again"
    assert "was not done after 2" in error.message


def test_limits_of_an_output_s_own_come_before_those_of_all() -> None:
    gate = ParityGate(ParityLimits(0.9, 0.1), {"odd": ParityLimits(0.9, 0.5)})
    found = OutputParity("even", 1.0, 1.0, 0.3)
    judge_parity("a" * 64, gate, {"odd": found})
    with pytest.raises(AgentError, match=r"relative error 0\.3 is above 0\.1") as caught:
        judge_parity("a" * 64, gate, {"even": found})
    assert caught.value.kind == "gate"


@pytest.mark.parametrize(
    ("runs", "elapsed_s", "enough"),
    [(0, 99, False), (1, 10, True), (99, 3, False), (100, 1, False), (100, 2, True), (999, 1, False), (1000, 0, True)],
)
def test_runs_are_timed_until_there_are_enough_and_never_beyond_the_bounds(
    runs: int, elapsed_s: float, *, enough: bool
) -> None:
    rules = TimingRules(warm_up_s=0.2, least_runs=100, least_s=2, most_runs=1000, most_s=10)
    assert rules.enough(runs, elapsed_s) is enough

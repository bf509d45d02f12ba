from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kedge_agent.formats.manifest import ParityGate
from kedge_agent.measure.benchmark import BenchmarkRules, run_benchmark
from kedge_agent.measure.memory import read_memory
from kedge_agent.measure.parity import compare_output, failures
from kedge_agent.runtime.base import LoadOptions
from kedge_agent.runtime.onnxruntime import OnnxRuntime
from kedge_agent.runtime.pool import ModelPool
from tests.support import models

GATE = ParityGate(cosine_min=0.999, relative_error_max=0.02)


def broken(device: list[float], golden: list[float]) -> list[str]:
    result = compare_output("y", np.array(device, "f4"), np.array(golden, "f4"))
    return failures(GATE, {"y": result})


def test_equal_outputs_pass_the_gate() -> None:
    assert broken([1, 2, 3], [1, 2, 3]) == []
    assert broken([0, 0], [0, 0]) == []
    assert broken([], []) == []
    assert broken([float("nan"), 1], [float("nan"), 1]) == []
    assert broken([float("inf"), 1], [float("inf"), 1]) == []


@pytest.mark.parametrize(
    ("device", "golden"),
    [
        ([1, 2, 3.2], [1, 2, 3]),
        ([-1, -2, -3], [1, 2, 3]),
        ([0, 0, 0], [1, 2, 3]),
        ([1, 2, 3], [0, 0, 0]),
        ([float("nan"), 2, 3], [1, 2, 3]),
        ([1, 2, 3], [float("nan"), 2, 3]),
        ([float("inf"), 2, 3], [float("-inf"), 2, 3]),
    ],
)
def test_outputs_that_differ_break_the_gate(device: list[float], golden: list[float]) -> None:
    assert broken(device, golden)


def test_an_output_of_another_shape_breaks_the_gate() -> None:
    assert failures(GATE, {"y": compare_output("y", np.zeros((2, 3)), np.zeros((3, 2)))})


def test_parity_figures_are_those_of_the_formulas() -> None:
    result = compare_output("y", np.array([3.0, 4.0]), np.array([4.0, 3.0]))
    assert result.cosine == pytest.approx(24 / 25)
    assert result.max_abs_error == pytest.approx(1.0)
    assert result.relative_error == pytest.approx(1 / 4)


def test_memory_is_read_from_proc_in_bytes(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").write_text("Name:\tx\nVmHWM:\t    2000 kB\nVmRSS:\t    1000 kB\n")
    (tmp_path / "self/smaps_rollup").write_text("00-ff ---p [rollup]\nRss:  1000 kB\nPss:   500 kB\nPss_Anon:  10 kB\n")
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    8000 kB\n")
    reading = read_memory(tmp_path)
    assert reading.to_json() == {
        "rss_bytes": 1_024_000,
        "pss_bytes": 512_000,
        "peak_rss_bytes": 2_048_000,
        "available_bytes": 8_192_000,
    }


def test_memory_that_cannot_be_read_is_none_never_zero(tmp_path: Path) -> None:
    assert set(read_memory(tmp_path).to_json().values()) == {None}


def test_the_real_proc_tells_this_process_s_memory() -> None:
    reading = read_memory()
    assert reading.rss_bytes is not None
    assert reading.peak_rss_bytes is not None
    assert 0 < reading.rss_bytes <= reading.peak_rss_bytes


def test_the_benchmark_runs_as_long_and_as_often_as_it_is_told(tmp_path: Path) -> None:
    pool = ModelPool(OnnxRuntime().load(models.classifier(tmp_path / "m.onnx"), LoadOptions()))
    result = run_benchmark(pool, {"image": models.images(1)}, BenchmarkRules(warmup_ms=0, duration_ms=0, min_runs=25))
    assert result["count"] == 25
    assert result["warmup_runs"] == 1
    assert result["compute"]["count"] == 25
    assert 0 < result["compute"]["median_ms"] <= result["total"]["max_ms"]
    timed = run_benchmark(pool, {"image": models.images(1)}, BenchmarkRules(warmup_ms=0, duration_ms=50, min_runs=1))
    assert timed["seconds"] >= 0.05

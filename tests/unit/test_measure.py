from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kedge_agent.errors import AgentError
from kedge_agent.formats.gates import ParityGate, ParityLimits
from kedge_agent.formats.tensors import TensorSpec
from kedge_agent.measure.benchmark import run_benchmark
from kedge_agent.measure.layers import layer_rows
from kedge_agent.measure.ledger import ledger_rows
from kedge_agent.measure.memory import MemoryReading, phase, read_memory
from kedge_agent.measure.parity import compare_output, failures
from kedge_agent.measure.samples import PARTS, Samples
from kedge_agent.measure.schedule import BenchmarkRules
from kedge_agent.runtime.base import Buffers, LayerTime, LoadOptions, MemoryItem, Shapes, Split
from kedge_agent.runtime.onnxruntime import OnnxRuntime
from kedge_agent.runtime.pool import ModelPool, PoolRetiredError, PoolRules, Timing
from tests.support import models


class SlowModel:
    """A model of one tensor whose every run takes as long as it is told: what a benchmark is timed against."""

    inputs = (TensorSpec("x", "FP32", (1,)),)
    outputs = ()
    in_flight = 1

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def slot(self) -> SlowModel:
        return self

    def bind(self, shapes: Shapes) -> SlowBinding:
        return SlowBinding(self._seconds)

    def ledger(self) -> tuple[MemoryItem, ...]:
        return ()

    def facts(self) -> Mapping[str, Any]:
        return {}

    def close(self) -> None:
        pass


class SlowBinding:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.inputs: Buffers = {"x": np.zeros(1, "f4")}
        self.outputs: Buffers = {}
        self.copied = ()

    def submit(self) -> None:
        time.sleep(self._seconds)

    def wait(self) -> Split:
        return Split(int(self._seconds * 1e9))


GATE = ParityGate(ParityLimits(cosine_min=0.999, relative_error_max=0.02))


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


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[ModelPool]:
    """The small classifier, loaded."""
    pool = ModelPool(OnnxRuntime().load(models.classifier(tmp_path / "m.onnx"), LoadOptions()))
    yield pool
    pool.retire()


def short(**rules: Any) -> BenchmarkRules:
    return BenchmarkRules(**{"warmup_ms": 0, "duration_ms": 0, "min_runs": 25, **rules})


ONE = {"image": models.images(1)}


def test_the_benchmark_runs_as_long_and_as_often_as_it_is_told(pool: ModelPool) -> None:
    report = run_benchmark(pool, ONE, short()).report
    assert report["count"] == 25
    assert report["warmup_runs"] == 1
    assert report["compute"]["count"] == 25
    assert 0 < report["compute"]["median_ms"] <= report["total"]["max_ms"]
    timed = run_benchmark(pool, ONE, short(duration_ms=50, min_runs=1)).report
    assert timed["seconds"] >= 0.05


def test_the_parts_of_every_sample_make_its_latency_and_what_has_no_gpu_has_no_copies(pool: ModelPool) -> None:
    measured = run_benchmark(pool, ONE, short())
    parts = [measured.samples.part_ms(part) for part in PARTS]
    assert measured.samples.total_ms() == pytest.approx([sum(row) for row in zip(*parts, strict=True)])
    assert [measured.report[part] for part in ("h2d", "kernel", "d2h")] == [None, None, None]
    assert list(measured.samples.columns["start"]) == sorted(measured.samples.columns["start"])


def test_several_requests_at_a_time_are_as_many_as_asked_for_and_wait_for_each_other(pool: ModelPool) -> None:
    report = run_benchmark(pool, ONE, short(concurrency=4, duration_ms=100)).report
    assert (report["loop"], report["concurrency"], report["refused"]) == ("closed", 4, 0)
    alone = run_benchmark(pool, ONE, short(duration_ms=100)).report
    assert report["queue"]["mean_ms"] > alone["queue"]["mean_ms"]


def test_a_rate_that_the_device_keeps_up_with_is_served_whole(pool: ModelPool) -> None:
    report = run_benchmark(pool, ONE, short(rate_per_s=200, duration_ms=300, min_runs=1)).report
    assert (report["loop"], report["count"], report["not_sent"]) == ("rate", 60, 0)
    assert report["seconds"] >= 59 / 200
    assert all(reason["what"] != "overload" for reason in report["trust"]["reasons"])


def test_a_rate_that_the_device_does_not_keep_up_with_shows_as_waiting_from_the_intended_start(tmp_path: Path) -> None:
    # Every run takes 2 ms, 1000 a second are asked for: the last of 100 begins 100 ms late, and its latency says so.
    pool = ModelPool(SlowModel(0.002))
    measured = run_benchmark(pool, {"x": np.zeros(1, "f4")}, short(rate_per_s=1000, duration_ms=100, min_runs=1))
    report = measured.report
    assert report["count"] + report["not_sent"] == 100
    waits = measured.samples.part_ms("queue")
    assert waits is not None
    assert waits[-1] > waits[len(waits) // 2] > waits[0]
    assert report["total"]["max_ms"] >= waits[-1] > 40
    pool.retire()


def test_a_device_that_falls_behind_for_twice_the_time_is_not_asked_for_more() -> None:
    pool = ModelPool(SlowModel(0.01))
    report = run_benchmark(pool, {"x": np.zeros(1, "f4")}, short(rate_per_s=1000, duration_ms=100, min_runs=1)).report
    assert report["not_sent"] > 50
    (overload,) = [reason for reason in report["trust"]["reasons"] if reason["what"] == "overload"]
    assert "does not keep up with 1000 requests/s" in overload["text"]
    assert overload["figures"]["served_per_s"] < 101
    pool.retire()


def test_requests_that_the_queue_refuses_are_counted_and_are_no_samples() -> None:
    pool = ModelPool(SlowModel(0.002), PoolRules(queue=1))
    report = run_benchmark(pool, {"x": np.zeros(1, "f4")}, short(concurrency=8, duration_ms=100)).report
    assert report["refused"] > 0
    assert "overload" in [reason["what"] for reason in report["trust"]["reasons"]]
    assert report["compute"]["count"] == report["count"]
    pool.retire()


def test_a_model_that_is_replaced_meanwhile_ends_the_benchmark(pool: ModelPool) -> None:
    timer = threading.Timer(0.1, pool.retire)
    timer.start()
    with pytest.raises(PoolRetiredError):
        run_benchmark(pool, ONE, short(duration_ms=20_000, concurrency=2))
    timer.join()


def test_what_a_gpu_s_events_tell_is_summarised_where_every_request_has_it() -> None:
    samples = Samples()
    samples.add(0, Timing(1, 2, 3_000_000, 4, 1_000_000, 1_500_000, 500_000))
    assert samples.summaries()["kernel"]["median_ms"] == 1.5
    assert samples.summaries()["h2d"]["median_ms"] == 1.0
    samples.add(1, Timing(1, 2, 3_000_000, 4))
    assert samples.summaries()["kernel"] is None
    assert samples.summaries()["compute"]["count"] == 2


def test_raw_samples_are_columns_of_64_bit_integers(pool: ModelPool) -> None:
    measured = run_benchmark(pool, ONE, short())
    columns, data = measured.samples.to_bytes()
    table = np.frombuffer(data, "<i8").reshape(len(columns), 25)
    assert columns == ["start", "queue", "input", "compute", "output", "h2d", "kernel", "d2h"]
    assert (table[5:] == -1).all()
    compute = measured.samples.part_ms("compute")
    assert compute is not None
    np.testing.assert_allclose(table[3] / 1e6, compute)


@pytest.mark.parametrize(
    "rules",
    [
        {"warmup_ms": -1},
        {"duration_ms": 600_001},
        {"min_runs": 0},
        {"concurrency": 0},
        {"concurrency": 257},
        {"rate_per_s": 0},
        {"rate_per_s": float("nan")},
        {"rate_per_s": float("inf")},
    ],
)
def test_rules_out_of_bounds_are_refused(rules: dict[str, Any]) -> None:
    with pytest.raises(AgentError):
        short(**rules)


def test_layers_are_rows_with_their_share_of_the_whole() -> None:
    rows = layer_rows([LayerTime("conv", "Conv", (3.0, 1.0, 2.0)), LayerTime("x" * 300, "Relu", (0.5, 1.0, 0.5))])
    assert rows[0] == {"name": "conv", "kind": "Conv", "total_ms": 6.0, "mean_ms": 2.0, "median_ms": 2.0, "share": 0.75}
    assert rows[1]["share"] == 0.25
    assert len(rows[1]["name"]) == 200
    assert layer_rows([LayerTime("none", "", ())]) == []


def test_the_ledger_names_what_the_runtime_does_not_tell() -> None:
    load = {"before": {"available_bytes": 5000}, "after": {"available_bytes": 3000}}
    rows = ledger_rows([MemoryItem("weights", 700, "the engine")], load, MemoryReading(10, None, 20, 3000))
    by_name = {row["what"]: row for row in rows}
    assert by_name["weights"] == {"what": "weights", "bytes": 700, "method": "the engine"}
    assert by_name["pinned"]["bytes"] is None
    assert by_name["process PSS"]["bytes"] is None
    assert by_name["system"]["bytes"] == 2000
    assert all(row["method"] for row in rows)
    load["before"]["available_bytes"] = None
    assert ledger_rows([], load, MemoryReading(1, 1, 1, 1))[-1]["bytes"] is None


def test_a_phase_has_its_own_peak_not_an_earlier_one_s() -> None:
    with phase() as first:
        np.ones(40_000_000 // 8).sum()
    with phase() as second:
        pass
    assert first.peak_bytes is not None
    assert first.begin_bytes is not None
    assert second.peak_bytes is not None
    assert first.peak_bytes - first.begin_bytes > 30_000_000
    assert second.peak_bytes < first.peak_bytes - 30_000_000
    assert first.ms is not None
    assert second.ms is not None
    assert first.ms > second.ms > 0


def test_a_peak_that_may_be_an_earlier_one_s_is_unavailable(tmp_path: Path) -> None:
    # A tree in which the kernel cannot be asked to forget its high-water mark.
    (tmp_path / "self/clear_refs").mkdir(parents=True)
    status = tmp_path / "self/status"
    status.write_text("VmHWM:\t 2000 kB\nVmRSS:\t 1000 kB\n")
    with phase(tmp_path) as unknown:
        status.write_text("VmHWM:\t 2000 kB\nVmRSS:\t 1500 kB\n")
    assert (unknown.begin_bytes, unknown.peak_bytes, unknown.end_bytes) == (1_024_000, None, 1_536_000)
    with phase(tmp_path) as risen:
        status.write_text("VmHWM:\t 2500 kB\nVmRSS:\t 1500 kB\n")
    assert risen.peak_bytes == 2_560_000
    assert risen.available_bytes is None


def test_strings_are_equal_or_they_are_not() -> None:
    golden = np.array([b"cat", "d\u00f6g".encode()], dtype=object)
    same = compare_output("label", np.array(["cat", "d\u00f6g"], dtype=object), golden)
    assert (same.cosine, same.max_abs_error, same.relative_error) == (1.0, 0.0, 0.0)
    assert failures(GATE, {"label": same}) == []
    other = compare_output("label", np.array(["cat", "dog"], dtype=object), golden)
    assert failures(GATE, {"label": other})
    assert failures(GATE, {"label": compare_output("label", np.array([1.0, 2.0]), golden)})
    empty = np.zeros(0, dtype=object)
    assert failures(GATE, {"label": compare_output("label", empty, empty)}) == []

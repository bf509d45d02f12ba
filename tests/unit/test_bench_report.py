"""What becomes of a bench's figures on the host: trtexec's files, text, page and drawing."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from kedge.bench.export import trtexec_profile, trtexec_times
from kedge.bench.rules import BenchRules
from kedge.errors import BadInputError
from kedge.report.bench_chart import _ticks, waterfall_svg
from kedge.report.bench_html import bench_html
from kedge.report.bench_text import bench_tables
from kedge.report.text import byte_size, milliseconds, rate
from kedge_agent.formats.latency import summarize
from kedge_agent.formats.trust import Conditions, judge
from tests.support.pages import self_contained
from tests.support.schemas import validate

STEADY = [1.0] * 200
HOSTILE = "<b>x</b>\x1b[31m&{{ 7*7 }}"


def latency(ms: float = 1.0) -> dict[str, Any]:
    return summarize([ms] * 200).to_json()


def loop(concurrency: int = 1) -> dict[str, Any]:
    parts = ("total", "queue", "input", "compute", "output")
    return {
        "loop": "closed",
        "concurrency": concurrency,
        "rate_per_s": None,
        "warmup_runs": 3,
        "warmup_ms": 200,
        "count": 200,
        "refused": 0,
        "not_sent": 0,
        "seconds": 1.0,
        "throughput_per_s": 200.0,
        **{part: latency() for part in parts},
        **dict.fromkeys(("h2d", "kernel", "d2h")),
        "trust": judge(STEADY, [Conditions({"GPU": 600_000_000}, {"GPU": True})]).to_json(),
    }


def full_report() -> dict[str, Any]:
    reading = {"rss_bytes": 1, "pss_bytes": None, "peak_rss_bytes": 2, "available_bytes": 3}
    part = {"ms": 1.0, "begin_bytes": 10, "peak_bytes": None, "end_bytes": 20, "available_bytes": -5}
    levels = {"runtime": 1.0, "agent": 1.5, "socket": 1.4, "channel": 2.0, "host": 3.0}
    steps, below = [], 0.0
    for level, ms in levels.items():
        more = {"p50_ms": ms - below, "p99_ms": ms - below}
        steps.append({"name": level, "what": "what it is", "level": level, **more})
        below = ms
    parts = ("total", "transport", "queue", "input", "compute", "output")
    layer = {"name": HOSTILE, "kind": "Conv", "total_ms": 3.0, "mean_ms": 1.0, "median_ms": 1.0, "share": 1.0}
    return {
        "schema": 2,
        "kind": "kedge-bench",
        "device": "nano",
        "model": "digits",
        "version": 1,
        "release": "0" * 64,
        "runtime": "onnxruntime",
        "precision": "fp32",
        "conditions": {
            "started": "2026-11-25T12:00:00+00:00",
            "batch": 1,
            "warmup_ms": 200,
            "duration_ms": 1000,
            "min_runs": 10,
            "loop": "closed",
            "rate_per_s": None,
            "concurrency": [1, 2],
            "host": {"kedge": "1", "os": "linux", "arch": "x86_64", "cores": None},
            "agent": {
                "version": "1",
                "os": "linux",
                "arch": "aarch64",
                "python": "3.10.12",
                "runtimes": {"onnxruntime": "1.23.0"},
                "cores": 6,
                "threads": 6,
            },
        },
        "end_to_end": {
            "warmup_runs": 2,
            "count": 200,
            "seconds": 1.0,
            "throughput_per_s": 200.0,
            **{part: latency() for part in parts},
            "trust": judge([1.0, 2.0] * 100, []).to_json(),
        },
        "in_agent": loop(),
        "sweep": [loop(), loop(2)],
        "waterfall": {
            "rounds": 10,
            "runs": 20,
            "levels": [{"level": level, **latency(ms)} for level, ms in levels.items()],
            "steps": steps,
            "left_out": ["SSH: none here"],
            "trust": judge(STEADY, []).to_json(),
        },
        "layers": {"count": 3, "layers": [layer]},
        "phases": {
            **dict.fromkeys(("import", "first_load", "first_run", "warm_load", "inference"), part),
            "runs": 100,
            "latency": latency(),
        },
        "chosen": {
            "providers": ["CPUExecutionProvider"],
            "transfers": {"chosen": {"image": "mapped", "logits": "copy"}},
            "graphs": {"captured": 0, "why_not": "pycuda has none"},
            "kernels": {"state": "warm"},
        },
        "memory": {
            "model_bytes": 674,
            "load": {"load_ms": 5.0, "before": reading, "after": reading, "rehearsal": None},
            "now": reading,
            "ledger": [
                {"what": "weights", "bytes": None, "method": HOSTILE},
                {"what": "system", "bytes": -475_000, "method": "MemAvailable"},
            ],
        },
        "samples": {"end_to_end": {"start": [0.0], "total": [1.0]}, "in_agent": {"start": [0.0], "h2d": None}},
    }


SAMPLES: dict[str, Any] = {
    "start": [0.0, 5.0],
    "queue": [0.5, 0.25],
    "input": [0.25, 0.25],
    "compute": [4.0, 3.0],
    "output": [0.1, 0.1],
    "h2d": None,
    "kernel": None,
    "d2h": None,
}


def test_exported_times_without_a_gpu_have_copies_of_no_length_as_trtexec_writes_them() -> None:
    first, second = trtexec_times(SAMPLES)
    assert list(first) == [
        *("startEnqMs", "endEnqMs", "startH2dMs", "endH2dMs", "startComputeMs", "endComputeMs"),
        *("startD2hMs", "endD2hMs", "h2dMs", "computeMs", "d2hMs", "latencyMs"),
    ]
    assert (first["startEnqMs"], first["endEnqMs"]) == (None, None)
    assert first["startH2dMs"] == first["endH2dMs"] == first["startComputeMs"] == 0.75
    assert first["endComputeMs"] == first["startD2hMs"] == first["endD2hMs"] == 4.75
    assert (first["h2dMs"], first["computeMs"], first["d2hMs"], first["latencyMs"]) == (0.0, 4.0, 0.0, 4.0)
    assert second["startComputeMs"] == 5.5


def test_exported_times_with_a_gpu_lay_its_parts_end_to_end() -> None:
    (row,) = trtexec_times(
        {name: values[:1] for name, values in SAMPLES.items() if values} | {"h2d": [1.0], "kernel": [2.0], "d2h": [0.5]}
    )
    assert (row["startH2dMs"], row["endH2dMs"], row["endComputeMs"], row["endD2hMs"]) == (0.75, 1.75, 3.75, 4.25)
    assert row["latencyMs"] == 3.5
    assert row["computeMs"] == 2.0


def test_exported_times_of_mixed_transfers_keep_the_copies_there_are() -> None:
    (row,) = trtexec_times(
        {name: values[:1] for name, values in SAMPLES.items() if values} | {"h2d": None, "kernel": [2.0], "d2h": [0.5]}
    )
    assert (row["h2dMs"], row["computeMs"], row["d2hMs"], row["latencyMs"]) == (0.0, 2.0, 0.5, 2.5)


def test_a_rate_at_which_the_runs_would_take_days_is_refused() -> None:
    BenchRules(rate_per_s=0.01, min_runs=2)
    with pytest.raises(BadInputError, match="take too long"):
        BenchRules(rate_per_s=0.001, min_runs=256)


@pytest.mark.parametrize("whole", [0.3, 0.0003, 3.0, 0.299, 1e-6, 7.5])
def test_an_axis_has_three_to_eight_steps(whole: float) -> None:
    ticks = _ticks(whole)
    assert 3 <= len(ticks) - 1 <= 8
    assert ticks[-1] <= whole * (1 + 1e-9)


def test_figures_near_a_unit_s_end_are_written_in_the_next() -> None:
    assert (milliseconds(999.7), byte_size(999_700), byte_size(999)) == ("1 s", "1 MB", "999 B")
    assert (rate(0.4), rate(12.34), rate(99.97), rate(2310.2)) == ("0.4 /s", "12.3 /s", "100 /s", "2,310 /s")


def test_an_exported_profile_begins_with_the_count_of_runs() -> None:
    count, layer = trtexec_profile(full_report()["layers"])
    assert count == {"count": 3}
    assert layer == {"name": HOSTILE, "timeMs": 3.0, "averageMs": 1.0, "medianMs": 1.0, "percentage": 100.0}


def test_a_whole_report_is_valid() -> None:
    validate(full_report(), "bench")


def test_the_page_shows_every_part_fetches_nothing_and_escapes_what_it_is_given() -> None:
    text = bench_html(full_report())
    page = self_contained(text)
    for heading in ("Where a request's time goes", "From this host", "In the agent", "Requests at a time", "Layers"):
        assert heading in page.text
    assert "<b>x</b>" in page.text
    assert "<b>" not in text
    assert "\x1b" not in text
    assert "{{ 7*7 }}" in page.text
    assert "not measured" in page.text
    assert "unavailable" in page.text
    assert "Left out: SSH: none here" in page.text
    assert "600 to 600 MHz, locked" in page.text
    assert bench_html(full_report()) == text


def test_a_page_without_what_was_not_asked_for_has_no_empty_parts() -> None:
    report = full_report() | dict.fromkeys(("sweep", "waterfall", "layers", "phases", "samples"))
    validate(report, "bench")
    page = self_contained(bench_html(report))
    for heading in ("Where a request's time goes", "Requests at a time", "Load phases", "Layers"):
        assert heading not in page.text


def test_the_text_says_what_is_not_stable_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    bench_tables(full_report())
    said = capsys.readouterr().out
    assert "not stable: samples scatter: the coefficient of variation is 33.3 %" in said
    assert re.search(r"trust +stable", said)
    assert "nothing was read" in said
    assert "GPU: 600 MHz, locked" in said
    assert "left out" in said
    assert "█" in said
    assert "\x1b" not in said


def test_the_drawing_s_bars_begin_where_the_ones_before_end_and_a_level_that_is_faster_goes_back() -> None:
    report = full_report()["waterfall"]
    drawing = ET.fromstring(waterfall_svg(report["steps"], 3.0))  # noqa: S314  (made just now)
    bars = [(float(bar.attrib["x"]), float(bar.attrib["width"])) for bar in drawing.iter() if bar.tag.endswith("rect")]
    assert len(bars) == 5
    (runtime, agent, socket, channel, _) = bars
    assert sum(runtime) == pytest.approx(agent[0], abs=0.2)
    # The socket took less than the agent alone: its bar lies over the end of the agent's, the next begins left of it.
    assert sum(socket) == pytest.approx(sum(agent), abs=0.2)
    assert channel[0] == pytest.approx(socket[0], abs=0.2)


@pytest.mark.parametrize("whole", [0.0, 1e-6, 0.0299, 1.0, 7.3, 600_000.0])
def test_the_drawing_has_a_few_round_ticks_whatever_the_time(whole: float) -> None:
    steps = [{"name": "a < b", "p50_ms": whole}]
    drawing = waterfall_svg(steps, whole)
    assert 4 <= drawing.count('text-anchor="middle"') <= 9
    assert "a &lt; b" in drawing


@pytest.mark.parametrize(
    "rules",
    [
        {"rate_per_s": 0},
        {"rate_per_s": float("nan")},
        {"concurrency": ()},
        {"concurrency": (0,)},
        {"concurrency": (257,)},
        {"concurrency": tuple(range(1, 18))},
        {"rate_per_s": 10, "concurrency": (1, 2)},
    ],
)
def test_rules_that_make_no_sense_are_refused(rules: dict[str, Any]) -> None:
    with pytest.raises(BadInputError):
        BenchRules(**rules)


def test_the_conditions_say_what_the_runtime_chose(capsys: pytest.CaptureFixture[str]) -> None:
    bench_tables(full_report())
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "CPUExecutionProvider",
        "transfers: image mapped, logits copy",
        "no CUDA graphs: pycuda has none",
        "kernels warm",
    ):
        assert words in text

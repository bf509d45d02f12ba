"""Figures in README.md are those of the results, or say which command makes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tools.check_figures import RESULTS, ROOT, faults, rendered

MARK = "<!-- figure: serving # ways / name=kedge, TCP / p50_ms # {:.2f} ms -->"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    ways = [{"name": "kedge, TCP", "p50_ms": 1.0583}, {"name": "other", "p50_ms": 9}]
    (tmp_path / "serving.json").write_text(json.dumps({"ways": ways, "rss_bytes": 35_434_496, "share": 0.0464}))
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        f"It takes 1.06 ms {MARK} there.",
        f"| **1.06 ms** {MARK.replace('{:.2f} ms', '**{:.2f} ms**')} |",
        "It has 35.4 MB <!-- figure: serving # rss_bytes # 1e-6 {:.1f} MB -->.",
        "It sends 4.6% <!-- figure: serving # share # {:.1%} --> of them.",
        "The second has 9 ms <!-- figure: serving # ways / 1 / p50_ms # {} ms -->.",
        "It needs 1.4 GB (<!-- figure by: du -sh .venv -->).",
        "`sleep 3 seconds` and\n```\n12 ms\n```\nare no prose, nor are 22 profiles figures.",
    ],
)
def test_a_figure_that_is_the_result_s_or_names_its_command_is_taken(text: str, results: Path) -> None:
    assert faults(text, results) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"first\nIt takes 1.07 ms {MARK} there.", ":2: …It takes 1.07 ms: serving.json says 1.06 ms"),
        (f"It takes 11.06 ms {MARK} there.", "says 1.06 ms"),
        ("It takes 1.06 ms <!-- figure: serving # ways / 7 / p50_ms # {:.2f} ms -->.", ":1: serving # ways / 7"),
        ("It takes 1.06 ms <!-- figure: nowhere # ways # {:.2f} ms -->.", ":1: nowhere # ways"),
        ("It takes 1.06 ms <!-- figure: serving # ways # {:.2f} ms -->.", ":1: serving # ways"),
        ("one\ntwo\nIt is 3 × as fast.", ":3: 3 × says neither its results file nor its command"),
        ("It takes 2.5 GB. <!-- figure by: a --> And 30 minutes.", "30 minutes says neither"),
    ],
)
def test_a_figure_that_is_another_or_nobody_s_is_named_with_its_line(text: str, said: str, results: Path) -> None:
    (fault,) = faults(text, results)
    assert said in fault


@pytest.mark.parametrize(
    "figure", ["3 s", "2 h", "2 hours", "1.5 x", "1.5x", "12 per cent", "1,909 requests", "1,909 /s", "602 KB", "5%"]
)
def test_a_number_with_a_unit_that_nobody_vouches_for_is_named(figure: str, results: Path) -> None:
    (fault,) = faults(f"It was {figure} then.", results)
    assert fault == f":1: {figure} says neither its results file nor its command"


def test_readme_says_what_the_results_say() -> None:
    assert faults((ROOT / "README.md").read_text(encoding="utf-8"), RESULTS) == []


def test_a_changed_result_fails_the_text_that_quotes_it(results: Path) -> None:
    text = f"It takes 1.06 ms {MARK} there."
    assert faults(text, results) == []
    path = results / "serving.json"
    path.write_text(path.read_text().replace("1.0583", "1.0683"))
    assert len(faults(text, results)) == 1


def demo() -> dict[str, Any]:
    """As much of the demo's document as its table shows."""
    times = {"median_ms": 0.5, "p90_ms": 0.6, "p99_ms": 0.7, "count": 9}
    loop: dict[str, Any] = dict.fromkeys(("total", "transport", "queue", "input", "compute", "output"), times)
    loop |= {"count": 100, "throughput_per_s": 1909.4}
    agent = {"threads": 2, "cores": 2, "runtimes": {"onnxruntime": "1.32.0"}}
    bench = {
        "end_to_end": loop,
        "in_agent": loop,
        "memory": {"now": {"rss_bytes": 91_100_000, "peak_rss_bytes": 91_800_000}},
        "conditions": {"batch": 1, "warmup_ms": 200, "agent": agent},
    }
    result = {
        "accuracy": {"share": 358 / 360, "correct": 358},
        "gates": [{"gate": "parity", "passed": True}],
        "probation": {"seconds": 2, "requests": 360, "failed": 0, "p99_ms": 0.4, "crashes": 0, "passed": True},
        "model_bytes": 905_000,
        "bench": bench,
    }
    data = {"name": "digits", "train_images": 1437, "held_out_images": 360, "calibration_images": 256}
    ratios = {"accuracy_points": 0.0, "model_bytes": 0.26, "end_to_end_median": 0.83, "compute_median": 0.46}
    known = {"data": data, "target": "cpu-generic-x86_64", "rounds": 3, "seconds": 29.1}
    return known | {"results": {"fp32": result, "int8": result}, "int8_over_fp32": ratios}


def test_the_demo_s_table_is_made_of_its_document_and_another_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text(json.dumps({"demo": demo()}))
    text = rendered("before\n<!-- demo -->\n<!-- /demo -->\nafter\n", tmp_path)
    assert text.startswith("before\n<!-- demo -->\n```\nHandwritten digits")
    assert "99.44 % (358)" in text
    assert text.endswith("```\n<!-- /demo -->\nafter\n")
    assert "took" not in text
    assert faults(text, tmp_path) == []
    (fault,) = faults(text.replace("0.83 ×", "0.82 ×"), tmp_path)
    assert "the demo's table is not demo.json's" in fault

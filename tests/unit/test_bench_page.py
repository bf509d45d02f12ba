"""The page of all figures: what is met, not met, not measured, and what the smoke size says without being judged."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from tools.bench.catalogue import BENCHMARKS
from tools.bench.facts import ROOT
from tools.bench.page import page, write_page
from tools.bench.page_goals import GOALS, PARTS, judge
from tools.bench.page_panels import panels
from tools.bench.page_plots import plot
from tools.bench.page_read import Found, read

CONDITIONS = {
    "started": "2026-11-26T01:05:21+00:00",
    "machine": "x86_64, 2 cores",
    "processor": "A processor",
    "python": "3.11.7",
    "kedge": "0.1.0, commit abc",
    "peers": {"OpenSSH": "9.2p1", "asyncssh": None},
}


PEERS = ("scp", "sftp", "rsync -W", "paramiko put", "asyncssh put")


def ways(rates: dict[str, float]) -> dict[str, Any]:
    best = max(rates.values())
    return {name: {"mb_per_s": rate, "of_the_best": rate / best} for name, rate in rates.items()}


def push(kedge: float, scp: float = 100.0) -> dict[str, Any]:
    """Figures of a push that brings so many MB/s."""
    redeploy = {"case": "5 % in one place", "size_mb": 64, "kedge": {"bytes": 3_000_000}, "rsync": {"bytes": 4_000_000}}
    cut = {"acknowledged_and_sent_again_bytes": 0}
    return {
        "benchmark": "push",
        "conditions": CONDITIONS,
        "pushes": [
            {"size_mb": 64, "link": link, "ways": ways({"kedge": kedge, **dict.fromkeys(PEERS, scp)})}
            for link in ("0 ms", "10 ms", "50 ms", "50 Mbit/s")
        ],
        "redeploys": [redeploy],
        "interrupted": [cut],
    }


def found(documents: dict[str, Any], outcomes: dict[str, Any] | None = None) -> Found:
    return Found(documents, outcomes or {})


def line(text: str, words: str) -> str:
    (found,) = [each for each in text.splitlines() if words in each]
    return found


BEST = "push at least 0.95 × the best"


def test_a_goal_is_met_or_not_met_with_its_figure_its_file_and_its_command() -> None:
    met = line(page(found({"push": push(99.0)}), None), BEST)
    assert "worst of 4: 0.99 × the best (64 MB, 0 ms)" in met
    assert "| **met** |" in met
    assert "[push.json](results/push.json), `--only push`" in met
    assert "| **not met** |" in line(page(found({"push": push(90.0)}), None), BEST)


def test_a_goal_without_figures_is_not_measured_and_never_met() -> None:
    text = page(found({}), None)
    assert "0 met, 0 not met" in text
    assert "| not measured | not measured | `--only push` |" in line(text, BEST)
    assert "**met**" not in text


def test_figures_that_lack_what_a_goal_is_about_are_not_measured() -> None:
    small = push(99.0)
    for each in small["pushes"]:
        each["size_mb"] = 16
    assert "not measured" in line(page(found({"push": small}), None), BEST)


def test_the_smoke_size_has_a_column_of_its_own_and_is_not_judged() -> None:
    text = page(found({}), found({"push": push(99.0)}))
    row = line(text, BEST)
    assert row.endswith("0.99 × the best (64 MB, 0 ms) |")
    assert "| not measured | not measured |" in row
    assert "smoke: not judged" in text
    assert "**met**" not in text
    assert text.count("| scp |  |  | 100 MB/s |") == 4
    assert "smoke" not in page(found({"push": push(99.0)}), None).partition("## Goals")[2]


def test_peers_stand_beside_kedge_as_a_ratio_and_a_peer_that_was_not_there_is_named() -> None:
    text = page(found({"push": push(50.0)}), None)
    assert "| scp | 100 MB/s | 2.00 × |" in text
    assert "| kedge | 50 MB/s | 1.00 × |" in text
    assert "- asyncssh: it was not there." in text


def test_a_run_that_failed_or_could_not_be_is_named_with_its_reason() -> None:
    gone = {"outcome": "not measured", "reason": "no sshd on this machine", "peers": "", "at": "2026-12-01T00:00:00"}
    failed = {"outcome": "failed", "reason": "it fell over", "peers": "no network", "at": "2026-12-01T00:00:00"}
    text = page(found({"push": push(99.0)}, {"push": gone, "serving": failed}), None)
    assert "- not measured on 2026-12-01: no sshd on this machine (the figures above are of 2026-11-26)." in text
    assert "- failed on 2026-12-01: it fell over." in text
    assert "- peers: no network." in text


def test_every_goal_names_a_benchmark_or_what_holds_it() -> None:
    names = {benchmark.name for benchmark in BENCHMARKS}
    for goal in GOALS:
        assert goal.part in PARTS
        assert bool(goal.test) != bool(goal.benchmark), goal.wording
        if goal.test:
            assert (ROOT / goal.test).exists(), goal.test
        else:
            assert goal.benchmark in names, goal.wording
            assert goal.measure is not None
    assert {"B", "D", "E", "G"} <= {goal.part for goal in GOALS}


def test_every_benchmark_has_a_program_and_a_place_on_the_page() -> None:
    text = page(found({}), None)
    for benchmark in BENCHMARKS:
        program = benchmark.program[-1].replace(".", "/") if benchmark.program[0] == "-m" else benchmark.program[0]
        assert (ROOT / program).exists()
        assert f"## {benchmark.title}\n" in text


def test_a_changed_figure_changes_the_verdict_of_the_committed_results() -> None:
    """Each goal that is met reads a figure: none is met by what does not depend on it."""
    full = read(ROOT / "benchmarks" / "results", "")
    goal = next(goal for goal in GOALS if goal.wording.startswith("RSS of an agent"))
    first = judge(goal, full.documents)
    assert first is not None
    documents = {"serving": copy.deepcopy(full.documents["serving"])}
    documents["serving"]["memory"]["kedge, no model"]["rss_bytes"] = 41_000_000
    changed = judge(goal, documents)
    assert changed is not None
    assert (first.met, changed.met) == (True, False)


def test_the_committed_results_all_have_something_to_show() -> None:
    full = read(ROOT / "benchmarks" / "results", "")
    for benchmark in BENCHMARKS:
        for name in benchmark.files:
            if name in full.documents and benchmark.name not in {"fuzz", "gpu"}:
                assert panels(benchmark.name, full.documents[name]), name


@pytest.mark.slow
def test_the_page_and_its_drawings_are_written_and_no_link_of_it_leads_nowhere(tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    (results / "push.json").write_text(json.dumps(push(99.0)))
    (results / "serving.smoke.json").write_bytes((ROOT / "benchmarks" / "results" / "serving.json").read_bytes())
    text = write_page(tmp_path, smoke=True).read_text(encoding="utf-8")
    assert "![Push](plots/push.svg)" in text
    assert "![Serving (smoke: not judged)](plots/serving.smoke.svg)" in text
    for name in ("push", "serving.smoke"):
        drawing = (tmp_path / "plots" / f"{name}.svg").read_text(encoding="utf-8")
        assert drawing.startswith("<svg ")
        assert "prefers-color-scheme:dark" in drawing
    assert write_page(tmp_path, smoke=False).read_text(encoding="utf-8") == page(read(results, ""), None)


def test_the_committed_page_is_what_the_committed_results_give() -> None:
    """A page with the smoke size's column is no page to commit: python -m tools.bench --page makes it anew."""
    full = read(ROOT / "benchmarks" / "results", "")
    assert (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8") == page(full, None)


def test_figures_of_a_tree_that_differed_from_its_commit_are_marked_and_so_are_those_without_one() -> None:
    dirty = push(99.0)
    dirty["conditions"] = {**CONDITIONS, "kedge": "0.1.0, commit abc-dirty"}
    text = page(found({"push": dirty}), None)
    assert "*files differed from that commit*" in line(text, BEST)
    assert "kedge 0.1.0, commit abc-dirty (**files differed from that commit**)" in text
    clean = page(found({"push": push(99.0)}), None)
    assert "differed from that commit" not in clean
    soak = {"failed": 0, "requests": 9, "rss_bytes": {"growth": 0.0}, "rules": {"seconds": 1800.0}}
    soak["latency"] = dict.fromkeys(("median_ms", "p90_ms", "p99_ms", "max_ms"), 1.0)
    text = page(found({"soak": soak}), None)
    assert "*its commit was not recorded*" in line(text, "30 minutes at half of capacity")
    assert "Neither conditions nor the commit were recorded." in text


def test_figures_around_a_stand_in_name_it_and_the_command_that_makes_them() -> None:
    text = page(read(ROOT / "benchmarks" / "results", ""), None)
    for words in ("GPU: agent's latency", "GPU: copies overlap"):
        assert "stand-in for TensorRT" in line(text, words)
    for words in ("GPU: agent's latency", "GPU: copies overlap", "GPU: bandwidth"):
        assert "`python tools/bench/gpu.py --stand-in`" in line(text, words)
        assert "--only gpu" not in line(text, words)


@pytest.mark.slow
def test_no_title_of_a_drawing_is_cut_at_its_edge(tmp_path: Path) -> None:
    full = read(ROOT / "benchmarks" / "results", "")
    plot(tmp_path / "serving.svg", "serving", "Serving", panels("serving", full.documents["serving"]))
    drawing = (tmp_path / "serving.svg").read_text(encoding="utf-8")
    titles = re.findall(r'x="([\d.]+)"[^>]*>([^<]*is better\))', drawing)
    assert len(titles) == 4
    for x, title in titles:
        # Bold letters of 11 px are 7.7 px wide at most on the whole.
        assert float(x) + 7.7 * len(title) <= 720, title

"""`kedge bench` on the device named `local`: every measurement through the real agent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kedge.bench.run import BenchRules, run_bench
from kedge.cli import main
from kedge.deploy.push import deploy
from kedge.errors import BadInputError
from kedge.release.bundle import Release
from kedge.transport.client import AgentClient
from kedge.transport.local import LocalAgent
from tests.support.schemas import validate

SHORT = {"warmup_ms": 5, "duration_ms": 60, "min_runs": 10}


@pytest.fixture
def serving(local_agent: LocalAgent, release: Release) -> LocalAgent:
    """An agent that serves the small classifier."""
    deploy(local_agent, release)
    return local_agent


def measured(agent: LocalAgent, **rules: Any) -> dict[str, Any]:
    report = run_bench(agent, "digits", BenchRules(**{**SHORT, **rules}))
    validate(report, "bench")
    return report


def test_what_was_not_asked_for_is_null(serving: LocalAgent) -> None:
    report = measured(serving)
    assert [report[part] for part in ("sweep", "waterfall", "layers", "phases", "samples")] == [None] * 5


def test_a_verdict_stands_beside_both_loops(serving: LocalAgent) -> None:
    report = measured(serving)
    for where in ("end_to_end", "in_agent"):
        assert report[where]["trust"]["stable"] is (report[where]["trust"]["reasons"] == [])
    unknown = report["end_to_end"]["trust"]["unavailable"]
    assert any(line.startswith("other processes") for line in unknown)


def test_every_concurrency_of_a_sweep_is_a_loop_of_its_own(serving: LocalAgent) -> None:
    report = measured(serving, concurrency=(1, 2, 3))
    assert [loop["concurrency"] for loop in report["sweep"]] == [1, 2, 3]
    assert report["in_agent"] == report["sweep"][0]


def test_a_fixed_rate_is_served_in_the_agent_as_asked(serving: LocalAgent) -> None:
    report = measured(serving, rate_per_s=100.0, duration_ms=200)
    assert report["conditions"]["loop"] == report["in_agent"]["loop"] == "rate"
    assert report["in_agent"]["count"] + report["in_agent"]["not_sent"] == 20


def test_raw_samples_are_those_that_the_summaries_are_of(serving: LocalAgent) -> None:
    report = measured(serving, samples=True)
    for where in ("end_to_end", "in_agent"):
        columns, loop = report["samples"][where], report[where]
        assert {len(column) for column in columns.values() if column is not None} == {loop["count"]}
        assert max(columns["compute"]) == pytest.approx(loop["compute"]["max_ms"])
        assert columns["start"] == sorted(columns["start"])
    assert report["samples"]["in_agent"]["kernel"] is None


def test_samples_that_nobody_asked_to_keep_are_not_there(serving: LocalAgent) -> None:
    client = AgentClient(serving)
    with pytest.raises(BadInputError, match="no samples of digits are kept"):
        client.get_bytes("/kedge/v1/models/digits/benchmark/samples", limit_bytes=1000)
    client.close()


@pytest.mark.parametrize(
    "order",
    [
        {"concurrency": 0},
        {"rate_per_s": True},
        {"rate_per_s": 0},
        {"samples": 1},
        {"threads": 4},
        {"min_runs": 1.5},
        {"warmup_ms": -1},
    ],
)
def test_orders_out_of_bounds_are_refused_by_the_agent(serving: LocalAgent, order: dict[str, Any]) -> None:
    client = AgentClient(serving)
    with pytest.raises(BadInputError):
        client.post("/kedge/v1/models/digits/benchmark", order, changes=False)
    client.close()


def test_steps_of_the_waterfall_add_up_to_what_the_host_sees(serving: LocalAgent) -> None:
    waterfall = measured(serving, waterfall=True)["waterfall"]
    levels = {level["level"]: level for level in waterfall["levels"]}
    assert list(levels) == ["runtime", "agent", "socket", "channel", "host"]
    assert {level["count"] for level in levels.values()} == {waterfall["rounds"] * waterfall["runs"]}
    for percentile, key in (("p50_ms", "median_ms"), ("p99_ms", "p99_ms")):
        assert sum(step[percentile] for step in waterfall["steps"]) == pytest.approx(levels["host"][key])
    assert levels["runtime"]["min_ms"] < levels["agent"]["min_ms"] < levels["socket"]["min_ms"]
    assert [step["name"] for step in waterfall["steps"]] == ["runtime", "agent", "socket", "dial-stdio", "host"]
    assert len(waterfall["left_out"]) == 1


def test_layers_and_load_phases_are_measured_beside_the_live_model(serving: LocalAgent) -> None:
    report = measured(serving, layers=True, phases=True)
    kinds = {layer["kind"] for layer in report["layers"]["layers"]}
    assert {"Conv", "MatMul"} <= kinds
    assert sum(layer["share"] for layer in report["layers"]["layers"]) == pytest.approx(1.0)
    assert report["phases"]["inference"]["peak_bytes"] >= report["phases"]["import"]["begin_bytes"]
    assert report["phases"]["latency"]["count"] == report["phases"]["runs"]


def test_the_ledger_tells_where_every_figure_is_from(serving: LocalAgent) -> None:
    ledger = measured(serving)["memory"]["ledger"]
    names = [row["what"] for row in ledger]
    assert {"weights", "activations", "context", "pinned", "process RSS", "process PSS", "system"} <= set(names)
    assert len(names) == len(set(names))


def test_the_command_writes_the_page_and_the_files_that_trtexec_s_tools_read(
    tmp_path: Path, release: Release, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["deploy", str(release.folder), "--to", "local"]) == 0
    capsys.readouterr()
    times, profile, page = tmp_path / "times.json", tmp_path / "profile.json", tmp_path / "bench.html"
    quick = ["--warmup-ms", "5", "--duration-ms", "50", "--concurrency", "1,2", "--json"]
    files = ["--export-times", str(times), "--export-profile", str(profile), "--html", str(page)]
    assert main(["bench", "digits", "--on", "local", *quick, *files]) == 0
    report = json.loads(capsys.readouterr().out)
    validate(report, "bench")
    assert report["samples"] is None
    rows = json.loads(times.read_text())
    assert len(rows) == report["in_agent"]["count"]
    assert max(row["computeMs"] for row in rows) == pytest.approx(report["in_agent"]["compute"]["max_ms"])
    count, *layers = json.loads(profile.read_text())
    assert count == {"count": report["layers"]["count"]}
    assert len(layers) == len(report["layers"]["layers"])
    assert "kedge bench: digits on local" in page.read_text()
    assert main(["bench", "digits", "--on", "local", "--concurrency", "1,x"]) == 3
    assert "--concurrency is '1,x'" in capsys.readouterr().err

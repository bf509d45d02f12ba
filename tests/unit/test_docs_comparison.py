"""What the comparison says of ModelOpt is what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Beyond it a lead counts, by the goals of the benchmark.
POINT = 0.1


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / "optimize.json").read_text("utf-8"))
    return found


@pytest.fixture(scope="module")
def told() -> str:
    text = (ROOT / "docs" / "comparison.md").read_text("utf-8")
    section = text[text.index("## NVIDIA Model Optimizer") : text.index("## Olive")]
    return " ".join(section.split())


def test_in_how_many_cases_modelopt_is_more_accurate_is_as_measured(measured: dict[str, Any], told: str) -> None:
    leads = []
    for case in measured["cases"].values():
        for target in case["targets"].values():
            rows = {row["tool"]: row["accuracy"] for row in target["rows"] if row["accuracy"]}
            best = max(share["share"] for tool, share in rows.items() if tool.startswith("ModelOpt"))
            leads.append(round((best - rows["kedge"]["share"]) * 100, 9))
    ahead, far = sum(lead > 0 for lead in leads), sum(lead > POINT for lead in leads)
    assert f"is more accurate than ours in {ahead} of {len(leads)} cases, by more than 0.1 point in {far} (" in told


def test_how_often_modelopt_takes_less_time_is_as_measured(measured: dict[str, Any], told: str) -> None:
    def slower(of: str, than: str) -> str:
        goals = [
            goal["held"]
            for goal in measured["goals"]
            if (goal["goal"], goal.get("of"), goal["than"]) == ("seconds", of, than)
        ]
        return f"{goals.count(False)} of {len(goals)}"

    by_max, by_default = slower("kedge, command", "ModelOpt, FP32, max"), slower("kedge, command", "ModelOpt")
    assert f"with max calibration in {by_max} cases, by its defaults in {by_default}." in told
    alone = [slower("kedge", tool)[0] for tool in ("ModelOpt", "ModelOpt, FP32", "ModelOpt, FP32, max")]
    assert (alone, "but for one case" in told) == (["0", "0", "1"], True)

"""The gate by a metric of the user's: segmentation, detection, regression, which have no right and wrong answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from kedge.cli import main
from kedge.errors import BadInputError
from kedge.model.graph import Graph
from kedge.model.samples import Samples
from kedge.optimize.gate import Figures, judge, require_judgeable
from kedge.optimize.proof.compare import compare
from kedge.optimize.proof.limits import MetricLimits, metric_reference
from kedge.optimize.proof.runner import run_all
from kedge.optimize.recipe import Data, Recipe, read_recipe, tomllib
from kedge.report.optimize_gate import badge, check_line, refusal
from tests.support.digits import RTX
from tests.support.schemas import validate

RECIPE = f"""
target = "{RTX}"
[model]
source = "cells.onnx"
[data]
calibration = "calibration.npz"
evaluation = "test.npz"
metrics = ["mine:mean_iou", "mine:miss"]
[[pass]]
kind = "quantize"
precision = "int8"
[gate.metrics.mean_iou]
min = 0.5
max_drop = 0.2
[gate.metrics.miss]
max = 0.5
max_rise = 0.2
"""
METRICS = """
import numpy as np
from pathlib import Path

TRUTH = np.load(Path(__file__).with_name("truth.npy"))

def mean_iou(outputs, labels):
    found = outputs["cells"].argmax(1)
    return np.mean([((found == n) & (TRUTH == n)).sum() / ((found == n) | (TRUTH == n)).sum() for n in range(3)])

def miss(outputs, labels):
    return float((outputs["cells"].argmax(1) != TRUTH).mean())

def nothing(outputs, labels):
    return float("nan")
"""


# Verdicts


def judged(limits: MetricLimits, before: float, after: float) -> dict[str, Any]:
    recipe = Recipe("m.onnx", RTX, (), Data(metrics=("mine:iou",)), metric_limits={"iou": limits})
    cells = {"cells": np.ones((2, 3, 8, 8), np.float32)}
    gate = judge(recipe, Figures(compare(cells, cells), {}, None, None, {"iou": (before, after)}), [], ())
    assert gate is not None
    return gate


@pytest.mark.parametrize(
    ("limits", "before", "after", "passed"),
    [
        ({"min": 0.8}, 0.9, 0.8, True),
        ({"min": 0.8}, 0.9, 0.79, False),
        ({"max": 4.0}, 3.0, 4.0, True),
        ({"max": 4.0}, 3.0, 4.1, False),
        ({"max_drop": 0.01}, 0.89, 0.88, True),  # in binary a little more than 0.01
        ({"max_drop": 0.01}, 0.89, 0.87, False),
        ({"max_drop": 0.0}, 0.89, 0.95, True),
        ({"max_rise": 2.0}, 31.0, 33.0, True),
        ({"max_rise": 2.0}, 31.0, 33.5, False),
        ({"max_rise": 0.0}, 31.0, 3.0, True),
        ({"max": 1e-12}, 1e-13, 5e-12, False),  # an error that is small everywhere is judged by its own size
        ({"max_rise": 1e-12}, 1e-12, 5e-12, False),
    ],
)
def test_a_metric_is_held_against_its_limit(
    limits: dict[str, float], before: float, after: float, passed: bool
) -> None:
    gate = judged(MetricLimits(**limits), before, after)
    assert gate["passed"] is passed
    assert gate["checks"][0]["passed"] is passed


def test_each_limit_is_a_condition_of_its_own_with_the_figure_of_the_model_as_given() -> None:
    gate = judged(MetricLimits(min=0.8, max_drop=0.01), 0.85, 0.82)
    floor, drop = gate["checks"]
    assert (floor["figure"], floor["metric"], floor["class"], floor["bound"]) == ("metric", "iou", None, "min")
    assert (floor["value"], floor["given"], floor["passed"]) == (0.82, 0.85, True)
    assert (drop["figure"], drop["bound"], drop["given"], drop["passed"]) == ("metric_drop", "max", None, False)
    assert drop["value"] == pytest.approx(0.03)
    assert check_line(floor) == "iou: 0.82 (0.85 as given), at least 0.8: passed"
    assert refusal(gate) == "drop of iou is 0.03, at most 0.01 wanted"
    assert badge(gate) == "Gate not passed: drop of iou"


def test_a_model_that_misses_the_floor_as_it_was_given_is_said_to() -> None:
    assert judged(MetricLimits(min=0.8), 0.7, 0.75)["next"] == (
        "the model as given misses iou itself, with 0.7: train it further, or ask for less"
    )


def test_a_metric_that_was_not_measured_is_not_passed() -> None:
    recipe = Recipe("m.onnx", RTX, (), Data(metrics=("mine:iou",)), metric_limits={"iou": MetricLimits(max=1e9)})
    gate = judge(recipe, Figures(None, {}, None, None), [], ())
    assert gate is not None
    assert (gate["passed"], gate["checks"][0]["value"]) == (False, None)
    with pytest.raises(BadInputError, match="the gate limits metrics, and there are no evaluation data"):
        require_judgeable(recipe, None, None)
    require_judgeable(recipe, Samples({"x": np.zeros((2, 1))}, None, "test"), None)


# Recipes


def test_a_recipe_s_gate_limits_metrics_by_what_follows_the_colon(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE)
    validate(tomllib.loads(RECIPE), "recipe")
    assert read_recipe(tmp_path / "r.toml").metric_limits == {
        "mean_iou": MetricLimits(min=0.5, max_drop=0.2),
        "miss": MetricLimits(max=0.5, max_rise=0.2),
    }


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("[gate.metrics.mean_iou]", "[gate.metrics.iou]", "'iou', which .data. metrics does not list"),
        ('metrics = ["mine:mean_iou", "mine:miss"]', "", "'mean_iou', which .data. metrics does not list"),
        ('"mine:miss"', '"mine:miss", "yours:miss"', "'miss', which is mine:miss and yours:miss"),
        ("min = 0.5\nmax_drop = 0.2", "", "has no limit"),
        ("min = 0.5", "min = nan", "min is nan"),
        ("max = 0.5", "max = inf", "max is inf"),
        ("max_drop = 0.2", "max_drop = -0.2", "max_drop is -0.2"),
        ("max_rise = 0.2", "max_rise = nan", "max_rise is nan"),
        ("min = 0.5", "min = true", "min is True"),
        ("min = 0.5", "minimum = 0.5", "no key 'minimum'"),
    ],
)
def test_a_fault_in_the_limits_of_metrics_is_one_line_and_a_hint(
    old: str, new: str, reason: str, tmp_path: Path
) -> None:
    assert RECIPE.count(old) == 1
    (tmp_path / "r.toml").write_text(RECIPE.replace(old, new))
    with pytest.raises(BadInputError, match=reason) as error:
        read_recipe(tmp_path / "r.toml")
    assert error.value.hint


def test_of_two_metrics_of_one_name_the_whole_reference_says_which() -> None:
    assert metric_reference("yours:miss", ("mine:miss", "yours:miss")) == "yours:miss"
    assert metric_reference("miss", ("mine:miss", "mine:miss")) == "mine:miss"


# The command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A network of three scores a cell, its data without labels, and metrics that hold it against its own answers."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    shapes = {"w": (16, 1, 3, 3), "b": (16,), "v": (3, 16, 3, 3), "c": (3,)}
    weights = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["h"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "v", "c"], ["cells"], name="last", pads=[1, 1, 1, 1]),
    ]
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", count, 8, 8])
        for name, count in (("image", 1), ("cells", 3))
    }
    made = helper.make_graph(
        nodes,
        "cells",
        [values["image"]],
        [values["cells"]],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    graph = Graph(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    graph.write(tmp_path / "cells.onnx")
    images = random.standard_normal((48, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "calibration.npz", x=images[:32])
    np.savez(tmp_path / "test.npz", x=images[32:])
    np.save(tmp_path / "truth.npy", run_all(graph, Samples({"image": images[32:]}))["cells"].argmax(1))
    (tmp_path / "mine.py").write_text(METRICS)
    sys.modules.pop("mine", None)
    yield tmp_path
    sys.modules.pop("mine", None)


def optimised(folder: Path, text: str) -> int:
    (folder / "r.toml").write_text(text)
    return main(["optimize", str(folder / "r.toml"), "-o", str(folder / "q.onnx"), "--json"])


def test_a_segmentation_is_gated_by_its_own_metrics(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert optimised(folder, RECIPE) == 0
    document = json.loads(capsys.readouterr().out)
    validate({key: value for key, value in document.items() if key not in ("artefact", "report")}, "optimize")
    assert document["comparison"]["agreement"] is None
    assert [(check["figure"], check["metric"]) for check in document["gate"]["checks"]] == [
        ("metric", "mean_iou"),
        ("metric_drop", "mean_iou"),
        ("metric", "miss"),
        ("metric_rise", "miss"),
    ]
    floor = document["gate"]["checks"][0]
    assert (floor["value"], floor["given"]) == (document["after"]["metrics"]["user"]["mine:mean_iou"], 1.0)
    page = (folder / "q.html").read_text()
    assert "Gate passed: all 4 conditions hold" in page
    assert "mean_iou 1 →" in page
    assert "Drop of mean_iou" in page


def test_a_ruined_segmentation_is_refused_with_exit_5_and_its_metric(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ruined = RECIPE.replace(
        'kind = "quantize"\nprecision = "int8"', 'kind = "prune-magnitude"\nratio = 0.97\nkeep_ends = false'
    )
    assert optimised(folder, ruined) == 5
    said = capsys.readouterr()
    assert "the accuracy gate does not hold: mean_iou is" in said.err
    assert "(1 as given), at least 0.5 wanted; drop of mean_iou is" in said.err
    assert json.loads(said.out)["gate"]["blame"]


@pytest.mark.parametrize(
    ("gate", "what"), [("max_drop = 0.01", "max_drop looks at"), ("max_calibration_error = 0.1", "the gate looks at")]
)
def test_a_gate_on_right_answers_of_a_model_without_scores_is_refused_before_any_pass(
    gate: str, what: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(folder / "test.npz", x=np.load(folder / "test.npz")["x"], labels=np.arange(16) % 3)
    assert optimised(folder, RECIPE.replace("[gate.metrics.mean_iou]", f"[gate]\n{gate}\n[gate.metrics.mean_iou]")) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert f"{what} which answers are right, and no output of the model is scores of classes" in said
    assert "[gate.metrics.NAME]" in said
    assert "quantize (1 of 1)" not in said
    assert not (folder / "q.onnx").exists()
    assert not list((folder / "cache").rglob("*.onnx"))


def test_a_metric_that_is_no_number_is_refused_with_exit_3(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        optimised(folder, RECIPE.replace("mine:miss", "mine:nothing").replace("metrics.miss", "metrics.nothing")) == 3
    )
    assert "the metric mine:nothing returned 'nan', not a finite number" in capsys.readouterr().err
    assert not (folder / "q.onnx").exists()

"""Recipes that would come to no good end are refused as they are read, or before their first pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kedge.errors import BadInputError
from kedge.optimize.pipeline import optimise
from kedge.optimize.recipe import Data, Recipe, read_recipe
from kedge.targets import host_target
from tests.support import models

RECIPE = """
name = "digits"
target = "cpu-generic-x86_64"
[model]
source = "m.onnx"
[data]
metrics = ["mine:iou"]
[[pass]]
kind = "quantize"
"""


def read(folder: Path, text: str) -> Recipe:
    (folder / "r.toml").write_text(text, encoding="utf-8")
    return read_recipe(folder / "r.toml")


@pytest.mark.parametrize("name", ["", " ", "..", ".", " a", "a\\nb", "a\\u007f", "a/b", "é" * 101])
def test_a_name_that_makes_no_plain_file_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="the recipe's name is"):
        read(tmp_path, RECIPE.replace('"digits"', f'"{name}"'))


@pytest.mark.parametrize("name", ["digits", "résumé v2", ".hidden", "é" * 100])
def test_a_plain_name_is_taken(name: str, tmp_path: Path) -> None:
    assert read(tmp_path, RECIPE.replace('"digits"', f'"{name}"')).name == name


@pytest.mark.parametrize("table", ["gate", "gate.classes", "gate.metrics"])
def test_a_gate_that_limits_nothing_is_refused_and_not_passed(table: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=rf"\[{table}\] states no limit"):
        read(tmp_path, f"{RECIPE}[{table}]\n")


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("[gate.classes.cat]\nmin_sensitivty = 0.9", r"\[gate\.classes\.cat\] has no key 'min_sensitivty'"),
        ("[gate.classes.cat]\nmin_sensitivity = '0.9'", r"\[gate\.classes\.cat\]: min_sensitivity is '0.9'"),
        ("[gate.classes.cat]\nmin_sensitivity = 9", r"\[gate\.classes\.cat\]: min_sensitivity is 9"),
        ("[gate.classes.cat]", r"\[gate\.classes\.cat\]: the table has no limit"),
        ('[gate.classes."a cat"]\nmin_sensitivity = 9', r'\[gate\.classes\."a cat"\]: min_sensitivity is 9'),
        ("[gate.metrics.iou]\nmax_drop = -1", r"\[gate\.metrics\.iou\]: max_drop is -1"),
    ],
)
def test_a_fault_in_a_limit_names_its_own_table(table: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=reason) as error:
        read(tmp_path, f"{RECIPE}{table}\n")
    assert error.value.hint


def test_a_metric_that_is_not_there_is_told_before_the_first_pass(tmp_path: Path) -> None:
    models.adder(tmp_path / "m.onnx")
    values = np.zeros(4, np.float32)
    np.savez(tmp_path / "test.npz", a=values, b=values)
    (tmp_path / "mine.py").write_text("def iou(outputs, labels):\n    return 1.0\n")
    recipe = Recipe(
        source="m.onnx",
        target=host_target().name,
        passes=read(tmp_path, RECIPE).passes,
        data=Data(evaluation="test.npz", metrics=("mine:iuo",)),
        base=tmp_path,
    )
    steps: list[str] = []
    with pytest.raises(BadInputError, match="iuo"):
        optimise(recipe, tmp_path / "out.onnx", lambda step, share: steps.append(step))
    assert not [step for step in steps if step.startswith("quantize")]

"""The gate on a result's accuracy, class by class: what it measures, what it refuses, and what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kedge.cli import main
from kedge.errors import BadInputError
from kedge.model.samples import Samples
from kedge.optimize.gate import Figures, judge, require_judgeable
from kedge.optimize.proof.calibration import calibration_error, probabilities
from kedge.optimize.proof.compare import compare
from kedge.optimize.proof.limits import ClassLimits, class_number
from kedge.optimize.proof.metrics import classification
from kedge.optimize.proof.per_class import class_pairs
from kedge.optimize.recipe import Data, Recipe, read_recipe
from kedge.optimize.stages import Stage
from tests.support.digits import RTX, digits, trained_net
from tests.support.schemas import validate

LABELS = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
BEFORE = np.array([1, 1, 1, 0, 0, 0, 0, 0, 0, 1])
AFTER = np.array([1, 0, 0, 1, 0, 0, 0, 0, 0, 0])


def scores(answers: np.ndarray) -> np.ndarray:
    return np.eye(2, dtype=np.float32)[answers]


def gated(**limits: Any) -> Recipe:
    return Recipe("m.onnx", "cpu-generic-x86_64", (), Data(classes=("benign", "malignant")), **limits)


def judged(recipe: Recipe, before: np.ndarray = BEFORE, after: np.ndarray = AFTER, stages: Any = ()) -> dict[str, Any]:
    found = {
        name: class_pairs(before, after, LABELS, class_number(name, recipe.data.classes))
        for name in recipe.class_limits
    }
    comparison = compare({"y": scores(before)}, {"y": scores(after)}, LABELS)
    gate = judge(recipe, Figures(comparison, found, 0.02, 0.08), ["/conv"], stages)
    assert gate is not None
    return gate


def stage(kind: str, **parameters: Any) -> Stage:
    record = {"kind": kind, "parameters": {"precision": "int8", "keep": [], **parameters}}
    return Stage(None, record, {}, simulated=False, reused=False)  # type: ignore[arg-type]


# Figures


def test_sensitivity_and_specificity_are_those_counted_by_hand() -> None:
    pairs = class_pairs(BEFORE, AFTER, LABELS, 1)
    assert pairs.sensitivity is not None
    assert pairs.specificity is not None
    assert (pairs.sensitivity.before.correct, pairs.sensitivity.after.correct, pairs.sensitivity.count) == (3, 2, 4)
    assert (pairs.sensitivity.only_before, pairs.sensitivity.only_after) == (2, 1)
    assert (pairs.specificity.before.correct, pairs.specificity.after.correct, pairs.specificity.count) == (5, 6, 6)


def test_of_two_classes_one_s_sensitivity_is_the_other_s_specificity() -> None:
    one, other = class_pairs(BEFORE, AFTER, LABELS, 1), class_pairs(BEFORE, AFTER, LABELS, 0)
    assert one.sensitivity == other.specificity
    assert one.specificity == other.sensitivity


def test_no_answer_finds_nothing_and_spares_nobody() -> None:
    silent = np.full(10, -1)
    pairs = class_pairs(silent, silent, LABELS, 1)
    assert pairs.sensitivity is not None
    assert pairs.specificity is not None
    assert pairs.sensitivity.after.correct == pairs.specificity.after.correct == 0
    nan = np.full((10, 2), np.nan)
    per_class = classification(nan, LABELS).per_class
    assert per_class is not None
    assert [entry.specificity and entry.specificity.correct for entry in per_class] == [0, 0]


def test_the_specificity_of_each_class_stands_beside_its_recall() -> None:
    per_class = classification(scores(AFTER), LABELS, ("benign", "malignant")).per_class
    assert per_class is not None
    spared = per_class[1].to_json()["specificity"]
    assert (spared["correct"], spared["count"]) == (6, 6)
    assert spared["interval_95"][0] < 1
    only = classification(scores(np.ones(3, int)), np.ones(3, int)).per_class
    assert only is not None
    assert only[1].specificity is None


def test_the_calibration_error_is_the_one_computed_by_hand() -> None:
    # Four answers with 0.75, of which two are right; six with 0.95, all right.
    sure, unsure = [0.05, 0.95], [0.25, 0.75]
    values = np.array([unsure] * 4 + [sure] * 6)
    labels = np.array([1, 1, 0, 0, 1, 1, 1, 1, 1, 1])
    found = calibration_error(values, labels, softmax=False)
    assert found is not None
    assert found.error == pytest.approx((4 * abs(0.5 - 0.75) + 6 * abs(1 - 0.95)) / 10)


def test_logits_are_told_from_probabilities_and_go_through_softmax() -> None:
    logits = np.array([[0.0, np.log(3)], [np.log(3), 0.0]])
    likely = np.array([[0.25, 0.75], [0.75, 0.25]])
    assert (probabilities(logits), probabilities(likely)) == (False, True)
    labels = np.array([1, 1])
    made = calibration_error(logits, labels, softmax=True)
    given = calibration_error(likely, labels, softmax=False)
    assert made is not None
    assert given is not None
    assert made.error == pytest.approx(given.error) == pytest.approx(0.25)
    assert (made.to_json()["softmax"], given.to_json()["softmax"]) == (True, False)


def test_huge_logits_do_not_overflow_and_scores_that_are_not_finite_have_no_error() -> None:
    found = calibration_error(np.array([[0.0, 1e6]]), np.array([1]), softmax=True)
    assert found is not None
    assert found.error == 0
    assert calibration_error(np.array([[np.nan, 0.0]]), np.array([1]), softmax=True) is None


# Verdicts


def test_a_class_that_is_found_too_rarely_fails_though_the_accuracy_holds() -> None:
    limits = {"malignant": ClassLimits(min_sensitivity=0.75, min_specificity=0.5)}
    gate = judged(gated(max_drop=0.1, class_limits=limits))
    assert [(check["figure"], check["passed"]) for check in gate["checks"]] == [
        ("drop", True),
        ("sensitivity", False),
        ("specificity", True),
    ]
    found = gate["checks"][1]
    assert (found["class"], found["value"], found["given"]) == ("malignant", 0.5, 0.75)
    assert (found["correct"], found["count"], found["only_before"]) == (2, 4, 2)
    assert found["interval_95"][0] < 0.5 < found["interval_95"][1]
    assert gate["passed"] is False
    assert gate["blame"] == ["/conv"]


def test_a_drop_is_held_against_the_model_as_given() -> None:
    limits = {"1": ClassLimits(max_sensitivity_drop=0.25, max_specificity_drop=0)}
    assert judged(gated(class_limits=limits))["passed"] is True
    limits = {"1": ClassLimits(max_sensitivity_drop=0.2)}
    assert judged(gated(class_limits=limits))["checks"][0]["value"] == 0.25
    assert judged(gated(class_limits=limits))["passed"] is False


def test_the_calibration_error_is_held_against_its_limit() -> None:
    assert judged(gated(max_calibration_error=0.08))["passed"] is True
    gate = judged(gated(max_calibration_error=0.05))
    assert (gate["passed"], gate["max_drop"]) == (False, None)
    unmeasured = judge(gated(max_calibration_error=0.5), Figures(None, {}, None, None), [], ())
    assert unmeasured is not None
    assert unmeasured["passed"] is False


def test_what_a_model_does_not_say_is_not_passed() -> None:
    recipe = gated(class_limits={"malignant": ClassLimits(min_sensitivity=0)})
    gate = judge(
        recipe, Figures(compare({"boxes": np.zeros((10, 1))}, {"boxes": np.zeros((10, 1))}), {}, None, None), [], ()
    )
    assert gate is not None
    assert gate["passed"] is False
    assert "scores" in gate["checks"][0]["reason"]


def test_what_to_try_next_is_calibration_with_the_class_or_the_model_itself() -> None:
    limits = {"malignant": ClassLimits(min_sensitivity=0.75)}
    assert judged(gated(class_limits=limits), stages=[stage("quantize")])["next"].startswith(
        "calibrate with samples of 'malignant' among the rest"
    )
    limits = {"malignant": ClassLimits(min_sensitivity=0.9)}
    assert (
        "the model as given misses the sensitivity of 'malignant' itself, with 0.75"
        in (judged(gated(class_limits=limits), stages=[stage("quantize")])["next"])
    )
    assert "recover" in judged(gated(max_drop=0), after=np.zeros(10, int), stages=[stage("prune-magnitude")])["next"]


def test_without_any_limit_there_is_no_gate() -> None:
    assert judge(gated(), Figures(None, {}, None, None), [], ()) is None


# What cannot be judged


def samples(labels: list[int] | None, classes: tuple[str, ...] = ()) -> Samples:
    count = 4 if labels is None else len(labels)
    return Samples({"x": np.zeros((count, 1))}, None if labels is None else np.array(labels), "test", classes)


@pytest.mark.parametrize(
    ("labels", "limits", "reason"),
    [
        ([0, 0, 0], {"malignant": {"min_sensitivity": 0.9}}, "sensitivity of the class 'malignant' cannot be judged"),
        ([0, 0, 0], {"malignant": {"max_sensitivity_drop": 1}}, "no sample of it among 3"),
        ([1, 1], {"malignant": {"min_specificity": 0.9}}, "no sample of any other class among 2"),
        (None, {"malignant": {"min_sensitivity": 0.9}}, "the gate limits classes, and there are no labelled"),
        ([0, 1], {"maligant": {"min_sensitivity": 0.9}}, "limits the class 'maligant', which is not known"),
        ([0, 1], {"2": {"min_sensitivity": 0.9}}, "limits the class '2', which is not known"),
    ],
)
def test_a_class_that_cannot_be_judged_is_refused_and_never_passed(
    labels: list[int] | None, limits: dict[str, dict[str, float]], reason: str
) -> None:
    recipe = Recipe("m.onnx", "t", (), class_limits={name: ClassLimits(**limit) for name, limit in limits.items()})
    with pytest.raises(BadInputError, match=reason) as error:
        require_judgeable(recipe, samples(labels, ("benign", "malignant")), 2)
    assert error.value.hint


def test_a_calibration_error_without_labels_is_refused() -> None:
    with pytest.raises(BadInputError, match="the gate limits the calibration error, and there are no labelled"):
        require_judgeable(gated(max_calibration_error=0.1), None, 2)


def test_names_of_the_data_and_of_the_recipe_may_not_differ() -> None:
    with pytest.raises(BadInputError, match=r"data\.classes is benign, malignant; test has a, b"):
        require_judgeable(gated(), samples([0, 1], ("a", "b")), 2)
    require_judgeable(gated(), samples([0, 1], ("benign", "malignant")), 2)


# Recipes


GATE = """
target = "cpu-generic-x86_64"
[model]
source = "m.onnx"
[data]
evaluation = "test.npz"
classes = ["benign", "malignant"]
[[pass]]
kind = "quantize"
[gate]
max_calibration_error = 0.05
[gate.classes.malignant]
min_sensitivity = 0.95
max_specificity_drop = 0
"""


def test_a_recipe_s_gate_limits_classes_by_name(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(GATE)
    read = read_recipe(tmp_path / "r.toml")
    assert read.class_limits == {"malignant": ClassLimits(min_sensitivity=0.95, max_specificity_drop=0.0)}
    assert (read.max_drop, read.max_calibration_error) == (None, 0.05)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("malignant]", "maligant]", "limits the class 'maligant', which is not known"),
        ("malignant]", "2]", "limits the class '2'"),
        ("min_sensitivity", "min_sensitvity", "no key 'min_sensitvity'"),
        ("0.95", "95", "min_sensitivity is 95"),
        ("0.95", "nan", "min_sensitivity is nan"),
        ("0.95", "true", "min_sensitivity is True"),
        ("= 0.05", "= 5", "max_calibration_error is 5"),
        ("min_sensitivity = 0.95\nmax_specificity_drop = 0", "", "has no limit"),
        ('"malignant"]', '"benign"]', "data.classes is"),
        (
            GATE[GATE.index("[gate.classes") :],
            "[gate.classes]\nmalignant = 0.9",
            r"gate.classes.malignant\] is not a table",
        ),
    ],
)
def test_a_fault_in_the_limits_of_classes_is_one_line_and_a_hint(
    old: str, new: str, reason: str, tmp_path: Path
) -> None:
    assert GATE.count(old) == 1
    (tmp_path / "r.toml").write_text(GATE.replace(old, new))
    with pytest.raises(BadInputError, match=reason) as error:
        read_recipe(tmp_path / "r.toml")
    assert error.value.hint


# The command


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("given")
    train, test = digits()
    trained_net(train, folder).write(folder / "digits.onnx")
    np.savez(folder / "calibration.npz", x=train.inputs["image"][:64])
    np.savez(folder / "test.npz", x=test.inputs["image"][:300], labels=test.first(300).labels)
    words = ("--calibration", "calibration.npz", "--evaluate", "test.npz")
    return [
        *("optimize", str(folder / "digits.onnx"), "--target", RTX),
        *(word if word.startswith("-") else str(folder / word) for word in words),
    ]


def test_the_command_refuses_by_class_with_exit_5_and_says_which(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = ["-o", str(tmp_path / "q.onnx"), "--json"]
    ruined = ["--prune", "magnitude=0.97", "--min-sensitivity", "1=0.99", "--min-specificity", "8=0"]
    assert main([*given, *ruined, *out]) == 5
    said = capsys.readouterr()
    document = json.loads(said.out)
    validate({key: value for key, value in document.items() if key not in ("artefact", "report")}, "optimize")
    assert "the accuracy gate does not hold: sensitivity of '1' is" in said.err
    assert "at least 99.00 % wanted" in said.err
    assert [(check["figure"], check["passed"]) for check in document["gate"]["checks"]] == [
        ("sensitivity", False),
        ("specificity", True),
    ]
    kept = ["--quantize", "int8", "--min-sensitivity", "8=0.5", "--max-calibration-error", "0.5"]
    assert main([*given, *kept, *out]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["gate"]["passed"] is True
    assert document["after"]["metrics"]["calibration_error"]["softmax"] is True


def test_a_class_that_the_model_does_not_have_is_refused_before_anything_is_done(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "q.onnx"
    assert main([*given, "--quantize", "int8", "--min-sensitivity", "10=0.9", "-o", str(out)]) == 3
    assert "the gate limits the class '10', which is not known" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("value", ["8", "=0.9", "8=90", "8=nan", "8="])
def test_a_limit_that_is_no_class_and_share_is_a_mistake_in_the_command(
    value: str, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*given, "--quantize", "int8", "--min-sensitivity", value]) == 2
    assert "a class, and a share between 0 and 1" in " ".join(capsys.readouterr().err.split())

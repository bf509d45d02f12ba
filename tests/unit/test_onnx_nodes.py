"""The ONNX backend tests through the agent's runtime, and the document that says how they went."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from tools.conformance.onnx_cases import Case, cases
from tools.conformance.onnx_nodes import DOCUMENT, OTHER_VALUES, Outcome, document, run_all, run_case

from tests.support import environment, models

ROW = re.compile(r"\| `(test_\w+)` \| (.*) \|")


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return run_all()


def named(text: str) -> dict[str, str]:
    """Tests that did not pass, and why, but for those whose outcome hangs on this machine's processor and locales."""
    rows = ROW.findall(text)
    return {name: why for name, why in rows if not why.startswith(OTHER_VALUES) and "locale" not in why}


def test_the_agent_fails_nothing_that_onnxruntime_passes(outcomes: list[Outcome]) -> None:
    assert [outcome for outcome in outcomes if outcome.verdict == "failed"] == []
    # What onnxruntime refuses grows with the distance between its version and onnx's; some it always takes.
    assert sum(outcome.verdict == "passed" for outcome in outcomes) > 100


def test_the_document_says_what_the_run_says(outcomes: list[Outcome]) -> None:
    written = DOCUMENT.read_text(encoding="utf-8")
    versions = f"onnx {onnx.__version__}, run through the agent's runtime with onnxruntime {onnxruntime.__version__}"
    if versions not in written:
        environment.lacks(
            "onnx-pinned",
            f"the document is of other versions than onnx {onnx.__version__} and {onnxruntime.__version__}",
        )
    assert named(document(outcomes)) == named(written)
    counts = [int(count) for count in re.findall(r"^\| [a-z ]+ \| (\d+) \|", written, re.MULTILINE)]
    assert len(counts) == 4
    assert sum(counts) == len(outcomes)
    assert sum(counts[1:]) == len(ROW.findall(written))


def adder_case(tmp_path: Path) -> Case:
    one = np.ones(3, dtype=np.float32)
    return Case("test_add", onnx.load(models.adder(tmp_path / "adder.onnx")), [([one, one], [one * 2])], 1e-3, 1e-7)


def test_a_case_that_onnxruntime_gets_wrong_too_is_not_called_a_failure_of_the_agent(tmp_path: Path) -> None:
    case = adder_case(tmp_path)
    path = tmp_path / "model.onnx"
    assert run_case(case, path).verdict == "passed"
    wrong = replace(case, runs=[(case.runs[0][0], case.runs[0][0])])
    assert run_case(wrong, path).verdict == "unsupported"
    assert run_case(wrong, path).reason.startswith(OTHER_VALUES)


def test_what_the_agent_refuses_and_onnxruntime_computes_is_a_failure(tmp_path: Path) -> None:
    case = adder_case(tmp_path)
    # onnxruntime broadcasts; the agent holds a model to the name that it gives two sizes.
    runs = [([np.ones(3, dtype=np.float32), np.ones(1, dtype=np.float32)], [np.full(3, 2, dtype=np.float32)])]
    outcome = run_case(replace(case, runs=runs), tmp_path / "model.onnx")
    assert (outcome.verdict, "disagree" in outcome.reason) == ("failed", True)


def test_every_kind_of_test_whose_data_ship_with_onnx_is_run() -> None:
    names = {case.name for case in cases()}
    assert {"test_add", "test_strnorm_model_nostopwords_nochangecase", "test_Conv2d", "test_operator_exp"} <= names

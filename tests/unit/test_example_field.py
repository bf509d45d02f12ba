"""The data of the examples industrial-monitoring and text-classification: formulas, and what is held out."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("torch")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def loaded(name: str) -> ModuleType:
    # Each example's module is called `model`: here it has a name of its own.
    own = f"example_{name.replace('-', '_')}"
    spec = importlib.util.spec_from_file_location(own, EXAMPLES / name / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[own] = module
    spec.loader.exec_module(module)
    return module


bearings = loaded("industrial-monitoring")
texts = loaded("text-classification")


def test_fault_rates_are_those_published_for_a_6205() -> None:
    # Case Western Reserve University's bearing data centre states them per turn; a ball strikes both races.
    rates = bearings.fault_rates_hz(bearings.Bearing(), 1.0)
    published = {"outer race": 3.5848, "inner race": 5.4152, "ball": 2 * 2.3567, "cage": 0.39828}
    assert rates == pytest.approx(published, rel=1e-3)


def test_the_strikes_of_an_outer_race_come_at_its_rate() -> None:
    random = np.random.default_rng(3)
    count = 20 * bearings.RATE_HZ
    struck = bearings._strikes("outer race", count, 25.0, 1.0, random) > 0
    # A strike between two samples is shared by them.
    strikes = np.count_nonzero(struck[1:] & ~struck[:-1])
    expected = bearings.fault_rates_hz(bearings.Bearing(), 25.0)["outer race"] * struck.size / bearings.RATE_HZ
    assert strikes == pytest.approx(expected, rel=0.02)


def test_held_out_conditions_are_none_of_those_seen() -> None:
    seen, unseen = bearings.SEEN, bearings.UNSEEN
    assert not set(seen.snrs_db) & set(unseen.snrs_db)
    assert not set(seen.loads) & set(unseen.loads)
    for low, high in unseen.speeds_hz:
        assert all(high < other_low or low > other_high for other_low, other_high in seen.speeds_hz)


def test_a_fault_is_not_heard_before_its_onset() -> None:
    quiet, faulty = (
        bearings.record(fault, 2.0, bearings.UNSEEN, np.random.default_rng(5), 1.0) for fault in ("healthy", "ball")
    )
    onset = bearings.RATE_HZ
    np.testing.assert_array_equal(quiet[:onset], faulty[:onset])
    assert np.abs(quiet[onset:] - faulty[onset:]).max() > 0.1


def test_what_a_library_is_called_is_masked() -> None:
    assert texts.words("NumPy: import numpy as np; np.dot") == [
        *("library", ":", "import", "library", "as", "library", ";", "library", ".", "dot")
    ]


def test_words_that_nobody_has_seen_have_a_bucket_and_none_is_padding() -> None:
    found = texts.tokens("zyxwv 7 !? " * 200)
    assert found.shape == (texts.LONGEST,)
    assert found.min() >= 1
    assert found.max() < 4096


@pytest.mark.slow
def test_no_text_and_no_module_is_both_learnt_and_asked() -> None:
    corpus = texts.corpus()
    halves = [[text for text in corpus if text.held_out is held_out] for held_out in (False, True)]
    assert all(len(half) > 500 for half in halves)
    for each in (lambda text: text.module, lambda text: " ".join(text.text.split()).lower()):
        learnt, asked = ({each(text) for text in half} for half in halves)
        assert not learnt & asked
    for label in range(len(texts.LIBRARIES)):
        assert sum(text.label == label for text in halves[1]) > 50

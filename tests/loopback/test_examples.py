"""The worked examples, each by its README's command as written; and what their READMEs say of the results."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the examples train networks: needs kedge[optimize]")

from tools import examples

from tests.support.children import processes_under
from tests.support.environment import lacks

ROOT = examples.EXAMPLES.parent
# Three minutes on a quiet machine; tests run beside one another.
LONGEST_S = 900


def set_up() -> None:
    """Skip where `make` would install something first: tests fetch nothing."""
    if importlib.util.find_spec("skimage") is None:
        lacks("examples", "no scikit-image in this environment (pip install 'kedge[examples]')")
    stamp = ROOT / ".venv" / ".examples"
    if Path(sys.prefix).resolve() != ROOT / ".venv" or not stamp.is_file():
        lacks("examples", "these tests do not run in the environment that `make example-…` uses")
    said = subprocess.run(["make", "-q", ".venv/.examples"], cwd=ROOT, capture_output=True, check=False)
    if said.returncode:
        lacks("examples", ".venv is older than what pyproject.toml asks for (make .venv/.dev)")


def changes() -> bytes:
    """What git sees that is not committed among the examples."""
    return subprocess.run(
        ["git", "status", "--porcelain", "examples"], cwd=ROOT, capture_output=True, check=False
    ).stdout


@pytest.mark.slow
@pytest.mark.timeout(LONGEST_S + 60)
@pytest.mark.parametrize("name", examples.names())
def test_the_readme_s_command_gives_the_readme_s_figures_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    set_up()
    temporary, home, out = tmp_path / "tmp", tmp_path / "home", tmp_path / "result.json"
    temporary.mkdir()
    home.mkdir()
    before = changes()
    xdg = ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME")
    inherited = {key: value for key, value in os.environ.items() if key not in xdg}
    done = subprocess.run(
        ["sh", "-c", examples.command_of(name)],
        cwd=ROOT,
        # make takes OUT from the environment: the command itself stays as it is written.
        env={**inherited, "TMPDIR": str(temporary), "HOME": str(home), "OUT": str(out)},
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
    if done.returncode != 0:  # an assertion's message would be cut
        pytest.fail(f"it ended with {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    assert "Traceback" not in done.stderr
    fresh = json.loads(out.read_text(encoding="utf-8"))
    assert examples.differences(examples.committed(name), fresh) == []
    end = time.monotonic() + 10
    while processes_under(temporary) and time.monotonic() < end:
        time.sleep(0.1)
    assert processes_under(temporary) == []
    assert [path.name for path in temporary.iterdir()] == []
    assert [path.name for path in home.iterdir()] == []
    assert changes() == before, "the example wrote into the repository"


def test_every_example_has_a_result_and_every_readme_shows_what_it_says() -> None:
    assert examples.measured() == examples.names()
    assert examples.check() == []


@pytest.mark.parametrize("name", examples.names())
def test_an_example_s_readme_says_what_its_data_are_before_anything_else_and_names_one_command(name: str) -> None:
    text = (examples.EXAMPLES / name / "README.md").read_text(encoding="utf-8")
    assert examples.command_of(name) == f"make example-{name}"
    opening = text[: text.index("```sh")].lower()
    licensed = any(word in opening for word in ("licen", "cc0", "bsd", "public domain"))
    assert licensed or "synthetic" in opening, "real data: which, under which licence; or synthetic"


def result(**changes: Any) -> dict[str, Any]:
    figures = [
        {"name": "accuracy", "value": 0.95, "unit": "share", "compare": {"kind": "abs", "tolerance": 0.02}, "note": ""},
        {"name": "bytes", "value": 200, "unit": "bytes", "compare": {"kind": "rel", "tolerance": 0.1}, "note": ""},
        {"name": "late", "value": 0, "unit": "", "compare": {"kind": "abs", "tolerance": 0}, "note": ""},
        {"name": "p99", "value": 3.0, "unit": "ms", "compare": None, "note": ""},
    ]
    for figure in figures:
        figure["value"] = changes.get(figure["name"], figure["value"])
    return {"figures": figures}


def test_a_fresh_result_at_the_edge_of_its_tolerance_holds_and_times_are_not_compared() -> None:
    assert examples.differences(result(), result(accuracy=0.93, bytes=220, p99=900.0)) == []


@pytest.mark.parametrize(("name", "value"), [("accuracy", 0.929), ("bytes", 179), ("late", 1), ("accuracy", None)])
def test_a_figure_beyond_its_tolerance_is_named_with_both_values(name: str, value: float | None) -> None:
    found = examples.differences(result(), result(**{name: value}))
    assert len(found) == 1
    assert found[0].startswith(f"{name} was ")


def test_a_figure_that_is_gone_or_new_is_a_difference() -> None:
    fresh = copy.deepcopy(result())
    fresh["figures"][0]["name"] = "precision"
    assert sorted(examples.differences(result(), fresh)) == ["accuracy is not measured any more", "precision is new"]


def test_what_was_lost_is_told_in_points_and_no_per_cent_of_what_there_was() -> None:
    assert examples.figure_text(0.0016, "points") == "0.16 points"
    assert examples.tolerance_text({"kind": "abs", "tolerance": 0.01}, "points") == "± 1 points"


def test_a_block_says_the_figure_its_tolerance_and_where_it_was_measured() -> None:
    conditions = {"processor": "a CPU", "cores": 2, "python": "3.11.7", "onnxruntime": "1.32.0", "torch": None}
    document = {**result(), "seconds": 61.2, "kedge": "0.1.0", "measured": "2026-11-26", "conditions": conditions}
    block = examples.rendered(document)
    assert "| accuracy | 95.00 % | ± 2 points |  |" in block
    assert "| late | 0 | exactly |  |" in block
    assert "| p99 | 3 ms | not compared |  |" in block
    assert "In 61 s on a CPU, 2 cores; kedge 0.1.0, Python 3.11.7, onnxruntime 1.32.0; 2026-11-26." in block

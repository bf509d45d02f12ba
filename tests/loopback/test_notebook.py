"""The quickstart's notebook: every cell runs, the accuracy is the one that is shown, and nothing is left."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tools.notebook import NOTEBOOK, execute, tagged

pytest.importorskip("nbclient", reason="the notebook is executed: needs kedge[dev]")
pytest.importorskip("ipykernel", reason="the notebook is executed: needs kedge[dev]")
pytest.importorskip("torch", reason="the notebook trains a network: needs kedge[optimize]")


def accuracy_of(printed: str) -> float:
    found = re.search(r"(0\.\d{4}) of 360 images right, on the device", printed)
    assert found is not None, printed
    return float(found[1])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_cell_runs_the_accuracy_is_the_one_that_is_shown_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nbformat

    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = sorted(NOTEBOOK.parent.iterdir())
    book = execute()
    shown = nbformat.read(NOTEBOOK, as_version=4)
    assert accuracy_of(tagged(book, "accuracy")) == pytest.approx(accuracy_of(tagged(shown, "accuracy")), abs=0.02)
    assert tagged(book, "end").split() == ["left", "running:", "0", "left", "on", "disk:", "False"]
    assert not list(tmp_path.glob("kedge-*"))
    assert sorted(NOTEBOOK.parent.iterdir()) == before


def test_what_is_shown_is_small_whole_and_of_no_machine_in_particular() -> None:
    import nbformat

    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 300_000
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    assert not [output for output in outputs if output.output_type == "error"]
    assert not re.search(r"(/home/|/root/|/tmp/|/work/)", text)

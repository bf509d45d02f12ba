"""Event files of searches, read back as TensorBoard reads them; and where they are found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kedge.cli import main
from kedge.optimize.events import Events, events_folder
from kedge.optimize.prune.shrink import Shrink
from kedge.optimize.quantize.step import Quantize
from tests.support.digits import digits, residual_net, trained_net, work_on

pytest.importorskip("tensorboard", reason="reading event files back needs tensorboard: kedge[dev]")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars of one run by their name: steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def plugins(folder: Path) -> dict[str, Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return dict(events.summary_metadata)


def runs(folder: Path, step: str) -> list[Path]:
    return sorted((folder / "events" / "model").glob(f"{step}-*"))


@pytest.mark.slow
def test_a_search_writes_a_step_for_each_trial_and_the_best_until_then(tmp_path: Path) -> None:
    train, _ = digits()
    graph = trained_net(train, tmp_path / "net")
    step = Quantize(precision="auto", calibrator="mse", rounding="nearest", trials=6, max_drop=0.02)
    result = step.apply(graph, work_on(graph, train.first(64), tmp_path, train=train))
    trials = result.evidence["search"]["trials"]
    (folder,) = runs(tmp_path, "mixes")
    found = read(folder)
    assert found["mix/drop"] == [(trial["number"], pytest.approx(trial["drop"], abs=1e-6)) for trial in trials]
    assert {step for step, _ in found["mix/size"]} == {trial["number"] for trial in trials}
    # What nothing measured is left out, and no figure stands in for it.
    assert "mix/ms" not in found
    chosen = result.evidence["search"]["chosen"]
    last = found["best/size"][-1]
    assert last == (trials[-1]["number"], dict(found["mix/size"])[chosen])
    # A trial is a row of HPARAMS, with how many layers have which precision.
    rows = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert rows == [f"trial-{trial['number']:03}" for trial in trials]
    assert any(name.startswith("_hparams_") for name in plugins(folder / rows[0]))
    assert set(read(folder / rows[0])) == {"trial/mix/drop", "trial/mix/time", "trial/mix/size"}


@pytest.mark.slow
def test_a_search_that_goes_on_adds_to_its_events_and_one_that_begins_anew_begins_them_anew(tmp_path: Path) -> None:
    train, _ = digits()
    graph = residual_net()
    work = work_on(graph, train.first(64), tmp_path, train=train.first(200))
    step = {"precision": "auto", "calibrator": "min-max", "rounding": "nearest", "max_drop": 0.02}
    Quantize(**step, trials=4).apply(graph, work)
    (folder,) = runs(tmp_path, "mixes")
    assert len(read(folder)["mix/drop"]) == 4
    # The journal of the first is there: four more trials are judged.
    Quantize(**step, trials=6).apply(graph, work)
    assert [step for step, _ in read(folder)["mix/drop"]] == [0, 1, 2, 3, 4, 5]
    (tmp_path / "trials.journal").unlink()
    Quantize(**step, trials=4).apply(graph, work)
    assert [step for step, _ in read(folder)["mix/drop"]] == [0, 1, 2, 3]


def test_pruning_writes_a_step_for_each_mix_of_blocks_and_channels(tmp_path: Path) -> None:
    train, _ = digits()
    graph = residual_net(batch=1)
    result = Shrink(macs=0.7, mixes=(0.0, 1.0), rounds=1, samples=16).apply(
        graph, work_on(graph, train.first(32), tmp_path)
    )
    candidates = result.changed["candidates"]
    (folder,) = runs(tmp_path, "prune-structured")
    found = read(folder)
    assert len(candidates) >= 1
    assert found["candidate/output_error"] == [
        (index, pytest.approx(each["output_error"], rel=1e-5)) for index, each in enumerate(candidates)
    ]
    assert "candidate/ms" not in found


def test_without_a_library_to_write_them_a_note_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    notes: list[str] = []
    graph = residual_net()
    events = Events(work_on(graph, None, tmp_path), "recover", "0" * 64, notes, resumed=False)
    events.try_out(0, {"int8": 3}, {"drop": 0.1})
    events.close()
    assert notes == ["tensorboardX is not installed: no event files were written"]
    assert not (tmp_path / "events").exists()


def test_the_folder_that_tensorboard_is_to_open_is_one_command_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run = events_folder() / "digits" / "recover-0123456789ab"
    run.mkdir(parents=True)
    (run / "events.out.tfevents.1.host").touch()
    assert main(["cache", "events"]) == 0
    assert capsys.readouterr().out.strip() == str(events_folder())
    assert main(["cache", "events", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == ["digits/recover-0123456789ab"]

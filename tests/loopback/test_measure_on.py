"""A search for mixed precision that asks a device how long each mix takes: the real agent, as a child process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from kedge.cli import main
from kedge.errors import IncompatibleError
from kedge.fleet.probe import device_probe
from kedge.targets import host_target
from tests.support import models
from tests.support.digits import digits, trained_net
from tests.support.schemas import validate


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_mixes_are_ranked_by_what_the_device_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, evaluation = digits()
    trained_net(train, tmp_path).write(tmp_path / "m.onnx")
    for name, samples in (("train", train.first(200)), ("test", evaluation.first(200))):
        np.savez(tmp_path / f"{name}.npz", x=samples.inputs["image"], labels=samples.labels)
    arguments = [
        *("optimize", str(tmp_path / "m.onnx"), "--target", host_target().name, "-o", str(tmp_path / "q.onnx")),
        *("--train", str(tmp_path / "train.npz"), "--evaluate", str(tmp_path / "test.npz"), "--json"),
        *("--quantize", "auto", "--calibrator", "mse", "--rounding", "nearest", "--trials", "2", "--max-drop", "0.3"),
    ]
    assert main([*arguments, "--measure-on", "local"]) == 0
    document = json.loads(capsys.readouterr().out)
    validate({key: value for key, value in document.items() if key not in ("artefact", "report")}, "optimize")
    found = document["search"]
    assert len(found["trials"]) == 2
    for trial in found["trials"]:
        assert trial["cost_unit"] == "ms on the device"
        assert 0 < trial["measured_ms"] == trial["cost"] < 1000
    fitting = [trial for trial in found["trials"] if trial["feasible"]]
    chosen = next(trial for trial in fitting if trial["number"] == found["chosen"])
    assert chosen["measured_ms"] == min(trial["measured_ms"] for trial in fitting)


@pytest.mark.slow
def test_models_are_timed_on_a_device_under_names_of_their_own(tmp_path: Path) -> None:
    target = host_target().name
    small = models.classifier(tmp_path / "small.onnx")
    large = models.classifier(tmp_path / "fixed.onnx", batch=64)
    with device_probe("local", target) as probe:
        assert probe.name == "local"
        found = probe.measure({"small": small, "large": large})
        # Another model in the first one's place, as a search asks.
        again = probe.measure({"large": large})
    assert found.keys() == {"small", "large"}
    assert again["large"].p50_ms > found["small"].p50_ms > 0
    assert found["large"].p50_ms > found["small"].p50_ms
    assert found["small"].p90_ms >= found["small"].p50_ms
    assert "batch 64" in again["large"].conditions
    assert "compute on local" in found["small"].conditions


def test_a_model_for_another_kind_of_device_is_refused_there(tmp_path: Path) -> None:
    other = next(name for name in ("cpu-generic-aarch64", "cpu-generic-x86_64") if name != host_target().name)
    model = models.classifier(tmp_path / "m.onnx")
    with device_probe("local", other) as probe, pytest.raises(IncompatibleError):
        probe.measure({"m": model})

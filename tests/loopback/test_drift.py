"""A quantised model is calibrated, released and served; the device tells when its inputs are no longer the same."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kedge.bench.batches import infer_batches
from kedge.build.release import BuildOptions, build_release
from kedge.deploy.push import deploy
from kedge.optimize.passes import make_pass
from kedge.optimize.pipeline import optimise
from kedge.optimize.recipe import Data, Recipe
from kedge.optimize.work import silent
from kedge.targets import host_target
from kedge.transport.client import AgentClient
from kedge.transport.local import LocalAgent
from tests.support.digits import digits, residual_net


def test_shifted_inputs_show_in_statistics_and_metrics_and_usual_ones_do_not(
    local_agent: LocalAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    train, evaluation = digits()
    residual_net().write(tmp_path / "digits.onnx")
    np.save(tmp_path / "calibration.npy", train.first(64).inputs["image"])
    target = host_target()
    passes = (make_pass("quantize", {}),)
    recipe = Recipe(
        str(tmp_path / "digits.onnx"), target.name, passes, Data(calibration=str(tmp_path / "calibration.npy"))
    )
    model = optimise(recipe, tmp_path / "int8.onnx", silent).model
    images = evaluation.inputs["image"][:16]
    built = build_release(model, target, tmp_path / "r", BuildOptions("digits"), {"image": images})
    deploy(local_agent, built.release)
    client = AgentClient(local_agent)

    def drift(values: int) -> dict[str, Any]:
        """The report, when so many values were looked at: a request is counted after its response is sent."""
        until = time.monotonic() + 30
        while True:
            (report,) = client.get("/v2/models/digits/stats")["model_stats"][0]["drift"]
            if report["values"] == values or time.monotonic() > until:
                return dict(report)
            time.sleep(0.01)

    def metric(name: str) -> float:
        lines = bytes(client.get_bytes("/metrics", limit_bytes=1 << 20)).decode().splitlines()
        (line,) = (line for line in lines if line.startswith(f"{name}{{"))
        assert 'input="image"' in line
        return float(line.rsplit(" ", 1)[1])

    # What the gate ran on is no request.
    assert (drift(0)["values"], drift(0)["share"]) == (0, None)
    for image in images:
        infer_batches(client, "digits", {"image": image[None]})
    usual = drift(images.size)
    assert (usual["name"], usual["min"], usual["max"], usual["source"]) == ("image", 0, 1, "calibration data")
    assert (usual["values"], usual["outside"], usual["share"], usual["warning"]) == (images.size, 0, 0, None)
    assert metric("kedge_input_drift_ratio") == 0
    for image in images:
        infer_batches(client, "digits", {"image": image[None] - np.float32(0.25)})
    shifted = drift(2 * images.size)
    outside = int(np.count_nonzero(images < 0.25))
    assert (shifted["values"], shifted["outside"]) == (2 * images.size, outside)
    assert shifted["warning"].endswith(
        "of the values of 'image' lie outside what was calibrated: INT8 accuracy is unproven"
    )
    assert metric("kedge_input_values_total") == 2 * images.size
    assert metric("kedge_input_values_outside_total") == outside
    assert metric("kedge_input_drift_ratio") == outside / (2 * images.size)
    client.close()

"""Ranges of inputs on their way: from calibration, or from another's quantiser, into the manifest, to the counter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorShapeProto, helper

from kedge.build.cache import CachedEngine
from kedge.build.release import BuildOptions, build_release
from kedge.deploy.engines import complete
from kedge.model.calibrated import observed_ranges, stated_inputs
from kedge.model.graph import Graph
from kedge.model.notes import write_notes
from kedge.model.onnx_io import read_model
from kedge.model.samples import Samples
from kedge.optimize.passes import make_pass
from kedge.optimize.pipeline import optimise
from kedge.optimize.recipe import Data, Recipe
from kedge.optimize.work import silent
from kedge.release.bundle import Release
from kedge.targets import load_target
from kedge_agent.formats.artefact import CALIBRATION_DATA, QUANTIZER, CalibratedRange
from kedge_agent.formats.passport import Passport
from kedge_agent.measure.drift import DriftCounter
from tests.support.digits import CPU, RTX, digits, trained_net
from tests.support.qdq import Net

ORIN = "orin-nano-8gb"
INT8 = ("quantize", {"calibrator": "mse"})


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@dataclass(frozen=True)
class Given:
    """A trained classifier of digits, calibration data from 0 to 0.75, and an INT8 model that kedge made of them."""

    folder: Path
    float_model: Path
    int8_model: Path
    evaluation: Samples


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp("ranges")
    train, evaluation = digits()
    trained_net(train, folder).write(folder / "digits.onnx")
    # The brightest of 64 images is 0.75: not a figure that any default would give.
    np.save(folder / "calibration.npy", train.first(64).inputs["image"] * np.float32(0.75))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        quantised(folder / "digits.onnx", folder, INT8)
    dimmed = Samples({"image": evaluation.inputs["image"] * np.float32(0.75)}, evaluation.labels)
    return Given(folder, folder / "digits.onnx", folder / "int8.onnx", dimmed)


def quantised(model: Path, folder: Path, *steps: tuple[str, dict[str, Any]], out: str = "int8.onnx") -> Path:
    """What kedge optimize writes; with no steps also without data."""
    data = Data(calibration=str(folder / "calibration.npy")) if steps else Data()
    passes = tuple(make_pass(kind, parameters) for kind, parameters in steps)
    return optimise(Recipe(str(model), CPU, passes, data), folder / out, silent).model


def released(model: Path, folder: Path, target: str = CPU, **options: Any) -> Release:
    return build_release(model, load_target(target), folder, BuildOptions("digits", **options)).release


def ranges(release: Release) -> dict[str, CalibratedRange]:
    return dict(release.manifest.artefacts[0].calibrated)


def without_notes(model: Path, out: Path) -> Path:
    proto = onnx.load(model)
    write_notes(proto, {})
    onnx.save(proto, out)
    return out


OBSERVED = {"image": CalibratedRange(0.0, 0.75, CALIBRATION_DATA)}


# From calibration


def test_what_calibration_observed_is_in_the_manifest(given: Given, tmp_path: Path) -> None:
    release = released(given.int8_model, tmp_path / "r")
    assert release.manifest.artefacts[0].precision == "int8"
    assert ranges(release) == OBSERVED
    assert "calibrated" not in release.manifest.provenance
    assert release.manifest.provenance["optimize"]["passes"][0]["kind"] == "quantize"


def test_inputs_that_are_brighter_than_calibration_are_counted_outside_and_others_are_not(
    given: Given, tmp_path: Path
) -> None:
    artefact = released(given.int8_model, tmp_path / "r").manifest.artefacts[0]
    usual, shifted = DriftCounter(artefact), DriftCounter(artefact)
    images = given.evaluation.inputs["image"]
    for image in images:
        usual.count({"image": image[None]})
        shifted.count({"image": image[None] + np.float32(0.3)})
    (before,), (after,) = usual.report(), shifted.report()
    assert (before["outside"], before["warning"]) == (0, None)
    assert after["values"] == images.size
    assert after["outside"] == np.count_nonzero(images + np.float32(0.3) > 0.75)
    assert after["warning"] == (
        f"{100 * after['share']:.3g} % of the values of 'image' lie outside what was calibrated: "
        "INT8 accuracy is unproven"
    )


@pytest.mark.parametrize("pack", [True, False])
def test_a_packed_model_keeps_its_range(given: Given, tmp_path: Path, pack: bool) -> None:
    release = released(given.int8_model, tmp_path / "r", pack=pack)
    assert release.manifest.artefacts[0].encoding == "raw" or pack
    assert ranges(release) == OBSERVED


def test_an_engine_keeps_the_range_of_the_model_it_was_compiled_from(given: Given, tmp_path: Path) -> None:
    noted = onnx.load(given.float_model)
    write_notes(noted, {"calibrated": {"image": {"min": "0.0", "max": "0.75"}}})
    onnx.save(noted, tmp_path / "noted.onnx")
    planned = released(tmp_path / "noted.onnx", tmp_path / "planned", ORIN, on_device=True)
    assert planned.manifest.artefacts[0].build is not None
    assert ranges(planned) == OBSERVED
    (tmp_path / "engine").write_bytes(b"ftrt")
    passport = Passport("tensorrt", "10.3.0.30", "linux", "aarch64", ("8.7",))
    engine = CachedEngine("k", tmp_path / "engine", "0" * 64, {}, passport, "0" * 64, 4, {}, 0.0)
    whole = complete(planned, engine, tmp_path / "whole")
    assert whole.manifest.artefacts[0].passport == passport
    assert ranges(whole) == OBSERVED


def test_a_second_optimisation_without_data_keeps_what_the_first_observed(given: Given, tmp_path: Path) -> None:
    noted = onnx.load(given.float_model)
    write_notes(noted, {"calibrated": {"image": {"min": "0.0", "max": "0.75"}}})
    onnx.save(noted, tmp_path / "noted.onnx")
    again = quantised(tmp_path / "noted.onnx", tmp_path, out="again.onnx")
    assert ranges(released(again, tmp_path / "r")) == OBSERVED


def test_observed_ranges_are_exact_and_only_of_finite_numbers() -> None:
    samples = Samples(
        {
            "f": np.array([[0.1], [-3e-39]], np.float32),
            "i": np.array([[5], [2**63 - 1]], np.int64),
            "b": np.array([[True], [False]]),
            "h": np.array([[0.5], [np.inf]], np.float16),
            "n": np.array([[0.5], [np.nan]]),
            "text": np.array([["a"], ["b"]], object),
        }
    )
    found = observed_ranges(samples)
    assert set(found) == {"f", "i", "b"}
    assert np.float32(found["f"]["max"]) == np.float32(0.1)
    assert np.float32(found["f"]["min"]) == np.float32(-3e-39)
    assert found["i"] == {"min": "5", "max": str(2**63 - 1)}
    assert found["b"] == {"min": "0", "max": "1"}


@pytest.mark.parametrize(
    "note",
    [
        {"image": {"min": "1", "max": "0"}},
        {"image": {"min": "0"}},
        {"image": {"min": "0", "max": "NaN"}},
        {"image": {"min": 0, "max": 1}},
        {"image": {"min": "0", "max": "1", "mean": "0"}},
        {"image": "0 to 1"},
        {"other": {"min": "0", "max": "1"}},
    ],
)
def test_a_note_that_is_no_range_of_an_input_is_passed_over(given: Given, tmp_path: Path, note: Any) -> None:
    proto = onnx.load(given.float_model)
    helper.set_model_props(proto, {"kedge.calibrated": json.dumps(note)})
    onnx.save(proto, tmp_path / "m.onnx")
    assert ranges(released(tmp_path / "m.onnx", tmp_path / "r")) == {}


# From a quantiser


def stated(graph: Graph, folder: Path) -> dict[str, Any] | None:
    """The range of a graph's one input, as the manifest would state it."""
    graph.proto.graph.output[0].type.tensor_type.shape.dim.extend([TensorShapeProto.Dimension()] * 4)
    graph.write(folder / "m.onnx")
    (entry,) = stated_inputs(folder / "m.onnx", read_model(folder / "m.onnx"))
    return entry.get("calibrated")


def test_a_float_model_without_calibration_has_no_range(given: Given, tmp_path: Path) -> None:
    assert ranges(released(given.float_model, tmp_path / "r")) == {}


def test_a_model_that_was_quantised_elsewhere_has_the_range_that_its_quantiser_holds(
    given: Given, tmp_path: Path
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.images = iter(np.load(given.folder / "calibration.npy"))

        def get_next(self) -> Any:
            image = next(self.images, None)
            return None if image is None else {"image": image[None]}

    quantize_static(str(given.float_model), str(tmp_path / "q.onnx"), Reader(), quant_format=QuantFormat.QDQ)
    artefact = released(tmp_path / "q.onnx", tmp_path / "r").manifest.artefacts[0]
    assert artefact.precision == "int8"
    found = artefact.calibrated["image"]
    step = 0.75 / 255
    assert found.source == QUANTIZER
    # Zero to the brightest, and half a step at either end: there is no more error there than within.
    assert (found.min, found.max) == pytest.approx((-step / 2, 0.75 + step / 2), rel=1e-5)
    counter = DriftCounter(artefact)
    counter.count({"image": given.evaluation.inputs["image"][:4]})
    assert counter.report()[0]["outside"] == 0
    counter.count({"image": np.full((4, 1, 8, 8), 0.76, np.float32)})
    assert counter.report()[0]["outside"] == 256


@pytest.mark.parametrize(
    ("kind", "zero", "low", "high"),
    [
        ("int8", 0, -12.85, 12.75),
        ("uint8", 128, -12.85, 12.75),
        ("uint8", 0, -0.05, 25.55),
        ("int16", 0, -3276.85, 3276.75),
        ("fp8", 0, -46.4, 46.4),
        ("int4", 0, -0.85, 0.75),
    ],
)
def test_a_range_is_what_the_type_holds_at_its_scale_and_zero_point(
    kind: str, zero: int, low: float, high: float, tmp_path: Path
) -> None:
    net = Net()
    found = stated(net.graph(net.pair("x", scale=0.1, zero=zero, kind=kind)), tmp_path)
    assert found is not None
    assert (float(found["min"]), float(found["max"])) == pytest.approx((low, high), rel=1e-6)


def test_operators_that_only_move_values_hide_no_quantiser_and_the_narrowest_of_several_counts(tmp_path: Path) -> None:
    net = Net()
    moved = net.add("Transpose", net.add("Identity", "x"), perm=[0, 2, 3, 1])
    net.pair("x", scale=0.3)
    found = stated(net.graph(net.pair(moved, scale=0.1)), tmp_path)
    assert found is not None
    assert float(found["max"]) == pytest.approx(12.75)


def test_no_quantiser_behind_an_operator_that_computes_speaks_for_the_input(tmp_path: Path) -> None:
    net = Net()
    assert stated(net.graph(net.pair(net.add("Relu", "x"))), tmp_path) is None


def test_scales_by_channel_make_no_one_range(tmp_path: Path) -> None:
    net = Net()
    assert stated(net.graph(net.pair("x", scale=np.linspace(0.1, 0.2, 16), axis=1)), tmp_path) is None


def test_calibration_goes_before_the_quantiser(given: Given, tmp_path: Path) -> None:
    net = Net()
    graph = net.graph(net.pair("x"))
    write_notes(graph.proto, {"calibrated": {"x": {"min": "-1.0", "max": "1.0"}}})
    assert stated(graph, tmp_path) == {"min": "-1.0", "max": "1.0", "source": CALIBRATION_DATA}


def test_the_target_s_scheme_gives_the_range_when_the_note_is_lost(given: Given, tmp_path: Path) -> None:
    data = Data(calibration=str(given.folder / "calibration.npy"))
    recipe = Recipe(str(given.float_model), RTX, (make_pass(*INT8),), data)
    made = optimise(recipe, tmp_path / "rtx.onnx", silent).model
    bare = without_notes(made, tmp_path / "bare.onnx")
    (entry,) = stated_inputs(bare, read_model(bare))
    assert entry["calibrated"]["source"] == QUANTIZER
    assert 0.6 < float(entry["calibrated"]["max"]) < 0.78

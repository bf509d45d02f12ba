"""Values of live inputs outside of what was calibrated: what counts, what is looked at, what is said."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import numpy as np
import pytest

from kedge_agent.formats.artefact import CALIBRATION_DATA, Artefact, CalibratedRange
from kedge_agent.formats.tensors import DATATYPES, TensorSpec
from kedge_agent.measure import drift
from kedge_agent.measure.drift import DRIFT_SHARE, DriftCounter


def artefact(datatype: str = "FP32", *, low: float = 0, high: float = 1, precision: str = "int8") -> Artefact:
    return Artefact(
        runtime="onnxruntime",
        file="model.onnx",
        precision=precision,
        inputs=(TensorSpec("image", datatype, (-1,)), TensorSpec("other", "FP32", (-1,))),
        outputs=(),
        calibrated={"image": CalibratedRange(low, high, CALIBRATION_DATA)},
    )


def counted(values: Any, datatype: str = "FP32", **more: Any) -> dict[str, Any]:
    """The report of the input `image` after one request."""
    counter = DriftCounter(artefact(datatype, **more))
    counter.count({"image": np.asarray(values, DATATYPES[datatype]), "other": np.full(4, 1e9, np.float32)})
    (report,) = counter.report()
    return report


def test_the_report_says_what_was_seen_and_what_of_it_lay_outside() -> None:
    assert counted([0, 0.5, 1, 1.5]) == {
        "name": "image",
        "min": 0,
        "max": 1,
        "source": "calibration data",
        "values": 4,
        "outside": 1,
        "share": 0.25,
        "warning": "25 % of the values of 'image' lie outside what was calibrated: INT8 accuracy is unproven",
    }


def test_nothing_seen_is_no_share_and_no_warning() -> None:
    (report,) = DriftCounter(artefact()).report()
    assert (report["values"], report["outside"], report["share"], report["warning"]) == (0, 0, None, None)
    assert counted([])["share"] is None


def test_the_ends_of_the_range_are_inside() -> None:
    assert counted([0.1, 0.7], low=float(np.float32(0.1)), high=float(np.float32(0.7)))["outside"] == 0
    # What is written with fewer digits than the type has means the nearest value of that type.
    assert counted([0.1, 0.7], low=0.1, high=0.7)["outside"] == 0
    assert counted([0.1, 0.7], "FP16", low=0.1, high=0.7)["outside"] == 0
    beyond = [np.nextafter(np.float32(0), np.float32(-1)), np.nextafter(np.float32(1), np.float32(2))]
    assert counted(beyond)["outside"] == 2


def test_nan_and_infinity_are_outside() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert counted([np.nan, np.inf, -np.inf, 0.5])["outside"] == 3
        signalling = np.array([0x7F800001, 0xFFA00000], "<u4").view("<f4")
        assert counted(signalling)["outside"] == 2
        # A range that the type cannot hold: all that is finite lies inside.
        assert counted([65504, np.inf, -np.inf], "FP16", low=-1e9, high=1e9)["outside"] == 2


@pytest.mark.parametrize(
    ("datatype", "values", "low", "high", "outside"),
    [
        ("UINT8", [0, 9, 10, 200, 201], 10, 200, 3),
        ("UINT8", [0, 255], -1e9, 1e9, 0),
        ("INT8", [-128, -1, 0, 127], -0.5, 126.5, 3),
        ("INT64", [-(2**63), 0, 29_999, 30_000, 2**63 - 1], 0, 29_999, 3),
        ("UINT64", [0, 2**64 - 1], 0, 1e30, 0),
        ("BOOL", [False, True, True], 0, 0, 2),
        ("BOOL", [False, True], 0, 1, 0),
        ("FP64", [-1e300, 0, 1e300], -1e300, 1e299, 1),
    ],
)
def test_every_numeric_type_is_compared_as_itself(
    datatype: str, values: list[Any], low: float, high: float, outside: int
) -> None:
    assert counted(values, datatype, low=low, high=high)["outside"] == outside


def test_an_input_without_a_range_is_not_counted_and_a_model_without_any_costs_nothing() -> None:
    assert [report["name"] for report in DriftCounter(artefact()).report()] == ["image"]
    bare = DriftCounter(Artefact("onnxruntime", "m", "fp32", artefact().inputs, ()))
    bare.count({})
    assert bare.report() == []


def test_a_range_of_an_input_that_the_loaded_model_lacks_or_holds_text_in_is_left_out() -> None:
    specs = (TensorSpec("image", "BYTES", (-1,)),)
    ranges = {"image": CalibratedRange(0, 1, CALIBRATION_DATA), "gone": CalibratedRange(0, 1, CALIBRATION_DATA)}
    counter = DriftCounter(Artefact("onnxruntime", "m", "int8", specs, (), calibrated=ranges))
    counter.count({"image": np.array([b"text"], object)})
    assert counter.report() == []


@pytest.mark.parametrize("size", [1, 256, 257, 1000, 150_528])
def test_at_most_256_values_of_a_request_are_looked_at_spread_over_the_whole_tensor(size: int) -> None:
    values = np.zeros(size)
    values[: size // 4] = 9
    report = counted(values)
    assert report["values"] == size if size <= 256 else 128 <= report["values"] <= 256
    assert report["share"] == pytest.approx(0.25 if size > 1 else 0, abs=0.01)


@pytest.mark.parametrize("others", [0, 1, 2])
@pytest.mark.parametrize("position", [0, 1, 777, 2558, 2559])
def test_every_position_is_looked_at_in_time_also_where_shapes_alternate(position: int, others: int) -> None:
    values = np.zeros(2560, np.float32)
    values[position] = 9
    counter = DriftCounter(artefact())
    for _ in range(30):
        counter.count({"image": values})
        for _ in range(others):
            counter.count({"image": np.zeros(3, np.float32)})
    report = counter.report()[0]
    # One in ten values is looked at, so in 30 requests each has its turn three times.
    assert 1 <= report["outside"] <= 5
    assert report["values"] == 30 * 256 + 30 * others * 3


def test_the_share_follows_what_is_seen_now_and_the_counts_only_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "_WINDOW", 1000)
    counter = DriftCounter(artefact())
    for _ in range(1000):
        counter.count({"image": np.full(100, 0.5, np.float32)})
    assert counter.report()[0]["warning"] is None
    for _ in range(20):
        counter.count({"image": np.full(100, 5.0, np.float32)})
    report = counter.report()[0]
    assert (report["values"], report["outside"]) == (102_000, 2000)
    assert report["share"] > 0.6 > 2000 / 102_000
    for _ in range(200):
        counter.count({"image": np.full(100, 0.5, np.float32)})
    assert counter.report()[0]["warning"] is None
    assert counter.report()[0]["outside"] == 2000


def test_a_warning_names_the_precision_and_comes_above_one_in_a_hundred() -> None:
    values = np.zeros(200)
    values[:2] = 9
    assert counted(values)["share"] == DRIFT_SHARE
    assert counted(values)["warning"] is None
    values[2] = 9
    assert counted(values, precision="fp16")["warning"].startswith("1.5 % of the values of 'image'")
    assert counted(values, precision="fp16")["warning"].endswith("FP16 accuracy is unproven")


def test_threads_lose_no_count() -> None:
    counter = DriftCounter(artefact())
    inputs = {"image": np.array([0.5, 2.0] * 50, np.float32)}

    def work() -> None:
        for _ in range(500):
            counter.count(inputs)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (report,) = counter.report()
    assert (report["values"], report["outside"]) == (200_000, 100_000)

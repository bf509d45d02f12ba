from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kedge.errors import BadInputError, IncompatibleError
from kedge.model.graph import Graph
from kedge.model.session import ReferenceModel
from kedge.optimize.cluster import Cluster, entropy_bits, share_weights
from kedge.optimize.work import Work
from kedge.targets import host_target
from tests.support import models
from tests.support.environment import SHARED, shared_model


def work(graph: Graph, folder: Path) -> Work:
    return Work(host_target(), graph, None, None, folder, folder)


def normal(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def layered(*, name: str = "w", weight: np.ndarray | None = None) -> Graph:
    """x [n, 40] → Gemm → MatMul → y [n, 40]; weights of 1600 values."""
    first = normal(1600).reshape(40, 40) if weight is None else weight
    second = normal(1600, 1).reshape(40, 40)
    nodes = [
        helper.make_node("Gemm", ["x", name], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "v"], ["y"], name="second"),
    ]
    value = [helper.make_tensor_value_info(tensor, TensorProto.FLOAT, ["n", 40]) for tensor in ("x", "y")]
    constants = [numpy_helper.from_array(first, name), numpy_helper.from_array(second, "v")]
    graph = helper.make_graph(nodes, "test", value[:1], value[1:], constants)
    return Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def cifar10(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first test images, as the shared ResNets take them, and their labels."""
    folder = SHARED / "data" / "cifar10"
    if not (folder / "test_0.webp").is_file():
        pytest.skip("needs CIFAR-10 in a folder `shared/data` beside the checkout")
    from PIL import Image

    with Image.open(folder / "test_0.webp") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    rows, columns = pixels.shape[0] // 32, pixels.shape[1] // 32
    tiles = pixels.reshape(rows, 32, columns, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)[:count]
    mean, deviation = (np.array(v, "f4")[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((tiles / np.float32(255) - mean) / deviation).astype("f4"), np.load(folder / "test_labels.npy")[:count]


@pytest.mark.parametrize("bits", [1, 3, 5, 8])
def test_a_layer_keeps_at_most_two_to_the_bits_distinct_weights(bits: int, tmp_path: Path) -> None:
    graph = layered()
    result = Cluster(bits).apply(graph, work(graph, tmp_path))
    for name in ("w", "v"):
        assert np.unique(result.graph.array(name)).size == 2**bits
    row = result.changed["layers"]["first"]
    assert (row["bits"], row["values"], row["distinct"]) == (bits, 1600, 2**bits)
    assert row["mse"] == pytest.approx(float(np.mean((graph.array("w") - result.graph.array("w")) ** 2)), rel=1e-4)
    assert row["packed_bytes_estimated"] == np.ceil(1600 * row["entropy_bits"] / 8) + 4 * 2**bits


def test_the_graph_that_was_given_is_not_changed_and_the_new_one_runs(tmp_path: Path) -> None:
    graph = layered()
    before = graph.proto.SerializeToString()
    shared = Cluster(7).apply(graph, work(graph, tmp_path)).graph
    assert graph.proto.SerializeToString() == before
    x = {"x": normal(400, 3).reshape(10, 40)}
    outputs = [ReferenceModel(g.proto.SerializeToString()).run(x)["y"] for g in (graph, shared)]
    assert 1e-6 < np.abs(outputs[0] - outputs[1]).max() < 0.1 * np.abs(outputs[0]).max()


def test_the_error_is_that_of_the_best_quantiser_of_a_normal_distribution() -> None:
    # J. Max, "Quantizing for minimum distortion" (1960), table I: 0.1175 with 4 levels, 0.009497 with 16.
    weights = normal(200_000)
    for bits, expected in ((2, 0.1175), (4, 0.009497)):
        assert float(np.mean((weights - share_weights(weights, bits)) ** 2)) == pytest.approx(expected, rel=0.02)


def test_no_start_of_scikit_learn_s_k_means_finds_a_smaller_error() -> None:
    from sklearn.cluster import KMeans

    weights = np.concatenate([normal(1500), 6 * normal(100, 1)]).astype(np.float32)
    ours = float(np.sum((weights.astype(np.float64) - share_weights(weights, 4)) ** 2))
    fit = KMeans(16, n_init=5, random_state=0).fit(weights[:, None].astype(np.float64))
    assert ours <= fit.inertia_ * (1 + 1e-3)


def test_the_same_weights_give_the_same_codebook() -> None:
    np.testing.assert_array_equal(share_weights(normal(3000), 5), share_weights(normal(3000), 5))


def test_the_zeros_of_a_pruned_layer_stay_exactly_zero() -> None:
    weights = normal(4000).reshape(40, 100)
    weights[np.abs(weights) < 0.5] = 0
    shared = share_weights(weights, 3)
    np.testing.assert_array_equal(shared == 0, weights == 0)
    assert np.unique(shared).size == 8


def test_few_zeros_are_weights_like_others() -> None:
    weights = normal(4000)
    weights[:100] = 0
    assert np.unique(share_weights(weights, 3)).size == 8
    assert not np.array_equal(share_weights(weights, 3) == 0, weights == 0)


@pytest.mark.parametrize("weights", [np.zeros(2000), np.ones(2000), np.repeat([-1.0, 0.0, 2.0], 700)])
def test_weights_with_fewer_distinct_values_than_the_codebook_stay_as_they_are(weights: np.ndarray) -> None:
    np.testing.assert_array_equal(share_weights(weights.astype("f4"), 3), weights.astype("f4"))


def test_an_exception_is_named_by_its_layer_or_its_weight(tmp_path: Path) -> None:
    graph = layered()
    result = Cluster(5, layers=("first=2", "v=0")).apply(graph, work(graph, tmp_path))
    assert np.unique(result.graph.array("w")).size == 4
    np.testing.assert_array_equal(result.graph.array("v"), graph.array("v"))
    assert list(result.changed["layers"]) == ["first"]


def test_a_name_that_holds_an_equals_sign_can_be_given_bits(tmp_path: Path) -> None:
    graph = layered(name="a=b")
    result = Cluster(5, layers=("a=b=1",)).apply(graph, work(graph, tmp_path))
    assert np.unique(result.graph.array("a=b")).size == 2


def test_a_mistyped_layer_is_answered_with_the_nearest(tmp_path: Path) -> None:
    graph = layered()
    with pytest.raises(BadInputError, match="no layer with weights is named 'frist'") as caught:
        Cluster(layers=("frist=4",)).apply(graph, work(graph, tmp_path))
    assert "'first'" in caught.value.hint


@pytest.mark.parametrize(
    "parameters",
    [
        {"bits": 0},
        {"bits": 9},
        {"min_values": 0},
        {"zero_share": 1.5},
        {"layers": ("first",)},
        {"layers": ("first=",)},
        {"layers": ("=4",)},
        {"layers": ("first=9",)},
        {"layers": ("first=-1",)},
        {"layers": ("first=4.5",)},
    ],
)
def test_parameters_out_of_range_are_refused_when_they_are_given(parameters: dict) -> None:
    with pytest.raises(BadInputError, match="cluster"):
        Cluster(**parameters)


def test_small_layers_and_quantised_ones_are_left_alone_and_none_at_all_is_an_error(tmp_path: Path) -> None:
    graph = Graph.read(models.classifier(tmp_path / "m.onnx"))
    with pytest.raises(IncompatibleError, match="no layer has 1024"):
        Cluster().apply(graph, work(graph, tmp_path))
    shared = Cluster(2, min_values=70).apply(graph, work(graph, tmp_path))
    assert next(iter(shared.changed["layers"].values()))["weight"] == "conv.w"
    assert len(shared.changed["layers"]) == 1


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    weight = normal(1600).reshape(40, 40)
    weight[3, 3] = np.nan
    graph = layered(weight=weight)
    with pytest.raises(BadInputError, match="NaN"):
        Cluster().apply(graph, work(graph, tmp_path))


def test_half_precision_weights_stay_in_half_precision() -> None:
    weights = normal(3000).astype(np.float16)
    shared = share_weights(weights, 4)
    assert shared.dtype == np.float16
    assert np.unique(shared).size == 16


def test_entropy_is_that_of_shannon() -> None:
    assert entropy_bits(np.array([1.0, 1, 2, 2, 3, 3, 4, 4])) == 2
    assert entropy_bits(np.array([7.0, 7, 7])) == 0
    assert entropy_bits(np.array([0.0, 0, 0, 1])) == pytest.approx(0.8112781)


def test_five_bits_keep_the_answers_of_a_real_network(tmp_path: Path) -> None:
    graph = Graph.read(shared_model("resnet20_cifar10.onnx"))
    result = Cluster(5).apply(graph, replace(work(graph, tmp_path), seed=1))
    onnx.checker.check_model(result.graph.proto)
    images, labels = cifar10(300)
    before, after = (
        next(iter(ReferenceModel(g.proto.SerializeToString()).run({graph.input_names[0]: images}).values()))
        for g in (graph, result.graph)
    )
    cosine = float((before * after).sum() / np.linalg.norm(before) / np.linalg.norm(after))
    assert cosine > 0.98
    right = [int((logits.argmax(1) == labels).sum()) for logits in (before, after)]
    assert right[0] > 265
    assert right[1] >= right[0] - 6
    assert result.changed["packed_bytes_estimated"] < 0.16 * result.changed["bytes_before"]

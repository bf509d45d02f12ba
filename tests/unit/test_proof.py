from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kedge.errors import BadInputError, IncompatibleError
from kedge.model.graph import Graph
from kedge.model.samples import Samples
from kedge.optimize.proof.compare import Paired, compare
from kedge.optimize.proof.layers import LayerError, blame, profile
from kedge.optimize.proof.metrics import classification, cosine, measure, mse, psnr, scores_name, user_metric
from kedge.optimize.proof.runner import run_all
from tests.support import models
from tests.support.environment import shared_model


def made(nodes: list, inputs: dict, outputs: dict, constants: dict[str, np.ndarray], *, opset: int = 17) -> Graph:
    """A graph of inputs and outputs given as name → (element type, shape)."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return Graph(model)


def classifier(tmp_path: Path, batch: str | int = "batch") -> Graph:
    return Graph.read(models.classifier(tmp_path / "m.onnx", batch=batch))


def images(count: int = 10) -> Samples:
    return Samples({"image": models.images(count)})


# runner


@pytest.mark.parametrize("batch", [1, 3, 10, 64])
def test_outputs_come_in_the_samples_order_whatever_the_batch(tmp_path: Path, batch: int) -> None:
    path = models.classifier(tmp_path / "m.onnx")
    untouched = hashlib.sha256(path.read_bytes()).digest()
    seen: list[float] = []
    logits = run_all(path, images(), batch=batch, progress=lambda step, share: seen.append(share))["logits"]
    alone = [run_all(path, images().take(slice(i, i + 1)))["logits"][0] for i in range(10)]
    np.testing.assert_allclose(logits, alone, rtol=1e-5, atol=1e-5)
    assert seen[-1] == 1
    assert seen == sorted(seen)
    assert hashlib.sha256(path.read_bytes()).digest() == untouched


def test_a_fixed_batch_is_filled_up_and_cut_again(tmp_path: Path) -> None:
    free = run_all(classifier(tmp_path), images())["logits"]
    fixed = run_all(classifier(tmp_path, batch=4), images())["logits"]
    assert fixed.shape == (10, 4)
    np.testing.assert_allclose(fixed, free, rtol=1e-5, atol=1e-5)


def test_several_inputs_and_integer_outputs_are_run() -> None:
    graph = made(
        [
            helper.make_node("Add", ["a", "b"], ["sum"]),
            helper.make_node("ArgMax", ["sum"], ["best"], axis=1, keepdims=0),
        ],
        {"a": (TensorProto.FLOAT, ["n", 3]), "b": (TensorProto.FLOAT, ["n", 3])},
        {"sum": (TensorProto.FLOAT, ["n", 3]), "best": (TensorProto.INT64, ["n"])},
        {},
    )
    a, b = np.random.default_rng(0).standard_normal((2, 7, 3)).astype(np.float32)
    outputs = run_all(graph, Samples({"a": a, "b": b}), batch=2)
    np.testing.assert_allclose(outputs["sum"], a + b)
    np.testing.assert_array_equal(outputs["best"], (a + b).argmax(axis=1))
    assert compare(outputs, outputs).cosine == pytest.approx(1)
    assert set(run_all(graph, Samples({"a": a, "b": b}), outputs=("best",))) == {"best"}


def test_an_output_without_one_entry_a_sample_is_left_out_or_refused_when_named(tmp_path: Path) -> None:
    graph = made(
        [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0)],
        {"x": (TensorProto.FLOAT, ["n", 3])},
        {"y": (TensorProto.FLOAT, ["n", 3]), "top": (TensorProto.FLOAT, [])},
        {},
    )
    samples = Samples({"x": np.ones((5, 3), np.float32)})
    assert set(run_all(graph, samples)) == {"y"}
    with pytest.raises(BadInputError, match="'top' has not one entry a sample"):
        run_all(graph, samples, outputs=("top",))
    with pytest.raises(BadInputError, match="no output"):
        run_all(models.nonzero(tmp_path / "n.onnx"), Samples({"x": np.ones(5, np.float32)}))


def test_inputs_that_do_not_fit_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInputError) as caught:
        run_all(classifier(tmp_path), Samples({"image": np.zeros((2, 3, 8, 8), np.float32)}))
    assert "\n" not in caught.value.message


def quantized_matmul() -> Graph:
    """x [n, 4] quantised, times INT8 weights → y [n, 3]; and the same tensors' names as in `plain_matmul`."""
    rng = np.random.default_rng(3)
    return made(
        [
            helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["x_q"]),
            helper.make_node("DequantizeLinear", ["x_q", "xs", "xz"], ["x_d"]),
            helper.make_node("DequantizeLinear", ["w_q", "ws"], ["w_d"]),
            helper.make_node("MatMul", ["x_d", "w_d"], ["y"], name="fc"),
        ],
        {"x": (TensorProto.FLOAT, ["n", 4])},
        {"y": (TensorProto.FLOAT, ["n", 3])},
        {
            "xs": np.float32(0.05),
            "xz": np.zeros((), np.int8),
            "w_q": rng.integers(-127, 127, (4, 3)).astype(np.int8),
            "ws": np.float32(0.01),
        },
    )


def plain_matmul() -> Graph:
    return made(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")],
        {"x": (TensorProto.FLOAT, ["n", 4])},
        {"y": (TensorProto.FLOAT, ["n", 3])},
        {"w": quantized_matmul().array("w_q").astype(np.float32) * np.float32(0.01)},
    )


def test_a_faithful_run_computes_every_pair_as_written() -> None:
    x = np.random.default_rng(1).standard_normal((50, 4)).astype(np.float32)
    graph = quantized_matmul()
    expected = (np.clip(np.rint(x / np.float32(0.05)), -128, 127) * 0.05) @ (graph.array("w_q") * 0.01)
    np.testing.assert_allclose(run_all(graph, Samples({"x": x}), faithful=True)["y"], expected, rtol=1e-5, atol=1e-6)


# metrics


def test_f1_and_shares_are_those_computed_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 2, 2])
    metrics = classification(np.eye(3)[predicted], labels, ("cat", "dog"))
    assert metrics.top1 is not None
    assert (metrics.top1.correct, metrics.top1.count, metrics.top5) == (4, 6, None)
    # F1 = 2TP / (2TP + FP + FN): 4/(4+0+1), 2/(2+1+1), 2/(2+1+0)
    assert metrics.per_class is not None
    assert [entry.f1 for entry in metrics.per_class] == pytest.approx([4 / 5, 1 / 2, 2 / 3])
    assert metrics.f1_macro == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)
    assert [entry.label for entry in metrics.per_class] == ["cat", "dog", "2"]
    assert metrics.to_json()["per_class"][0]["share"] == pytest.approx(2 / 3)


def test_a_class_that_no_sample_has_is_not_measured_and_not_zero() -> None:
    metrics = classification(np.eye(3)[[0, 2, 1]], np.array([0, 0, 1]))
    assert metrics.per_class is not None
    absent = metrics.per_class[2].to_json()
    assert (absent["count"], absent["share"], absent["interval_95"], absent["f1"]) == (0, None, None, None)
    # Class 0: TP 1, FN 1; class 1: TP 1. The absent class is not in the mean.
    assert metrics.f1_macro == pytest.approx((2 / 3 + 1) / 2)


def test_top_5_counts_ranks_and_breaks_ties_as_argmax_does() -> None:
    scores = np.tile(np.arange(7, 0, -1.0), (3, 1))
    metrics = classification(scores, np.array([0, 4, 5]))
    assert metrics.top5 is not None
    assert metrics.top5.correct == 2
    tied = classification(np.zeros((2, 7)), np.array([4, 5]))
    assert tied.top5 is not None
    assert tied.top5.correct == 1


def test_a_sample_with_nan_scores_is_wrong_in_every_figure() -> None:
    scores = np.full((2, 7), np.nan)
    scores[1] = np.eye(7)[3]
    metrics = classification(scores, np.array([0, 3]))
    assert metrics.top1 is not None
    assert metrics.top5 is not None
    assert (metrics.top1.correct, metrics.top5.correct) == (1, 1)


@pytest.mark.parametrize(
    ("scores", "labels", "reason"),
    [
        (np.zeros((2, 3)), np.array([0, 3]), "the model has 3 classes"),
        (np.zeros((2, 3)), np.array([-1, 0]), "labels go from -1"),
        (np.zeros((2, 3)), np.array([0]), "do not belong together"),
        (np.zeros((0, 3)), np.array([], int), "do not belong together"),
    ],
)
def test_labels_that_do_not_fit_are_refused(scores: np.ndarray, labels: np.ndarray, reason: str) -> None:
    with pytest.raises(BadInputError, match=reason):
        classification(scores, labels)


def test_tensor_figures_are_those_computed_by_hand() -> None:
    reference, value = np.array([0.0, 10.0]), np.array([1.0, 9.0])
    assert mse(reference, value) == 1
    assert psnr(reference, value) == pytest.approx(20)  # 10·log10(10² / 1)
    assert psnr(reference, reference) == math.inf
    assert psnr(np.ones(2), np.zeros(2)) is None
    assert cosine(np.array([1.0, 0.0]), np.array([1.0, 1.0])) == pytest.approx(math.sqrt(0.5))
    assert cosine(np.zeros(2), value) is None
    with pytest.raises(BadInputError):
        mse(reference, np.zeros(3))


def test_the_scores_are_the_first_floating_output_of_classes() -> None:
    outputs = {
        "best": np.zeros((4, 2), np.int64),
        "boxes": np.zeros((4, 9, 4), np.float32),
        "one": np.zeros((4, 1), np.float32),
        "scores": np.zeros((4, 5, 1, 1), np.float32),
        "more": np.zeros((4, 3), np.float32),
    }
    assert scores_name(outputs) == "scores"
    assert measure({"best": outputs["best"]}, np.zeros(4, np.int64)).to_json()["top1"] is None
    assert measure(outputs, None).to_json()["f1_macro"] is None


METRICS_OF_A_USER = """
import numpy as np
def share(outputs, labels):
    return np.float32((outputs["y"].argmax(axis=1) == labels).mean())
def writes(outputs, labels):
    outputs["y"][:] = 0
def endless(outputs, labels):
    return float("inf")
def text(outputs, labels):
    return "good"
def flag(outputs, labels):
    return True
number = 3
"""


@pytest.fixture
def own_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_metrics_of_a_test.py").write_text(METRICS_OF_A_USER)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_metrics_of_a_test"


def test_a_user_s_metric_is_found_and_recorded(own_metrics: str) -> None:
    metric = user_metric(f"{own_metrics}:share")
    metrics = measure({"y": np.eye(3)}, np.array([0, 1, 0]), user=[metric])
    assert metrics.to_json()["user"] == {f"{own_metrics}:share": pytest.approx(2 / 3)}


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("endless", "not a finite number"),
        ("text", "not a finite number"),
        ("flag", "not a finite number"),
        ("writes", "read-only"),
        ("number", "has no function number"),
        ("absent", "has no function absent"),
    ],
)
def test_a_user_s_metric_that_fails_says_so_in_one_line(own_metrics: str, function: str, reason: str) -> None:
    with pytest.raises(BadInputError, match=reason) as caught:
        user_metric(f"{own_metrics}:{function}").value({"y": np.eye(3)}, None)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("reference", ["nothing", "a:b:c", "os.system('x'):y", "no_such_module_at_all:f"])
def test_a_reference_that_names_no_metric_is_refused(reference: str) -> None:
    with pytest.raises(BadInputError):
        user_metric(reference)


# comparison


def test_mcnemar_is_the_exact_binomial_test() -> None:
    assert Paired(80, 1, 9, 10).p_value == pytest.approx(2 * (1 + 10) / 2**10)
    assert Paired(80, 5, 5, 10).p_value == 1
    assert Paired(80, 0, 0, 20).p_value == 1


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),  # Newcombe 1998
        ((1, 1, 7, 12), -0.507, -0.026),  # Fagerland, Lydersen, Laake 2014, on data of Bentur et al. 2009
    ],
)
def test_the_interval_is_the_published_one(table: tuple[int, ...], low: float, high: float) -> None:
    digits = 4 if abs(low) < 0.1 else 3
    assert [round(bound, digits) for bound in Paired(*table).drop_interval] == [low, high]


def test_the_interval_holds_the_drop_mirrors_and_never_has_width_zero() -> None:
    rng = np.random.default_rng(5)
    for table in rng.integers(0, 40, (200, 4)):
        both, only_before, only_after, neither = (int(value) for value in table)
        if both + only_before + only_after + neither == 0:
            continue
        here = Paired(both, only_before, only_after, neither)
        there = Paired(both, only_after, only_before, neither)
        low, high = here.drop_interval
        assert -1 <= low <= here.drop <= high <= 1
        assert high > low
        assert there.drop_interval == pytest.approx((-high, -low))
        assert there.p_value == pytest.approx(here.p_value)


def test_a_comparison_counts_pairs_and_agreement() -> None:
    labels = np.array([0, 1, 2, 0, 1])
    before, after = np.eye(3)[[0, 1, 2, 0, 0]], np.eye(3)[[0, 1, 2, 1, 2]]
    report = compare({"y": before}, {"y": after}, labels).to_json()
    assert report["drop"] == pytest.approx(0.2)
    assert report["mcnemar"] == {"only_before": 1, "only_after": 0, "p_value": 1.0}
    assert (report["agreement"]["correct"], report["agreement"]["count"]) == (3, 5)
    assert report["cosine"] == pytest.approx(3 / 5)
    assert report["outputs"][0]["mse"] == pytest.approx(4 / 15)


def test_without_labels_agreement_and_cosine_remain() -> None:
    report = compare({"y": np.eye(3)}, {"y": np.eye(3) * 2}).to_json()
    assert (report["drop"], report["drop_interval_95"], report["mcnemar"]) == (None, None, None)
    assert report["agreement"]["share"] == 1
    assert report["cosine"] == pytest.approx(1)


def test_outputs_that_are_not_finite_agree_with_nothing() -> None:
    broken = np.full((3, 3), np.nan)
    report = compare({"y": broken}, {"y": broken}, np.array([0, 1, 2])).to_json()
    assert (report["agreement"]["correct"], report["cosine"], report["outputs"][0]["mse"]) == (0, None, None)


def test_outputs_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(BadInputError, match="no output 'y'"):
        compare({"y": np.eye(3)}, {"z": np.eye(3)})
    with pytest.raises(BadInputError, match="not comparable"):
        compare({"y": np.eye(3)}, {"y": np.eye(4)})
    with pytest.raises(BadInputError, match="do not belong together"):
        compare({"y": np.eye(3)}, {"y": np.eye(3)}, np.zeros(4, np.int64))


# layers


def test_equal_graphs_have_no_error_and_nobody_to_blame(tmp_path: Path) -> None:
    graph = classifier(tmp_path)
    errors = profile(graph, graph.copy(), images())
    assert [error.op for error in errors] == ["Conv", "Relu", "GlobalAveragePool", "MatMul"]
    assert all((error.snr_db, error.share, error.precision) == (None, 0, "fp32") for error in errors)
    assert all(error.cosine == pytest.approx(1) for error in errors)
    assert blame(errors, 3) == []


@pytest.mark.parametrize(("weights", "op"), [("conv.w", "Conv"), ("fc.w", "MatMul")])
@pytest.mark.parametrize("batch", ["batch", 4, 64])
def test_the_layer_that_was_coarsened_is_to_blame(tmp_path: Path, weights: str, op: str, batch: str | int) -> None:
    graph = classifier(tmp_path, batch=batch)
    coarse = graph.copy()
    coarse.set_array(weights, np.sign(graph.array(weights)))
    errors = profile(graph, coarse, images())
    assert blame(errors, 1) == [next(error.name for error in errors if error.op == op)]
    before = [error for error in errors if error.op == "Conv" and op == "MatMul"]
    assert all(error.share == 0 for error in before)


def test_the_error_of_a_layer_is_the_one_computed_by_hand() -> None:
    x = np.random.default_rng(2).standard_normal((40, 4)).astype(np.float32)
    (row,) = profile(plain_matmul(), quantized_matmul(), Samples({"x": x}))
    exact = x.astype(np.float64) @ plain_matmul().array("w")
    rough = (np.clip(np.rint(x / np.float32(0.05)), -128, 127) * 0.05) @ plain_matmul().array("w")
    expected = 10 * math.log10((exact**2).sum() / ((exact - rough) ** 2).sum())
    assert (row.name, row.op, row.precision) == ("fc", "MatMul", "int8")
    assert row.snr_db == pytest.approx(expected, abs=0.01)
    assert row.added == pytest.approx(10 ** (-expected / 10), rel=0.01)
    assert set(row.to_json()) == {"name", "op", "precision", "snr_db", "cosine", "added"}


def test_the_caller_may_name_a_precision_that_types_do_not_show() -> None:
    samples = Samples({"x": np.ones((4, 4), np.float32)})
    (row,) = profile(plain_matmul(), quantized_matmul(), samples, precision={"fc": "w4a8"})
    assert row.precision == "w4a8"


def test_of_a_dynamic_graph_the_layer_is_int8_and_what_follows_it_is_not() -> None:
    x = np.random.default_rng(2).standard_normal((8, 4)).astype(np.float32)
    w = np.random.default_rng(3).integers(-127, 127, (4, 3)).astype(np.int8)
    kinds = {"x": (TensorProto.FLOAT, ["n", 4])}, {"y": (TensorProto.FLOAT, ["n", 3])}
    follow = [helper.make_node("Mul", ["m", "two"], ["y"], name="twice")]
    constants = {"two": np.float32(2), "ws": np.float32(0.01)}
    plain = made(
        [helper.make_node("MatMul", ["x", "w"], ["m"], name="fc"), *follow],
        *kinds,
        {**constants, "w": w.astype(np.float32) * np.float32(0.01)},
    )
    dynamic = made(
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            helper.make_node("MatMulInteger", ["q", "w", "z"], ["i"]),
            helper.make_node("Cast", ["i"], ["c"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["s", "ws"], ["scale"]),
            helper.make_node("Mul", ["c", "scale"], ["m"]),
            *follow,
        ],
        *kinds,
        {**constants, "w": w},
    )
    rows = profile(plain, dynamic, Samples({"x": x}))
    assert [(row.name, row.op, row.precision) for row in rows] == [("fc", "MatMul", "int8"), ("twice", "Mul", "fp32")]
    assert rows[0].snr_db is not None
    assert rows[0].snr_db > 30


def test_what_was_fused_or_pruned_is_left_out(tmp_path: Path) -> None:
    graph = classifier(tmp_path)
    pruned = graph.copy()
    pruned.set_array("conv.w", graph.array("conv.w")[:4])
    pruned.set_array("fc.w", graph.array("fc.w")[:4])
    errors = profile(graph, pruned, images())
    assert [error.op for error in errors] == ["MatMul"]
    assert errors[0].share > 0


def test_values_that_overflow_are_infinitely_wrong_and_blamed() -> None:
    broken = plain_matmul()
    broken.set_array("w", np.full((4, 3), 3e38, np.float32))
    (row,) = profile(plain_matmul(), broken, Samples({"x": np.ones((4, 4), np.float32)}))
    assert (row.snr_db, row.cosine, row.share, row.to_json()["added"]) == (None, None, math.inf, None)
    assert blame([row], 1) == ["fc"]


def test_graphs_of_different_fixed_batches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="batches of 2 and 4"):
        profile(classifier(tmp_path, 2), classifier(tmp_path, 4), images())


def test_blame_names_layers_with_weights_before_activation_functions() -> None:
    def row(name: str, op: str, added: float) -> LayerError:
        return LayerError(name, op, "int8", name, 1.0, 1.0, added, added)

    errors = [row("a", "Conv", 0.1), row("b", "Relu", 0.9), row("c", "Gemm", 0.3), row("d", "Conv", -1.0)]
    assert blame(errors, 5) == ["c", "a"]
    assert blame(errors[1:2], 5) == ["b"]


def test_a_coarse_layer_of_a_real_network_is_found() -> None:
    graph = Graph.read(shared_model("resnet20_cifar10.onnx"))
    layers = [node for node in graph.nodes if node.op_type == "Conv"]
    coarse = graph.copy()
    weights = layers[9].input[1]
    scale = np.abs(graph.array(weights)).max() / 2
    coarse.set_array(weights, (np.rint(graph.array(weights) / scale) * scale).astype(np.float32))
    rng = np.random.default_rng(0)
    samples = Samples({"input": rng.standard_normal((8, 3, 32, 32)).astype(np.float32)})
    errors = profile(graph, coarse, samples)
    assert blame(errors, 1) == [layers[9].name]

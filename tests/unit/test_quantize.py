from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from kedge.errors import BadInputError, IncompatibleError
from kedge.model.graph import Graph
from kedge.model.qdq_check import check_qdq
from kedge.model.samples import Samples
from kedge.model.session import ReferenceModel
from kedge.optimize.proof.runner import run_all
from kedge.optimize.quantize.affine import INT4, INT8, INT8_NARROW, INT8_REDUCED, UINT8, asymmetric, symmetric
from kedge.optimize.quantize.calibrate import CALIBRATOR_NAMES, CALIBRATORS, choose_range, params_for, weight_params
from kedge.optimize.quantize.histogram import BINS, Histogram, observe
from kedge.optimize.quantize.placement import place, thin_layers
from kedge.optimize.quantize.static import StaticQuantizer, StaticSettings, output_error
from kedge.optimize.quantize.step import Quantize
from kedge.optimize.simplify import simplify
from kedge.optimize.work import Latency
from kedge.targets import load_target
from kedge_agent.engine.compile import compile_onnx
from kedge_agent.engine.order import Order
from tests.support import environment
from tests.support.compiled import layers
from tests.support.digits import CPU, RTX, accuracy, digits, residual_net, trained_net, work_on
from tests.support.qdq import Net

ARM = "cpu-generic-aarch64"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data() -> tuple[Samples, Samples]:
    return digits()


@pytest.fixture(scope="module")
def trained(data: tuple[Samples, Samples], tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return trained_net(data[0], tmp_path_factory.mktemp("trained"))


def inputs(*shape: int, count: int = 24, seed: int = 5) -> Samples:
    return Samples({"x": np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)}, name="noise")


def histogram_of(values: np.ndarray) -> Histogram:
    low, high = float(values.min()), float(values.max())
    return Histogram(low, high, np.histogram(values, BINS, (low, high))[0].astype(np.int64))


# The affine mapping


def test_ties_are_rounded_to_even() -> None:
    params = symmetric(127.0, INT8)
    assert params.scale == 1
    assert params.quantize(np.array([0.5, 1.5, 2.5, -0.5, -1.5, 0.51])).tolist() == [0, 2, 2, 0, -2, 1]


def test_an_asymmetric_range_becomes_scale_and_zero_point() -> None:
    params = asymmetric(-1.0, 3.0, UINT8)
    assert params.scale == np.float32(4 / 255)
    assert params.zero_point == 64  # round(1 / (4 / 255)) = round(63.75)
    assert params.quantize(np.array([-9, -1, 0, 3, 9])).tolist() == [0, 0, 64, 255, 255]
    assert params.fake(np.zeros(1))[0] == 0
    signed = asymmetric(-1.0, 3.0, INT8)
    assert signed.zero_point == -64


def test_a_range_is_widened_to_hold_zero() -> None:
    assert asymmetric(2.0, 5.1, UINT8).scale == np.float32(0.02)
    assert asymmetric(2.0, 5.1, UINT8).zero_point == 0
    assert asymmetric(-5.1, -2.0, UINT8).zero_point == 255


def test_a_symmetric_range_has_zero_point_zero_and_its_grid_says_what_is_clamped() -> None:
    params = symmetric(2.54, INT8)
    assert params.scale == np.float32(0.02)
    assert params.zero_point == 0
    values = np.array([2.54, -2.54, -2.6])
    assert params.quantize(values).tolist() == [127, -127, -128]
    assert symmetric(2.54, INT8_NARROW).quantize(values).tolist() == [127, -127, -127]
    assert symmetric(2.54, INT8_REDUCED).quantize(values).tolist() == [64, -64, -64]
    assert symmetric(2.54, INT4).quantize(values).tolist() == [7, -7, -7]


@pytest.mark.parametrize("seed", range(4))
def test_quantising_is_what_onnxruntime_computes(seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    low, high = sorted(random.uniform(-4, 4, 2))
    grid = (UINT8, INT8)[seed % 2]
    params = asymmetric(low, high, grid)
    net = Net()
    pair = net.pair("x", params.scale, params.zero_point, "uint8" if grid is UINT8 else "int8")
    values = random.uniform(-6, 6, 5000).astype(np.float32)
    ours = params.fake(values)
    graph = net.graph(pair, shape=(5000,))
    theirs = ReferenceModel(graph.proto.SerializeToString(), optimise=False).run({"x": values})[pair]
    # onnxruntime divides in single precision: where the quotient all but ties, it may go the other way.
    assert np.count_nonzero(ours != theirs) <= 2
    inside = (values > min(low, 0)) & (values < max(high, 0))
    assert np.abs(values - ours)[inside].max() <= float(params.scale) / 2 * 1.0001


def test_a_channel_takes_its_own_scale_and_a_channel_of_zeros_a_usual_one() -> None:
    weights = np.array([[1, -2], [0, 0], [4, 3], [0.1, 0.1]], np.float32)
    params = weight_params(weights, INT8_NARROW, 0, search=False)
    assert np.allclose(params.scale * 127, [2, 2, 4, 0.1])
    assert np.array_equal(params.fake(weights)[1], [0, 0])
    assert symmetric(0.0, INT8).scale == np.float32(1 / 127)
    assert asymmetric(0.0, 0.0, UINT8).scale == np.float32(1 / 255)


def test_a_searched_clip_loses_less_at_four_bits() -> None:
    weights = np.random.default_rng(0).standard_t(3, (8, 200)).astype(np.float32)
    errors = [np.sum((weights - weight_params(weights, INT4, 0, search=s).fake(weights)) ** 2) for s in (False, True)]
    assert errors[1] < 0.9 * errors[0]


# Calibrators


def test_min_max_keeps_all_and_a_percentile_its_share() -> None:
    uniform = histogram_of(np.random.default_rng(0).uniform(0, 1, 200_000))
    assert choose_range(uniform, "min-max", UINT8, is_symmetric=False) == (uniform.low, uniform.high)
    low, high = choose_range(uniform, "percentile", UINT8, is_symmetric=False, percentile=90)
    assert low == uniform.low  # one-sided: nothing is lost at 0
    assert high == pytest.approx(0.95, abs=0.01)
    normal = histogram_of(np.random.default_rng(0).standard_normal(200_000))
    low, high = choose_range(normal, "percentile", INT8, is_symmetric=True, percentile=95.45)
    assert high == pytest.approx(2, abs=0.02)
    assert low == pytest.approx(-2, abs=0.02)


@pytest.mark.parametrize("is_symmetric", [True, False])
@pytest.mark.parametrize("calibrator", ["percentile", "entropy", "mse"])
def test_one_outlier_does_not_cost_the_others_their_resolution(calibrator: str, is_symmetric: bool) -> None:
    values = np.append(np.random.default_rng(0).standard_normal(400_000), 200.0)
    histogram = histogram_of(values)
    grid = INT8 if is_symmetric else UINT8
    low, high = choose_range(histogram, calibrator, grid, is_symmetric=is_symmetric)
    assert 2 < high < 140
    assert low == pytest.approx(histogram.low, abs=1.5)


def test_the_mse_clip_of_a_normal_distribution_is_the_known_one() -> None:
    # Banner et al. 2019, "Post training 4-bit quantization", give 2.55 σ (Gauss) for 16 levels between ±α.
    histogram = histogram_of(np.random.default_rng(0).standard_normal(400_000))
    _, high = choose_range(histogram, "mse", INT4, is_symmetric=True)
    assert high == pytest.approx(2.5, abs=0.15)


@pytest.mark.parametrize("calibrator", CALIBRATORS)
@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_a_constant_tensor_keeps_its_value(calibrator: str, value: float) -> None:
    counts = np.zeros(BINS, np.int64)
    counts[0] = 10
    low, high = choose_range(Histogram(value, value, counts), calibrator, UINT8, is_symmetric=False)
    assert params_for(low, high, UINT8, is_symmetric=False).fake(np.array([value]))[0] == pytest.approx(value)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"calibrator": "magic"}, "calibrator is 'magic'"),
        ({"percentile": 30.0}, "the percentile is 30"),
        ({"rounding": "up"}, "rounding is 'up'"),
        ({"reduced_range": "maybe"}, "reduced_range is 'maybe'"),
        ({"precision": "int5"}, "no precision named 'int5'"),
        ({"max_drop": 2.0}, "max_drop is 2"),
        ({"trials": 0}, "trials is 0"),
    ],
)
def test_a_setting_that_is_not_known_is_refused_with_a_hint(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadInputError, match=reason) as error:
        Quantize(**settings)
    assert error.value.hint


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    samples = inputs(16, 8, 8)
    samples.inputs["x"][3, 0, 0, 0] = np.nan
    net = Net()
    graph = net.graph(net.add("Conv", "x", net.constant(np.ones((4, 16, 1, 1)))), ("n", 16, 8, 8))
    with pytest.raises(BadInputError, match="NaN or infinite on the calibration data"):
        observe(graph, ["x"], samples)


def test_extremes_come_from_all_values_and_values_too_close_to_tell_are_counted() -> None:
    net = Net()
    graph = net.graph(net.add("Identity", "x"), ("n", 4))
    values = np.full((40, 4), 1e-38, np.float32)
    values[-1] = 2e-38
    found = observe(graph, ["x"], Samples({"x": values}))["x"]
    assert found.counts.sum() == 160
    assert (found.low, found.high) == (pytest.approx(1e-38, rel=1e-3), pytest.approx(2e-38, rel=1e-3))


def ignored_outliers() -> tuple[Graph, Samples]:
    """Two channels; the weights hardly look at the second, which is fifty times as large."""
    random = np.random.default_rng(3)
    weights = random.standard_normal((8, 2, 3, 3)).astype(np.float32)
    weights[:, 1] *= 1e-4
    x = random.standard_normal((64, 2, 8, 8)).astype(np.float32)
    x[:, 1] = random.uniform(-50, 50, (64, 8, 8))
    net = Net()
    out = net.add("Conv", "x", net.constant(weights), pads=[1] * 4)
    return net.graph(out, ("n", 2, 8, 8)), Samples({"x": x})


@pytest.mark.parametrize("target", [CPU, RTX])
def test_ranges_judged_by_outputs_serve_what_the_weights_look_at(target: str, tmp_path: Path) -> None:
    graph, samples = ignored_outliers()
    wanted = run_all(graph, samples)
    errors = {}
    for calibrator in ("min-max", "mse", "output"):
        made = Quantize(calibrator=calibrator).apply(graph, work_on(graph, samples, tmp_path, target=target))
        assert made.changed["calibrator"] == calibrator
        errors[calibrator] = output_error(wanted, run_all(made.graph, samples, faithful=True))
    assert errors["output"] < 0.25 * errors["mse"]
    assert errors["mse"] < 1.01 * errors["min-max"]


def test_a_layer_that_cannot_be_judged_by_outputs_takes_the_mse(tmp_path: Path) -> None:
    net = Net()
    out = net.add("Conv", "x", net.constant(net.random.standard_normal((4, 2, 3, 3, 3))))
    graph, samples = net.graph(out, ("n", 2, 5, 5, 5)), inputs(2, 5, 5, 5)
    plan = {node.name: "int8" for node in graph.nodes}
    made = {}
    for calibrator in ("mse", "output"):
        quantizer = StaticQuantizer(graph, work_on(graph, samples, tmp_path), StaticSettings(calibrator))
        made[calibrator] = quantizer.build(plan).digest
    assert made["mse"] == made["output"]


def test_readers_of_one_tensor_are_judged_together(
    trained: Graph, data: tuple[Samples, Samples], tmp_path: Path
) -> None:
    # The pooled tensor is read by a convolution and by the Add: clipped for the first alone it would hurt the other.
    calibration = data[0].first(128)
    wanted = run_all(trained, calibration)
    for target in (CPU, RTX):
        made = {
            name: Quantize(calibrator=name).apply(trained, work_on(trained, calibration, tmp_path, target=target)).graph
            for name in ("min-max", "output")
        }
        errors = {name: output_error(wanted, run_all(each, calibration, faithful=True)) for name, each in made.items()}
        assert errors["output"] < 1.5 * errors["min-max"]


# Where the pairs go


def quantised(graph: Graph, samples: Samples, folder: Path, target: str, **settings: Any) -> Graph:
    settings = {"calibrator": "mse", **settings}
    return Quantize(**settings).apply(graph, work_on(graph, samples, folder, target=target)).graph


def fused(graph: Graph, folder: Path) -> Counter[str]:
    """Operators of the graph that onnxruntime makes of this one."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "fused.onnx")
    onnxruntime.InferenceSession(graph.proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "fused.onnx").graph.node)


def test_onnxruntime_runs_a_residual_network_in_integers(data: tuple[Samples, Samples], tmp_path: Path) -> None:
    ops = fused(quantised(residual_net(), data[0].first(64), tmp_path, CPU), tmp_path)
    assert (ops["QLinearConv"], ops["QLinearAdd"], ops["QGemm"], ops["QuantizeLinear"]) == (2, 1, 1, 1)
    # The first convolution alone, over an image's few channels, is faster in FP32.
    assert ops["FusedConv"] + ops["Conv"] == 1
    assert not {"Add", "Gemm", "DequantizeLinear"} & set(ops)


def test_convolutions_over_fewer_channels_than_the_integer_kernels_take_at_once_stay_fp32(
    data: tuple[Samples, Samples], tmp_path: Path
) -> None:
    graph = residual_net()
    assert thin_layers(graph, graph.nodes, 4) == {"stem"}
    assert thin_layers(graph, graph.nodes, None) == set()
    assert thin_layers(graph, [graph.by_name["stem"]], 4) == set(), "a network is never left whole in FP32"
    net = Net()
    depthwise = net.graph(conv(net, "x", 16, 16, group=16), (1, 16, 8, 8))
    assert thin_layers(depthwise, depthwise.nodes, 4) == set()


def test_for_tensorrt_only_the_shortcut_of_an_add_has_a_pair_and_nothing_follows_the_layers() -> None:
    graph = residual_net()
    placement = place(graph, {"stem", "left", "right", "head"}, load_target(RTX))
    assert placement.activations == {
        "image": {("stem", 0)},
        "p": {("left", 0), ("join", 1)},
        "lr": {("right", 0)},
        "f": {("head", 0)},
    }
    assert not placement.same_scale
    assert not placement.outputs


def test_for_onnxruntime_a_pooled_tensor_shares_the_scale_of_what_it_pools() -> None:
    placement = place(residual_net(), {"stem", "left", "right", "head"}, load_target(CPU))
    assert dict(placement.same_scale) == {"p": "sr", "f": "jr"}
    assert set(placement.activations) == {"image", "sr", "p", "lr", "r", "jr", "f"}


def test_a_layer_that_is_kept_stays_as_it_was(data: tuple[Samples, Samples], tmp_path: Path) -> None:
    for target in (CPU, RTX):
        made = quantised(residual_net(), data[0].first(32), tmp_path, target, keep=("l?ft", "head"))
        for name in ("left", "head"):
            assert made.by_name[name].input[1] in made.initializers
        assert made.by_name["right"].input[1] not in made.initializers
    with pytest.raises(BadInputError, match="no layer matches 'tail'") as error:
        quantised(residual_net(), data[0].first(32), tmp_path, CPU, keep=("tail",))
    assert "stem" in (error.value.hint or "")


def test_a_name_with_brackets_is_kept_by_that_name(data: tuple[Samples, Samples], tmp_path: Path) -> None:
    graph = residual_net()
    graph.by_name["left"].name = "block[0]/left"
    graph.touched()
    made = quantised(graph, data[0].first(32), tmp_path, CPU, keep=("block[0]/left",))
    assert made.by_name["block[0]/left"].input[1] in made.initializers


def test_biases_are_int32_of_the_product_of_the_scales(data: tuple[Samples, Samples], tmp_path: Path) -> None:
    graph = residual_net()
    bias = np.linspace(-1, 1, 8).astype(np.float32)
    graph.set_array("bl", bias)
    made = quantised(graph, data[0].first(32), tmp_path, CPU)
    x, w, b = (made.producer[name] for name in made.by_name["left"].input)
    stored, scale = made.array(b.input[0]), made.array(b.input[1])
    assert stored.dtype == np.int32
    assert np.array_equal(
        scale, (made.array(x.input[1]).astype(np.float64) * made.array(w.input[1])).astype(np.float32)
    )
    assert np.array_equal(stored, np.rint(bias.astype(np.float64) / scale))
    faithful = quantised(graph, data[0].first(32), tmp_path, RTX)
    assert faithful.by_name["left"].input[2] == "bl"


def conv(net: Net, source: str, inputs: int, outputs: int, *, kernel: int = 3, bias: Any = None, **more: Any) -> str:
    group = more.get("group", 1)
    weight = net.random.standard_normal((outputs, inputs // group, kernel, kernel)) / np.sqrt(
        inputs // group * kernel**2
    )
    constants = [net.constant(weight)] + ([] if bias is None else [net.constant(bias)])
    return net.add("Conv", source, *constants, pads=[kernel // 2] * 4, **more)


def _chain(build: Callable[[Net], str], shape: tuple[Any, ...] = ("n", 4, 8, 8)) -> Callable[[], tuple[Graph, Samples]]:
    def made() -> tuple[Graph, Samples]:
        net = Net(seed=1)
        return net.graph(build(net), shape, opset=17), inputs(*shape[1:])

    return made


def _grouped(net: Net) -> str:
    wide = net.add("Relu", conv(net, "x", 4, 8, group=2))
    return conv(net, conv(net, wide, 8, 8, group=8), 8, 5, kernel=1)


def _one_dimension(net: Net) -> str:
    weights = [net.constant(net.random.standard_normal(shape) / 4) for shape in ((8, 4, 3), (6, 8, 3))]
    return net.add("Conv", net.add("Relu", net.add("Conv", "x", weights[0], pads=[1, 1])), weights[1], strides=[2])


def _transposed(net: Net) -> str:
    weight = net.constant(net.random.standard_normal((8, 6, 2, 2)) / 4)
    up = net.add("ConvTranspose", net.add("Relu", conv(net, "x", 4, 8)), weight, strides=[2, 2])
    return conv(net, net.add("Relu", up), 6, 5)


def _gemm(**more: Any) -> Callable[[Net], str]:
    def build(net: Net) -> str:
        weight = net.random.standard_normal((8, 16) if more.get("transB") else (16, 8))
        hidden = net.add("Gemm", "x", net.constant(weight), net.constant(net.random.standard_normal(8)), **more)
        return net.add("Gemm", net.add("Relu", hidden), net.constant(net.random.standard_normal((8, 3))))

    return build


def _scalar_bias(net: Net) -> str:
    return net.add("Gemm", "x", net.constant(net.random.standard_normal((16, 8))), net.constant([0.5]))


def _bias_a_row(net: Net) -> str:
    bias = net.constant(net.random.standard_normal((24, 1)))
    return net.add("Gemm", "x", net.constant(net.random.standard_normal((16, 8))), bias)


def _three_axes(net: Net) -> str:
    hidden = net.add("MatMul", "x", net.constant(net.random.standard_normal((16, 8))))
    hidden = net.add("Relu", net.add("Add", hidden, net.constant(net.random.standard_normal(8))))
    return net.add("MatMul", hidden, net.constant(net.random.standard_normal((8, 3))))


def _attention(net: Net) -> str:
    q, k = (net.add("MatMul", "x", net.constant(net.random.standard_normal((16, 8)) / 4)) for _ in range(2))
    scores = net.add("MatMul", q, net.add("Transpose", k, perm=[0, 2, 1]))
    return net.add("MatMul", net.add("Softmax", scores, axis=-1), "x")


def _shared(net: Net) -> str:
    weight, bias = net.constant(net.random.standard_normal((4, 4, 3, 3)) / 6), net.constant(np.ones(4))
    return net.add(
        "Conv", net.add("Relu", net.add("Conv", "x", weight, bias, pads=[1] * 4)), weight, bias, pads=[1] * 4
    )


def _twice(net: Net) -> str:
    made = conv(net, "x", 4, 8)
    return conv(net, net.add("Add", made, made), 8, 5)


def _dead(net: Net) -> str:
    gone = net.add("Relu", conv(net, "x", 4, 8, bias=np.full(8, -100.0)))
    return conv(net, net.add("Relu", conv(net, gone, 8, 8, bias=np.linspace(0, 1, 8))), 8, 5)


def _zero_channels(net: Net) -> str:
    made = conv(net, "x", 4, 8, bias=np.r_[np.zeros(4), np.ones(4)])
    weight = net.constants[0]
    values = numpy_helper.to_array(weight).copy()
    values[[1, 5]] = 0
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    return conv(net, net.add("Relu", made), 8, 5)


def _padded(net: Net) -> str:
    pads = net.constant([0, 0, 2, 2, 0, 0, 2, 2], np.int64)
    return conv(net, net.add("Pad", conv(net, "x", 4, 8), pads, net.constant(np.float32(1.5))), 8, 5)


def _moved(net: Net) -> str:
    net.nodes.append(helper.make_node("Split", [conv(net, "x", 4, 8)], ["upper", "lower"], "split", axis=1))
    joined = net.add("Concat", net.add("Relu", "upper"), "lower", "x", axis=1)
    return conv(net, net.add("LeakyRelu", joined), 12, 5)


def _silu(net: Net) -> str:
    made = conv(net, "x", 4, 8)
    return conv(net, net.add("Mul", made, net.add("Sigmoid", made)), 8, 5)


def _volume(net: Net) -> str:
    return net.add("Conv", "x", net.constant(net.random.standard_normal((5, 4, 3, 3, 3)) / 10), pads=[1] * 6)


ODD = {
    "grouped and depthwise": _chain(_grouped),
    "one dimension": _chain(_one_dimension, ("n", 4, 16)),
    "three dimensions": _chain(_volume, ("n", 4, 4, 4, 4)),
    "transposed convolution": _chain(_transposed),
    "Gemm": _chain(_gemm(), ("n", 16)),
    "Gemm of B transposed": _chain(_gemm(transB=1), ("n", 16)),
    "Gemm with factors": _chain(_gemm(alpha=0.25, beta=2.0), ("n", 16)),
    "Gemm with one bias": _chain(_scalar_bias, ("n", 16)),
    "Gemm with a bias a row": _chain(_bias_a_row, (24, 16)),
    "MatMul of three axes": _chain(_three_axes, ("n", 5, 16)),
    "attention": _chain(_attention, ("n", 5, 16)),
    "shared weights": _chain(_shared),
    "a tensor added to itself": _chain(_twice),
    "a dead layer": _chain(_dead),
    "channels of zeros": _chain(_zero_channels),
    "padded with a value": _chain(_padded),
    "split and joined": _chain(_moved),
    "SiLU": _chain(_silu),
}


@pytest.mark.parametrize("calibrator", ["min-max", "output"])
@pytest.mark.parametrize("name", ODD)
def test_odd_graphs_compute_the_same_in_both_schemes(name: str, calibrator: str, tmp_path: Path) -> None:
    graph, samples = ODD[name]()
    before, wanted = graph.digest, run_all(graph, samples)
    for target in (CPU, RTX, ARM):
        made = quantised(graph, samples, tmp_path, target, calibrator=calibrator)
        exact, quick = run_all(made, samples, faithful=True), run_all(made, samples)
        assert output_error(wanted, exact) < 5e-3, target
        # onnxruntime fuses what was written for it into integer kernels that mean the same.
        if target != RTX:
            assert output_error(exact, quick) < 5e-4, target
        else:
            assert not check_qdq(made).errors
    assert graph.digest == before


def test_factors_of_a_gemm_do_not_keep_it_from_integers(tmp_path: Path) -> None:
    graph, samples = ODD["Gemm with factors"]()
    assert fused(quantised(graph, samples, tmp_path, CPU), tmp_path)["QGemm"] == 2


def test_a_tensor_that_is_read_inside_is_given_out_exactly_where_the_runtime_can(tmp_path: Path) -> None:
    net = Net()
    inner = net.add("Relu", conv(net, "x", 4, 8))
    graph = net.graph(conv(net, inner, 8, 5), ("n", 4, 8, 8), opset=17)
    graph.proto.graph.output.append(helper.make_tensor_value_info(inner, TensorProto.FLOAT, ["n", 8, 8, 8]))
    graph.touched()
    samples = inputs(4, 8, 8)
    wanted = run_all(graph, samples)
    made = {target: quantised(graph, samples, tmp_path, target) for target in (CPU, RTX)}
    values = {target: run_all(each, samples, faithful=True)[inner] for target, each in made.items()}
    # onnxruntime's integer convolution gives out what lies on the grid; TensorRT's pair is the next layer's own.
    assert len(np.unique(values[CPU])) <= 256 < len(np.unique(values[RTX]))
    assert all(np.allclose(value, wanted[inner], atol=0.05) for value in values.values())
    assert fused(made[CPU], tmp_path)["QLinearConv"] == 2


def test_a_branch_inside_an_if_is_left_alone(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    then = helper.make_graph(
        [helper.make_node("Conv", ["r", "w"], ["t"], pads=[1] * 4)],
        "then",
        [],
        [value("t", TensorProto.FLOAT, ["n", 4, 8, 8])],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["r"], ["e"])], "else", [], [value("e", TensorProto.FLOAT, ["n", 4, 8, 8])]
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["i"], then_branch=then, else_branch=other),
        helper.make_node("Conv", ["r", "w"], ["d"], pads=[1] * 4),
        helper.make_node("Add", ["d", "i"], ["y"]),
    ]
    weight = (np.random.default_rng(0).standard_normal((4, 4, 3, 3)) / 6).astype(np.float32)
    shape = ["n", 4, 8, 8]
    made = helper.make_graph(
        nodes,
        "branches",
        [value("x", TensorProto.FLOAT, shape)],
        [value("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.float32(0), "zero")],
    )
    graph = Graph(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    samples = inputs(4, 8, 8)
    wanted = run_all(graph, samples)
    for target in (CPU, RTX):
        result = quantised(graph, samples, tmp_path, target)
        assert output_error(wanted, run_all(result, samples)) < 5e-3
        inner = next(node for node in result.nodes if node.op_type == "If")
        assert [node.op_type for node in helper.get_node_attr_value(inner, "then_branch").node] == ["Conv"]


def test_several_inputs_of_which_one_is_not_read(tmp_path: Path) -> None:
    net = Net()
    joined = net.add("Relu", net.add("Add", conv(net, "x", 4, 8), conv(net, "z", 2, 8, kernel=1)))
    graph = net.graph(conv(net, joined, 8, 5), ("n", 4, 8, 8), opset=17)
    for name, shape in (("z", ["n", 2, 8, 8]), ("unread", ["n", 3])):
        graph.proto.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    graph.touched()
    random = np.random.default_rng(0)
    arrays = {name: random.standard_normal(shape) for name, shape in (("z", (24, 2, 8, 8)), ("unread", (24, 3)))}
    samples = Samples({**inputs(4, 8, 8).inputs, **{name: each.astype(np.float32) for name, each in arrays.items()}})
    wanted = run_all(graph, samples)
    for target in (CPU, RTX):
        made = quantised(graph, samples, tmp_path, target, calibrator="auto")
        assert made.input_names == ["x", "z", "unread"]
        assert output_error(wanted, run_all(made, samples)) < 5e-3


def test_whole_numbers_in_and_real_ones_inside(tmp_path: Path) -> None:
    net = Net()
    looked_up = net.add("Gather", net.constant(net.random.standard_normal((20, 16))), "x")
    out = net.add("Gemm", net.add("ReduceMean", looked_up, axes=[1], keepdims=0), net.constant(np.eye(16)))
    graph = net.graph(out, ("n", 6), opset=17)
    graph.proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT32
    graph.touched()
    samples = Samples({"x": np.random.default_rng(0).integers(0, 20, (32, 6)).astype(np.int32)})
    for target in (CPU, RTX):
        made = quantised(graph, samples, tmp_path, target, calibrator="auto")
        assert output_error(run_all(graph, samples), run_all(made, samples)) < 1e-3


@pytest.mark.parametrize("count", [1, 3])
def test_a_sample_or_three_calibrate_too(count: int, data: tuple[Samples, Samples], tmp_path: Path) -> None:
    for calibrator in ("auto", "output"):
        made = quantised(residual_net(), data[0].first(count), tmp_path, CPU, calibrator=calibrator)
        assert output_error(run_all(residual_net(), data[0]), run_all(made, data[0])) < 0.1


def test_a_fixed_batch_needs_samples_that_fill_it(data: tuple[Samples, Samples], tmp_path: Path) -> None:
    for target in (CPU, RTX):
        with pytest.raises(BadInputError, match="do not fill one batch of 8") as error:
            quantised(residual_net(batch=8), data[0].first(4), tmp_path, target, calibrator="auto")
        assert "at least 8" in (error.value.hint or "")
        # 12 samples fill one and a half: the half is filled up to compare, and left out to calibrate.
        quantised(residual_net(batch=8), data[0].first(12), tmp_path, target, calibrator="auto")


def test_a_graph_without_layers_is_refused(tmp_path: Path) -> None:
    net = Net()
    graph = net.graph(net.add("Relu", "x"), ("n", 4))
    with pytest.raises(IncompatibleError, match="no layer to quantise"):
        quantised(graph, inputs(4), tmp_path, CPU)


# Accuracy


@pytest.mark.parametrize("target", [CPU, RTX])
def test_int8_keeps_the_accuracy_of_a_trained_network(
    target: str, trained: Graph, data: tuple[Samples, Samples], tmp_path: Path
) -> None:
    result = Quantize().apply(trained, work_on(trained, data[0].first(128), tmp_path, target=target))
    assert result.changed["calibrator_errors"].keys() == {"min-max", "percentile", "mse"}
    assert accuracy(trained, data[1]) - accuracy(result.graph, data[1], faithful=target == RTX) <= 0.01


def test_what_is_made_for_tensorrt_passes_its_checker(data: tuple[Samples, Samples], tmp_path: Path) -> None:
    for graph in (residual_net(), residual_net(batch=1)):
        report = check_qdq(quantised(graph, data[0].first(32), tmp_path, RTX), load_target(RTX).precisions)
        assert not report.findings
        assert report.coverage.quantized_layers == report.coverage.layers == 4


def test_what_is_made_for_tensorrt_compiles_and_runs_on_integers(data: tuple[Samples, Samples], tmp_path: Path) -> None:
    environment.tensorrt_rtx()
    made = quantised(residual_net(batch=1), data[0].first(32), tmp_path, RTX)
    engine = compile_onnx(made.proto.SerializeToString(), Order(compute_capabilities=("8.9",))).engine
    assert layers(engine) == (4, 4)


def test_adaptive_rounding_beats_nearest_at_four_bits(tmp_path: Path) -> None:
    # Neighbouring pixels are alike: rounding errors that add up on them are what adaptive rounding avoids.
    net = Net(seed=2)
    graph = net.graph(conv(net, "x", 4, 6), ("n", 4, 8, 8), opset=17)
    smooth = np.cumsum(inputs(4, 8, 8, count=96).inputs["x"], axis=-1)
    samples, others = Samples({"x": smooth[:48]}), Samples({"x": smooth[48:]})
    errors = {}
    for rounding in ("nearest", "adaround"):
        made = quantised(graph, samples, tmp_path, CPU, precision="w4a8", rounding=rounding)
        errors[rounding] = output_error(run_all(graph, others), run_all(made, others))
    assert errors["adaround"] < 0.6 * errors["nearest"]


def test_four_bits_are_called_simulated(trained: Graph, data: tuple[Samples, Samples], tmp_path: Path) -> None:
    work = work_on(trained, data[0].first(32), tmp_path)
    result = Quantize(precision="w4a8", rounding="nearest", calibrator="min-max").apply(trained, work)
    assert any("simulated" in note and "faster" in note for note in result.notes)
    weights = result.graph.array(result.graph.producer[result.graph.by_name["left"].input[1]].input[0])
    assert set(np.unique(weights)) <= set(range(-7, 8))


# Mixed precision


class Counted:
    """Progress that counts trials, and stops at one of them."""

    def __init__(self, stop: int = 1000) -> None:
        self.trials, self.stop = 0, stop

    def __call__(self, step: str, share: float) -> None:
        if step == "mixing precisions":
            if self.trials == self.stop:
                raise KeyboardInterrupt
            self.trials += 1


def search(
    graph: Graph, data: tuple[Samples, Samples], folder: Path, work: dict[str, Any] | None = None, **step: Any
) -> Any:
    settings = {"precision": "auto", "calibrator": "mse", "rounding": "nearest", "trials": 8, **step}
    given = work_on(graph, data[0].first(64), folder, train=data[0], **(work or {}))
    return Quantize(**settings).apply(graph, given)


def bits(result: Any) -> int:
    return sum({"fp32": 32, "int8": 8, "w4a8": 4}[name] * count for name, count in result.changed["layers"].items())


def test_a_tight_budget_takes_more_bits_than_a_loose_one(
    trained: Graph, data: tuple[Samples, Samples], tmp_path: Path
) -> None:
    tight, loose = (
        search(trained, data, tmp_path / name, max_drop=drop) for name, drop in (("tight", 0.0), ("loose", 0.2))
    )
    assert bits(tight) > bits(loose)
    found = loose.evidence["search"]
    assert found["chosen"] in found["front"]
    assert next(trial for trial in found["trials"] if trial["number"] == found["chosen"])["feasible"]
    assert {row["layer"] for row in loose.evidence["sensitivity"]} == {"stem", "left", "right", "head"}


def test_an_interrupted_search_goes_on_where_it_was(
    trained: Graph, data: tuple[Samples, Samples], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(trained, data, tmp_path, {"progress": Counted(stop=5)})
    counted = Counted()
    result = search(trained, data, tmp_path, {"progress": counted})
    assert counted.trials == 3
    assert len(result.evidence["search"]["trials"]) == 8


def test_a_budget_of_size_is_kept(trained: Graph, data: tuple[Samples, Samples], tmp_path: Path) -> None:
    result = search(trained, data, tmp_path, max_size=0.2)
    plan = result.evidence["precision"]
    graph = simplify(trained)
    held = {node.name: graph.array(node.input[1]).size for node in graph.nodes if node.name in plan}
    assert len(plan) == 4
    stored = sum(held[name] * (4 if precision == "w4a8" else 8) for name, precision in plan.items())
    assert stored <= 0.2 * 32 * sum(held.values())
    assert not any("no mix" in note for note in result.notes)


def test_a_network_that_gives_out_classes_is_judged_by_them(
    trained: Graph, data: tuple[Samples, Samples], tmp_path: Path
) -> None:
    graph = trained.copy()
    graph.replace_nodes([*graph.nodes, helper.make_node("ArgMax", ["logits"], ["class"], "argmax", axis=1, keepdims=0)])
    del graph.proto.graph.output[:]
    graph.proto.graph.output.append(helper.make_tensor_value_info("class", TensorProto.INT64, ["n"]))
    graph.set_array("wr", graph.array("wr") + np.random.default_rng(0).standard_t(2, (8, 8, 3, 3)).astype(np.float32))
    result = search(graph, data, tmp_path, max_drop=0.0)
    trials = result.evidence["search"]["trials"]
    assert next(trial for trial in trials if trial["counts"] == {"w4a8": 4})["drop"] > 0
    assert result.changed["layers"] != {"w4a8": 4}


class Clock:
    """Times models by a rule: 10 ms, and one more for each layer that is quantised."""

    name = "a slow integer unit"

    def __init__(self) -> None:
        self.asked = 0

    def measure(self, models: Any) -> dict[str, Latency]:
        self.asked += 1
        out = {}
        for name, path in models.items():
            graph = Graph.read(path)
            layers = [node for node in graph.nodes if node.op_type in ("Conv", "Gemm")]
            slow = sum(node.input[1] not in graph.initializers for node in layers)
            out[name] = Latency(10.0 + slow, 11.0 + slow, 10, "by rule")
        return out


def test_measured_time_decides_where_it_was_asked_for(
    trained: Graph, data: tuple[Samples, Samples], tmp_path: Path
) -> None:
    clock = Clock()
    work = {"probe": clock, "rank_by_probe": True}
    result = search(trained, data, tmp_path, work, max_drop=0.5)
    assert result.changed["layers"] == {"fp32": 4}
    found = result.evidence["search"]
    assert {trial["cost_unit"] for trial in found["trials"]} == {"ms on the device"}
    assert [trial["measured_ms"] for trial in found["trials"] if trial["number"] == found["chosen"]] == [10.0]
    # A mix that two trials mean is timed once; what another day measured is not read.
    assert clock.asked <= 1 + len({tuple(trial["counts"].items()) for trial in found["trials"]}) * 3
    before = clock.asked
    search(trained, data, tmp_path, work, max_drop=0.5)
    assert clock.asked > before


def test_a_budget_of_time_is_held_by_measured_time(
    trained: Graph, data: tuple[Samples, Samples], tmp_path: Path
) -> None:
    work = {"probe": Clock(), "rank_by_probe": True}
    result = search(trained, data, tmp_path, work, max_time=1.25)
    assert sum(count for name, count in result.changed["layers"].items() if name != "fp32") <= 2


# Real networks


def real(
    name: str, tensor: str, images: np.ndarray, labels: np.ndarray, calibrate: int, tmp: Path, target: str
) -> float:
    graph = Graph.read(environment.shared_model(name))
    calibration = Samples({tensor: images[:calibrate]}, name="calibration")
    made = Quantize().apply(graph, work_on(graph, calibration, tmp, target=target)).graph
    judged = Samples({tensor: images[calibrate:]})
    before, after = (next(iter(run_all(each, judged, faithful=target == RTX).values())) for each in (graph, made))
    right = labels[calibrate:]
    return float(np.mean(before.argmax(1) == right) - np.mean(after.argmax(1) == right))


@pytest.mark.parametrize("target", [CPU, RTX])
def test_resnet8_keeps_its_accuracy(target: str, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    folder = environment.shared_model("resnet8_cifar10_mlperftiny.onnx").parents[1] / "data" / "cifar10"
    mosaic = np.asarray(image.open(min(folder.glob("test_*.webp"))).convert("RGB"))
    tiles = mosaic.reshape(mosaic.shape[0] // 32, 32, mosaic.shape[1] // 32, 32, 3).transpose(0, 2, 1, 3, 4)
    images = tiles.reshape(-1, 32, 32, 3)[:600].astype(np.float32)
    labels = np.load(folder / "test_labels.npy")[:600]
    lost = real("resnet8_cifar10_mlperftiny.onnx", "input_1", images, labels, 100, tmp_path, target)
    assert lost <= 0.01  # 5 of 500


def test_mnist_cnn_of_batch_one_keeps_its_accuracy(tmp_path: Path) -> None:
    import gzip

    folder = environment.shared_model("mnist_cnn.onnx").parents[1] / "data" / "mnist"
    pixels = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())
    images = np.frombuffer(pixels, np.uint8, 600 * 784, 16).reshape(-1, 1, 28, 28).astype(np.float32)
    truth = np.frombuffer(labels, np.uint8, 600, 8)
    assert real("mnist_cnn.onnx", "Input3", images, truth, 100, tmp_path, CPU) <= 0.004  # 2 of 500


# The guide


def test_the_guides_table_of_shorthands_is_what_the_code_computes() -> None:
    text = (Path(__file__).parents[2] / "docs" / "quantization.md").read_text(encoding="utf-8").replace("−", "-")
    params = asymmetric(-0.75, 1.25, UINT8)
    assert "s = 2 / 255 and z = 96" in text
    assert (params.scale, params.zero_point) == (np.float32(2 / 255), 96)
    rows = [line.strip("|").split("|") for line in text.partition("| θ |")[2].splitlines()[2:8]]
    assert len(rows) == 6
    for theta, shorthand, levels, q, back in ([float(cell) for cell in row] for row in rows):
        assert np.rint(theta / 256) == shorthand
        assert int(np.rint(theta / (2 / 256)) + 96) % 256 == levels
        assert params.quantize(np.array(theta)) == q
        assert float(params.fake(np.array(theta))) == pytest.approx(back, abs=1e-6)


def test_the_guide_names_every_calibrator_and_the_grids_as_they_are() -> None:
    text = (Path(__file__).parents[2] / "docs" / "quantization.md").read_text(encoding="utf-8").replace("−", "-")
    for name in ("auto", *CALIBRATOR_NAMES):
        assert f"| `{name}` |" in text
    for name, grid in (
        ("UINT8", UINT8),
        ("INT8", INT8),
        ("INT8_NARROW", INT8_NARROW),
        ("INT8_REDUCED", INT8_REDUCED),
        ("INT4", INT4),
    ):
        assert f"| `{name}` | {grid.low} … {grid.high} |" in text

"""Each rule on a graph that breaks it; and NVIDIA's compiler asked whether it is as the rule says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from kedge.model.graph import Graph
from kedge.model.qdq_check import check_qdq
from kedge.targets import load_target
from kedge_agent.engine.apart import compile_apart
from kedge_agent.engine.compile import compile_onnx
from kedge_agent.engine.order import Order
from kedge_agent.engine.report import EngineError
from tests.support import compiled, environment, models
from tests.support.qdq import Net

ADA = ("8.9",)


def conv(activation: dict[str, Any] | None = None, opset: int = 21, **weights: Any) -> Graph:
    net = Net()
    return net.graph(net.conv(net.pair("x", **(activation or {})), **weights), opset=opset)


def product(
    op: str = "MatMul", *, activation: dict[str, Any] | None = None, turned: bool = False, **weights: Any
) -> Graph:
    net = Net()
    shape = (32, 64) if turned else (64, 32)
    weight = net.weights(*shape, **{"axis": 1, **weights})
    extra = {"transB": int(turned)} if op == "Gemm" else {}
    return net.graph(net.add(op, net.pair("x", **(activation or {})), weight, **extra), (4, 64))


def deconvolution(axis: int) -> Graph:
    net = Net()
    return net.graph(net.add("ConvTranspose", net.pair("x"), net.weights(16, 16, 3, 3, axis=axis)))


def bias(kind: str) -> Graph:
    net = Net()
    values = net.typed(np.arange(16), kind)
    return net.graph(net.conv(net.pair("x"), bias=net.add("DequantizeLinear", values, net.constant(0.01))))


def float_bias() -> Graph:
    net = Net()
    return net.graph(net.conv(net.pair("x"), bias=net.constant(np.arange(16))))


def between(*inner: Callable[[Net, str], str]) -> Graph:
    """x → pair → convolution → what is given → convolution."""
    net = Net()
    tensor = net.conv(net.pair("x"))
    for step in inner:
        tensor = step(net, tensor)
    return net.graph(net.conv(tensor))


def pair(net: Net, tensor: str) -> str:
    return net.pair(tensor)


def relu(net: Net, tensor: str) -> str:
    return net.add("Relu", tensor)


def max_pool(net: Net, tensor: str) -> str:
    return net.add("MaxPool", tensor, kernel_shape=[3, 3], pads=[1] * 4)


def average_pool(net: Net, tensor: str) -> str:
    return net.add("AveragePool", tensor, kernel_shape=[3, 3], pads=[1] * 4)


def normalise(net: Net, tensor: str) -> str:
    return net.add("BatchNormalization", tensor, *(net.constant(np.full(16, value)) for value in (1.5, 0.1, 0.2, 0.9)))


def residual(*, shortcut: bool, branch: bool) -> Graph:
    net = Net()
    start = net.add("Relu", net.conv(net.pair("x")))
    paired = net.pair(start)
    end = net.conv(net.pair(net.add("Relu", net.conv(paired))))
    total = net.add("Add", net.pair(end) if branch else end, paired if shortcut else start)
    return net.graph(net.conv(net.pair(net.add("Relu", total))))


def joined(*, scales: tuple[float, float] | None, after: bool) -> Graph:
    net = Net()
    parts = [net.add("Relu", net.conv(net.pair("x"), 8)) for _ in range(2)]
    if scales is not None:
        parts = [net.pair(part, scale) for part, scale in zip(parts, scales, strict=True)]
    whole = net.add("Concat", *parts, axis=1)
    return net.graph(net.conv(net.pair(whole) if after else whole))


def operator(
    op: str, *rest: Callable[[Net], str], domain: str = "", quantized: bool = True, **attributes: Any
) -> Graph:
    net = Net()
    first = net.add("QuantizeLinear", "x", net.constant(0.1), net.typed(0, "int8")) if quantized else "x"
    return net.graph(net.add(op, first, *(make(net) for make in rest), domain=domain, **attributes), (4, 16))


def matrix(net: Net) -> str:
    return net.typed(net.random.integers(-9, 9, (16, 16)), "int8")


def ones(net: Net) -> str:
    return net.constant(np.ones((16, 16)))


def half_scale() -> Graph:
    net = Net()
    z = net.typed(0, "int8")
    quantized = net.add("QuantizeLinear", "x", net.constant(0.1, np.float16), z)
    back = net.add("DequantizeLinear", quantized, net.constant(0.1, np.float16), z)
    return net.graph(net.conv(back))


def one_side(*, activation: bool) -> Graph:
    net = Net()
    if not activation:
        return net.graph(net.conv("x"))
    weight = net.constant(net.random.standard_normal((16, 16, 3, 3)))
    return net.graph(net.add("Conv", net.pair("x"), weight, pads=[1] * 4))


def weight_only(block: int) -> Graph:
    net = Net()
    weight = net.weights(64, 32, axis=0 if block else 1, kind="int4", block=block)
    return net.graph(net.add("MatMul", "x", weight), (4, 64))


def dangling() -> Graph:
    net = Net()
    quantized = net.add("QuantizeLinear", "x", net.constant(0.1), net.typed(0, "int8"))
    return net.graph(net.add("Relu", net.add("Cast", quantized, to=1)))


def constant_left() -> Graph:
    net = Net()
    return net.graph(net.add("MatMul", net.weights(32, 64, axis=0), net.pair("x")), (64, 8))


def transposed_weight() -> Graph:
    net = Net()
    weight = net.add("Transpose", net.weights(32, 64, axis=0), perm=[1, 0])
    return net.graph(net.add("MatMul", net.pair("x"), weight), (4, 64))


FINE = {
    "scales per channel": (conv(), 1),
    "scales per tensor": (conv(axis=None), 1),
    "opset 13": (conv(opset=13), 1),
    "float bias": (float_bias(), 1),
    "groups": (conv(group=2), 1),
    "depthwise": (conv(group=16), 1),
    "fp8": (conv({"kind": "fp8"}, kind="fp8"), 1),
    "matrix product": (product(), 1),
    "constant first matrix": (constant_left(), 1),
    "transposed weights": (transposed_weight(), 1),
    "Gemm": (product("Gemm"), 1),
    "Gemm with transB": (product("Gemm", turned=True, axis=0), 1),
    "INT4 weights, INT8 activations": (product(kind="int4"), 1),
    "ReLU fused": (between(relu, pair), 2),
    "normalisation fused": (between(normalise, relu, pair), 2),
    "a pair before pooling": (between(relu, pair, max_pool), 2),
    "residual": (residual(shortcut=True, branch=False), 4),
    "quantised after Concat": (joined(scales=None, after=True), 3),
    "one scale at Concat": (joined(scales=(0.1, 0.1), after=False), 3),
}
# The compiler refuses these.
REFUSED = {
    "zero-point": [
        conv({"zero": 3}),
        conv({"zero": 128, "kind": "uint8"}),
        conv(zero=3),
        product(kind="int4", zero=1),
    ],
    "unsupported-type": [conv({"kind": "int16"}), conv(kind="uint8"), conv(kind="int16"), product(kind="uint4")],
    "bias-quantized": [bias("int32")],
    "scale-value": [conv({"scale": 0.0}), conv({"scale": -0.1}), conv({"scale": np.nan}), conv(scale=0.0)],
    "scale-type": [half_scale()],
    "operand-types": [conv(kind="int4"), conv(kind="fp8"), conv({"kind": "int4"}, kind="int4"), product(kind="fp8")],
    "unsupported-operator": [
        operator("MatMulInteger", matrix),
        operator("DynamicQuantizeLinear", quantized=False),
        operator("QuickGelu", domain="com.microsoft", quantized=False),
        operator("FusedMatMul", ones, domain="com.microsoft", quantized=False),
    ],
}

# The compiler takes these and computes something else than they say.
MISREAD = {
    "unsigned": conv({"kind": "uint8"}),
    "scale-value": conv({"scale": np.inf}),
    "weight-blocks": product(axis=0, block=16),
}

# The compiler takes these; the number is of the layers that it runs on quantised operands.
COSTLY = {
    "activation-granularity": [(conv({"scale": np.full(16, 0.1), "axis": 1}), 0)],
    "weight-axis": [(conv(axis=1), 0), (product(axis=0), 0), (product("Gemm", turned=True), 0)],
    "depthwise-per-tensor": [(conv(group=16, axis=None), 1)],
    "bias-quantized": [(bias("int8"), 1)],
    "weight-only": [(one_side(activation=False), 0), (between(pair, relu), 1), (between(relu, pair, average_pool), 1)],
    "activation-only": [(one_side(activation=True), 0)],
    "deconvolution": [(deconvolution(1), 0)],
    "residual-both": [(residual(shortcut=True, branch=True), 4)],
    "residual-float": [(residual(shortcut=False, branch=False), 4)],
    "residual-branch": [(residual(shortcut=False, branch=True), 4)],
    "unpaired": [(dangling(), 0)],
    "pair-differs": [(conv({"dq_scale": 0.2}), 1)],
    "between-fused": [(between(pair, relu, pair), 2), (between(pair, normalise, pair), 2)],
    "concat-scales": [(joined(scales=(0.1, 0.2), after=False), 2), (joined(scales=(0.1, 0.2), after=True), 3)],
}


def cases(table: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(code, graph, id=f"{code}-{index}")
        for code, graphs in table.items()
        for index, graph in enumerate(graphs)
    ]


@pytest.fixture
def compiler() -> None:
    environment.tensorrt_rtx()


def codes(graph: Graph) -> set[str]:
    return {finding.code for finding in check_qdq(graph).findings}


def compile_graph(graph: Graph) -> bytes:
    return compile_onnx(graph.proto.SerializeToString(), Order(compute_capabilities=ADA)).engine


@pytest.mark.parametrize(("graph", "layers"), FINE.values(), ids=FINE)
def test_nothing_is_found_where_everything_is_right(graph: Graph, layers: int) -> None:
    report = check_qdq(graph)
    assert report.findings == ()
    assert (report.coverage.layers, report.coverage.quantized_layers) == (layers, layers)
    assert report.coverage.mac_share == 1


@pytest.mark.parametrize(("graph", "layers"), FINE.values(), ids=FINE)
def test_the_compiler_runs_on_integers_what_is_called_right(graph: Graph, layers: int, compiler: None) -> None:
    assert compiled.layers(compile_graph(graph)) == (layers, layers)


@pytest.mark.parametrize(("code", "graph"), cases(REFUSED))
def test_an_error_is_found_and_says_what_to_do(code: str, graph: Graph) -> None:
    found = [finding for finding in check_qdq(graph).errors if finding.code == code]
    assert found
    assert all(finding.node in finding.message and finding.hint for finding in found)
    assert all("\n" not in finding.message + finding.hint for finding in found)


@pytest.mark.parametrize(("code", "graph"), cases(REFUSED))
def test_the_compiler_refuses_what_is_called_an_error(code: str, graph: Graph, compiler: None) -> None:
    with pytest.raises(EngineError) as caught:
        compile_graph(graph)
    assert caught.value.kind == "refused"


@pytest.mark.parametrize(("code", "graph"), MISREAD.items(), ids=MISREAD)
def test_an_error_that_the_compiler_overlooks_is_found_too(code: str, graph: Graph, compiler: None) -> None:
    assert code in {finding.code for finding in check_qdq(graph).errors}
    assert compile_graph(graph)


def test_a_scale_that_is_computed_is_an_error_for_it_can_crash_the_compiler() -> None:
    net = Net()
    largest = net.add("ReduceMax", "x", keepdims=0)
    z = net.typed(0, "int8")
    quantized = net.add("QuantizeLinear", "x", largest, z)
    graph = net.graph(net.conv(net.add("DequantizeLinear", quantized, largest, z)))
    assert codes(graph) == {"scale-not-constant"}
    environment.tensorrt_rtx()
    with pytest.raises(EngineError) as caught:
        compile_apart(graph.proto.SerializeToString(), Order(compute_capabilities=ADA))
    assert caught.value.kind == "crashed"


@pytest.mark.parametrize(("code", "case"), cases(COSTLY))
def test_what_costs_time_or_accuracy_is_a_warning(code: str, case: tuple[Graph, int]) -> None:
    report = check_qdq(case[0])
    assert code in {finding.code for finding in report.warnings}
    assert report.errors == ()
    assert report.coverage.quantized_layers == case[1]


@pytest.mark.parametrize(("code", "case"), cases(COSTLY))
def test_the_compiler_takes_a_warning_and_runs_as_many_layers_on_integers_as_are_counted(
    code: str, case: tuple[Graph, int], compiler: None
) -> None:
    assert compiled.layers(compile_graph(case[0]))[1] == case[1]


@pytest.mark.parametrize("block", [0, 32])
def test_weights_of_four_bits_alone_are_no_fault(block: int) -> None:
    report = check_qdq(weight_only(block))
    assert [finding.severity for finding in report.findings] == ["info"]
    assert (report.errors, report.warnings) == ((), ())


def test_types_that_the_target_lacks_are_errors() -> None:
    graph = conv({"kind": "fp8"}, kind="fp8")
    assert check_qdq(graph, load_target("rtx-ada-2000").precisions).errors == ()
    assert {finding.code for finding in check_qdq(graph, ("fp32", "int8")).errors} == {"precision"}


def test_errors_come_first_and_the_report_is_plain_json() -> None:
    net = Net()
    first = net.conv(net.pair("x", dq_scale=0.2))
    report = check_qdq(net.graph(net.conv(net.pair(net.add("Relu", first), zero=1))))
    assert [finding.severity for finding in report.findings] == ["error", "warning"]
    body = report.to_json()
    assert body["findings"][0]["code"] == "zero-point"
    assert body["coverage"] == {
        "layers": 2,
        "quantized_layers": 2,
        "share": 1.0,
        "macs": 2 * 16 * 16 * 9 * 64,
        "quantized_macs": 2 * 16 * 16 * 9 * 64,
        "mac_share": 1.0,
    }


def test_a_float_model_is_covered_by_nothing_and_faulted_for_nothing(tmp_path: Path) -> None:
    report = check_qdq(Graph.read(models.classifier(tmp_path / "m.onnx")))
    assert report.findings == ()
    assert (report.coverage.layers, report.coverage.share) == (2, 0.0)


def test_a_chain_of_concats_that_doubles_each_time_is_checked_in_time() -> None:
    net = Net()
    tensor = net.pair("x")
    for _ in range(60):
        tensor = net.add("Concat", tensor, tensor, axis=0)
    assert check_qdq(net.graph(tensor)).findings == ()


def quantised_by_onnxruntime(tmp_path: Path, **options: Any) -> Graph:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            random = np.random.default_rng(0)
            self.left = iter([{"x": random.standard_normal((1, 16, 8, 8), np.float32)} for _ in range(4)])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    net, model, out = Net(), tmp_path / "m.onnx", tmp_path / "q.onnx"
    tensor = "x"
    for _ in range(2):
        weight, bias = net.random.standard_normal((16, 16, 3, 3)), net.random.standard_normal(16)
        tensor = net.add("Relu", net.add("Conv", tensor, net.constant(weight), net.constant(bias), pads=[1] * 4))
    onnx.save(net.graph(tensor, opset=17).proto, model)
    quantize_static(str(model), str(out), Reader(), **options)
    return Graph.read(out)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnxruntimes_defaults_are_told_apart_from_what_tensorrt_takes(tmp_path: Path, compiler: None) -> None:
    from onnxruntime.quantization import QuantType

    report = check_qdq(graph := quantised_by_onnxruntime(tmp_path))
    assert {finding.code for finding in report.errors} >= {"zero-point", "bias-quantized"}
    with pytest.raises(EngineError):
        compile_graph(graph)
    symmetric = {"ActivationSymmetric": True, "QuantizeBias": False}
    graph = quantised_by_onnxruntime(
        tmp_path, activation_type=QuantType.QInt8, per_channel=True, extra_options=symmetric
    )
    assert check_qdq(graph).errors == ()
    assert compile_graph(graph)


def test_a_model_of_integer_operators_is_refused_by_name() -> None:
    graph = Graph.read(environment.shared_model("shufflenet_v2_12_int8_qop.onnx"))
    report = check_qdq(graph)
    assert {finding.code for finding in report.errors} >= {"unsupported-operator"}
    assert any("QLinearConv" in finding.message for finding in report.errors)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from kedge.errors import BadInputError, IncompatibleError
from kedge.model.graph import Graph
from kedge.model.session import ReferenceModel
from kedge.optimize.train.ops import OPS
from kedge.optimize.train.view import TorchView
from tests.support.environment import shared_model
from tests.support.models import classifier, images

F32 = TensorProto.FLOAT
RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape) + sum(shape)).standard_normal(shape).astype(np.float32)


def i64(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, np.ndarray],
    constants: Mapping[str, np.ndarray],
    outputs: Sequence[str],
    opset: int,
    *,
    batch: str | None = None,
) -> Graph:
    def declared(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
        shape: list[Any] = list(array.shape)
        if batch is not None:
            shape[0] = batch
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), shape)

    made = helper.make_graph(
        list(nodes),
        "test",
        [declared(name, array) for name, array in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return Graph(helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9))


def reference(graph: Graph, inputs: Mapping[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    path = folder / "reference.onnx"
    path.write_bytes(graph.proto.SerializeToString())
    return ReferenceModel(path).run(inputs)


def view_outputs(view: TorchView, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        made = view({name: torch.from_numpy(array) for name, array in inputs.items()})
    return {name: value.numpy() for name, value in made.items()}


def op(kind: str, *values: Any, opset: int = 17, outputs: int = 1, **attributes: Any) -> Any:
    """One case: an operator on values; arrays wrapped in a list are constants, None is left out."""
    named = "_".join(f"{key}={value}" for key, value in attributes.items() if not isinstance(value, onnx.TensorProto))
    return pytest.param(kind, values, opset, outputs, attributes, id=f"{kind}-{opset}-{named}"[:80].rstrip("-"))


X = floats(2, 4, 9, 7)
V = floats(3, 5)
CASES = [
    *(op(kind, V) for kind in ("Abs", "Neg", "Exp", "Erf", "Tanh", "Sigmoid", "Relu", "Softplus", "Floor", "Ceil")),
    *(op(kind, V) for kind in ("Round", "Sign", "Sin", "Cos", "Selu", "Softsign", "Elu", "HardSwish", "Identity")),
    *(op(kind, np.abs(V) + 0.1) for kind in ("Sqrt", "Log", "Reciprocal")),
    *(op(kind, V, floats(1, 5)) for kind in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Equal", "Greater", "Less")),
    *(op(kind, V, V, floats(5)) for kind in ("Sum", "Mean", "Max", "Min")),
    *(op(kind, V > 0, V < 1) for kind in ("And", "Or", "Xor")),
    *(op(kind, V, V.copy()) for kind in ("GreaterOrEqual", "LessOrEqual")),
    op("Not", V > 0),
    op("Div", i64(-7, 7, 9), i64(2, -2, 4)),
    op("Pow", np.abs(V) + 0.1, [np.float32(2.5)]),
    op("Mod", i64(-7, 7, 9), i64(3, -2, 4)),
    op("Mod", V, np.abs(V) + 0.3, fmod=1),
    op("LeakyRelu", V, alpha=0.2),
    op("PRelu", V, [floats(5)]),
    op("Clip", V, [np.float32(-0.3)], [np.float32(0.4)]),
    op("Clip", V, None, [np.float32(0.4)]),
    op("Clip", V, opset=8, min=-0.3, max=0.4),
    op("HardSigmoid", V, alpha=0.3, beta=0.4),
    op("Gelu", V, opset=20),
    op("Gelu", V, opset=20, approximate="tanh"),
    op("Mish", V, opset=18),
    op("Softmax", floats(2, 3, 4)),
    op("Softmax", floats(2, 3, 4), opset=11),
    op("Softmax", floats(2, 3, 4), opset=11, axis=2),
    op("LogSoftmax", floats(2, 3, 4), axis=1),
    op("Where", V > 0, V, floats(5)),
    # normalisations
    op("LayerNormalization", floats(2, 3, 8), [floats(8)], [floats(8)]),
    op("LayerNormalization", floats(2, 3, 8), [floats(3, 8)], [floats(3, 8)], axis=1, epsilon=1e-3),
    op("LayerNormalization", floats(2, 3, 8), [floats(8)]),
    op("InstanceNormalization", X, [floats(4)], [floats(4)], epsilon=1e-3),
    op("BatchNormalization", X, [floats(4)], [floats(4)], [floats(4)], [np.abs(floats(4)) + 0.1]),
    op("BatchNormalization", V, [floats(5)], [floats(5)], [floats(5)], [np.abs(floats(5)) + 0.1], opset=9),
    op("BatchNormalization", X, floats(4), floats(4), floats(4), np.abs(floats(4)) + 0.1),
    op("LRN", X, size=3),
    # convolutions
    op("Conv", X, [floats(6, 4, 3, 3)], [floats(6)], pads=[1, 1, 1, 1], strides=[2, 2]),
    op("Conv", X, [floats(6, 4, 3, 3)], pads=[0, 1, 2, 1]),
    op("Conv", X, [floats(6, 4, 3, 2)], auto_pad="SAME_UPPER", strides=[2, 2]),
    op("Conv", X, [floats(6, 4, 3, 2)], auto_pad="SAME_LOWER"),
    op("Conv", X, [floats(6, 4, 3, 3)], auto_pad="SAME_UPPER"),
    op("Conv", X, [floats(6, 4, 3, 3)], auto_pad="VALID"),
    op("Conv", X, [floats(8, 2, 3, 3)], group=2, dilations=[2, 1], pads=[1, 1, 1, 1]),
    op("Conv", X, [floats(4, 1, 3, 3)], [floats(4)], group=4),
    op("Conv", floats(2, 4, 11), [floats(6, 4, 3)], [floats(6)], strides=[2], pads=[1, 1]),
    op("Conv", floats(2, 4, 11), [floats(6, 4, 4)], auto_pad="SAME_UPPER"),
    op("Conv", floats(1, 2, 5, 5, 5), [floats(3, 2, 3, 3, 3)], pads=[1] * 6),
    op("Conv", X, floats(6, 4, 3, 3), floats(6), pads=[1, 1, 1, 1]),
    op("ConvTranspose", X, [floats(4, 3, 3, 3)], [floats(3)], strides=[2, 2], pads=[1, 1, 1, 1]),
    op("ConvTranspose", X, [floats(4, 3, 3, 3)], strides=[2, 2], output_padding=[1, 1]),
    op("ConvTranspose", X, [floats(4, 3, 3, 3)], strides=[2, 2], pads=[0, 1, 1, 0]),
    op("ConvTranspose", X, [floats(4, 3, 3, 3)], strides=[2, 2], auto_pad="SAME_UPPER"),
    op("ConvTranspose", X, [floats(4, 3, 3, 3)], strides=[2, 2], output_shape=[18, 14]),
    op("ConvTranspose", X, [floats(4, 3, 3, 3)], group=2, dilations=[2, 1]),
    op("ConvTranspose", floats(2, 4, 7), [floats(4, 3, 3)], strides=[2]),
    # matrices
    op("Gemm", V, [floats(5, 4)], [floats(4)]),
    op("Gemm", V, [floats(4, 5)], [floats(1, 4)], transB=1),
    op("Gemm", V, [floats(4, 5)], transB=1),
    op("Gemm", V, [floats(4, 5)], [floats(3, 4)], transB=1, alpha=0.5, beta=2.0),
    op("Gemm", V, [floats(3, 4)], [np.float32(0.5)], transA=1),
    op("MatMul", floats(2, 3, 5), [floats(5, 4)]),
    op("MatMul", floats(2, 3, 5), [floats(2, 5, 4)]),
    op("MatMul", [floats(4, 3)], floats(2, 3, 5)),
    op("MatMul", floats(2, 3, 5), floats(2, 5, 4)),
    op("Einsum", floats(2, 3, 5), floats(2, 5, 4), equation="bij,bjk->bki"),
    # pools
    op("MaxPool", X, kernel_shape=[3, 3], strides=[2, 2]),
    op("MaxPool", X, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1),
    op("MaxPool", X, kernel_shape=[3, 2], strides=[2, 2], pads=[0, 0, 1, 1]),
    op("MaxPool", X, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    op("MaxPool", X, kernel_shape=[3, 3], dilations=[2, 2]),
    op("MaxPool", floats(2, 4, 11), kernel_shape=[2], strides=[2]),
    op("AveragePool", X, kernel_shape=[3, 3], strides=[2, 2]),
    op("AveragePool", X, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    op("AveragePool", X, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1),
    op("AveragePool", X, kernel_shape=[3, 2], strides=[2, 2], pads=[0, 0, 1, 1]),
    op("AveragePool", X, kernel_shape=[3, 2], strides=[2, 2], pads=[0, 0, 1, 1], count_include_pad=1),
    op("AveragePool", X, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    op("AveragePool", X, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    op("GlobalAveragePool", X),
    op("GlobalMaxPool", X),
    # reductions
    *(op(kind, X, axes=[1, -1]) for kind in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2")),
    *(op(kind, X, axes=[2], keepdims=0) for kind in ("ReduceMean", "ReduceProd", "ReduceLogSumExp", "ReduceSumSquare")),
    *(op(kind, X, [i64(2, 3)], opset=18) for kind in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")),
    op("ReduceMean", X),
    op("ReduceSum", X, [i64()], noop_with_empty_axes=1),
    op("ReduceSum", X, [i64(1)], keepdims=0),
    op("ReduceSum", X, opset=11, axes=[1]),
    op("ReduceMax", V, axes=[0]),
    op("ArgMax", X, axis=1, keepdims=0),
    op("ArgMin", X, axis=1),
    op("TopK", V, [i64(2)], outputs=2),
    op("CumSum", V, [i64(1)]),
    # shapes
    op("Reshape", X, [i64(0, -1)]),
    op("Reshape", X, [i64(2, 0, -1)]),
    op("Reshape", np.zeros((0, 3), np.float32), [i64(3, 0)], allowzero=1),
    op("Flatten", X),
    op("Flatten", X, axis=2),
    op("Flatten", X, axis=0),
    op("Transpose", X, perm=[0, 2, 3, 1]),
    op("Transpose", X),
    op("Squeeze", floats(2, 1, 3, 1), [i64(1)]),
    op("Squeeze", floats(2, 1, 3, 1)),
    op("Squeeze", floats(2, 1, 3, 1), opset=11, axes=[3]),
    op("Unsqueeze", V, [i64(0, -1)]),
    op("Unsqueeze", V, opset=11, axes=[1, 3]),
    op("Concat", V, V, [floats(3, 1)], axis=1),
    op("Split", X, outputs=2, axis=1),
    op("Split", X, [i64(1, 3)], outputs=2, axis=1),
    op("Split", X, outputs=2, opset=11, axis=1, split=[1, 3]),
    op("Split", X, outputs=2, opset=18, axis=2, num_outputs=2),
    op("Slice", X, [i64(1, 0)], [i64(-1, 2**62)], [i64(2, -1)], [i64(2, 3)]),
    op("Slice", X, [i64(-1)], [i64(-(2**62))], [i64(2)], [i64(-1)]),
    op("Slice", X, [i64(6, 1)], [i64(1, 5)], [i64(3, 2)], [i64(-2, 1)]),
    op("Slice", X, opset=9, starts=[1, 0], ends=[3, -2], axes=[1, 2]),
    op("Gather", V, [i64(0, -1, 2)]),
    op("Gather", V, [np.array([[0, 1], [-1, 2]])], axis=1),
    op("Gather", V, [np.array(1)], axis=1),
    op("Gather", [V], i64(0, 2)),
    op("GatherElements", V, [np.array([[0, -1, 2]])], axis=1),
    op("Pad", X, [i64(0, 0, 1, 2, 0, 0, 2, 1)], [np.float32(0.5)]),
    op("Pad", X, [i64(0, 1, 0, 0, 1, 0, 0, -2)]),
    op("Pad", X, [i64(1, 2, 2, 1)], [np.float32(0)], [i64(1, -1)], opset=18),
    op("Pad", X, [i64(0, 0, 1, 2, 0, 0, 2, 1)], mode="reflect"),
    op("Pad", X, [i64(0, 0, 1, 2, 0, 0, 2, 1)], mode="edge"),
    op("Pad", X, [i64(0, 0, 0, 0, 0, 0, 0, 0)], mode="reflect"),
    op("Pad", X, opset=8, pads=[0, 0, 1, 2, 0, 0, 2, 1], value=1.5),
    op("Expand", floats(3, 1), [i64(2, 1, 5)]),
    op("Tile", V, [i64(2, 3)]),
    op("Shape", X),
    op("Shape", X, start=1, end=-1),
    op("Size", X),
    op("ConstantOfShape", i64(2, 3)),
    op("ConstantOfShape", i64(2, 3), value=numpy_helper.from_array(np.array([7], np.int64))),
    op("Range", np.int64(1), np.int64(9), np.int64(3)),
    op("Cast", V, to=TensorProto.INT32),
    op("Cast", i64(0, 2), to=TensorProto.BOOL),
    op("CastLike", i64(0, 2), V),
    op("Trilu", V, upper=0),
    op("OneHot", i64(0, 2, -1), [np.array(4)], [np.array([0.5, 2.0], np.float32)]),
    op("Dropout", V),
    op("DepthToSpace", floats(2, 8, 3, 3), blocksize=2),
    op("DepthToSpace", floats(2, 8, 3, 3), blocksize=2, mode="CRD"),
    op("SpaceToDepth", floats(2, 3, 4, 6), blocksize=2),
    # resizing
    op("Resize", X, None, [np.array([1, 1, 2, 2], np.float32)]),
    op("Resize", X, None, [np.array([1, 1, 2, 2], np.float32)], coordinate_transformation_mode="asymmetric",
       nearest_mode="floor"),
    op("Resize", X, None, None, [i64(2, 4, 5, 12)], mode="linear"),
    op("Resize", X, None, [np.array([1, 1, 1.5, 0.6], np.float32)], mode="linear",
       coordinate_transformation_mode="align_corners"),
    op("Resize", X, None, None, [i64(2, 4, 20, 5)], mode="linear",
       coordinate_transformation_mode="pytorch_half_pixel"),
    op("Resize", X, None, [np.array([2, 2], np.float32)], opset=18, axes=[2, 3], nearest_mode="ceil"),
    op("Resize", X, [np.array([1, 1, 2, 2], np.float32)], opset=10, mode="linear"),
    op("Upsample", X, [np.array([1, 1, 2, 2], np.float32)], opset=9),
    # quantisation
    op("QuantizeLinear", V, [np.float32(0.02)], [np.uint8(128)]),
    op("QuantizeLinear", V, [np.array([0.1, 0.2, 0.05], np.float32)], [np.zeros(3, np.int8)], axis=0),
    op("DequantizeLinear", (V * 20).astype(np.int8), [np.full(5, 0.1, np.float32)], [np.zeros(5, np.int8)], axis=1),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "values", "opset", "outputs", "attributes"), CASES)
def test_an_operator_gives_what_onnxruntime_gives(kind, values, opset, outputs, attributes, tmp_path):
    names, inputs, constants = [], {}, {}
    for index, value in enumerate(values):
        if value is None:
            names.append("")
            continue
        name = f"x{index}"
        names.append(name)
        (constants if isinstance(value, list) else inputs)[name] = np.asarray(
            value[0] if isinstance(value, list) else value
        )
    made = [f"y{index}" for index in range(outputs)]
    graph = graph_of([helper.make_node(kind, names, made, **attributes)], inputs, constants, made, opset)
    expected = reference(graph, inputs, tmp_path)
    found = view_outputs(TorchView(graph).eval(), inputs)
    for name in made:
        assert found[name].shape == expected[name].shape
        np.testing.assert_allclose(
            found[name].astype(np.float64), expected[name].astype(np.float64), rtol=1e-4, atol=1e-5
        )


def test_every_operator_of_the_table_is_tried():
    assert set(OPS) - {case.values[0] for case in CASES} == {"Constant", "GroupNormalization"}


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("resnet20_cifar10.onnx", 1.0),
        ("resnet8_cifar10_mlperftiny.onnx", 100.0),
        ("mnist_cnn.onnx", 1.0),
        ("kws_dscnn.onnx", 1.0),
        ("kwt1_speechcommands.onnx", 1.0),
        ("mobilenetv2_imagenet.onnx", 1.0),
        ("vww_mobilenetv1_96.onnx", 1.0),
        ("ad01_autoencoder.onnx", 1.0),
        ("magika_v3_3.onnx", 1.0),
        ("super_resolution.onnx", 1.0),
        ("yolox_nano.onnx", 100.0),
        ("ultraface_rfb_320.onnx", 1.0),
    ],
)
def test_a_real_model_gives_what_onnxruntime_gives(name, scale):
    path = shared_model(name)
    graph = Graph.read(path)
    inputs = {}
    for wanted in graph.input_names:
        kind, shape = graph.types[wanted]
        sizes = [size or 1 for size in shape or ()]
        if kind == TensorProto.INT32:
            inputs[wanted] = RANDOM.integers(0, 257, sizes).astype(np.int32)
        else:
            inputs[wanted] = (RANDOM.standard_normal(sizes) * scale).astype(np.float32)
    expected = ReferenceModel(path).run(inputs)
    view = TorchView(graph).eval()
    found = view_outputs(view, inputs)
    for output, value in expected.items():
        assert np.abs(found[output] - value).max() <= 1e-3 * np.abs(value).max()
    assert view.to_graph().digest == graph.digest
    assert any(parameter.requires_grad for parameter in view.parameters())


@pytest.mark.parametrize(
    ("name", "kind"), [("silero_vad_16k_op15.onnx", "If"), ("shufflenet_v2_12_int8_qop.onnx", "QLinearConv")]
)
def test_a_model_with_no_torch_form_is_refused_by_node_and_operator(name, kind):
    with pytest.raises(IncompatibleError, match=rf"node '.+' has operator {kind}, which has no torch form"):
        TorchView(Graph.read(shared_model(name)))


def trained(view: TorchView) -> None:
    """Change every parameter a little."""
    with torch.no_grad():
        for parameter in view.parameters():
            parameter.add_(0.01 * torch.arange(parameter.numel(), dtype=torch.float32).reshape(parameter.shape).sin())


def test_a_graph_without_changes_comes_back_as_it_was(tmp_path):
    graph = Graph.read(classifier(tmp_path / "m.onnx"))
    assert TorchView(graph).to_graph().digest == graph.digest


@pytest.mark.parametrize("name", ["mnist_cnn.onnx", "kws_dscnn.onnx", "magika_v3_3.onnx", "kwt1_speechcommands.onnx"])
def test_trained_weights_go_back_into_a_real_graph(name, tmp_path):
    graph = Graph.read(shared_model(name))
    view = TorchView(graph).eval()
    trained(view)
    inputs = {}
    for wanted in graph.input_names:
        kind, shape = graph.types[wanted]
        sizes = [size or 2 for size in shape or ()]
        inputs[wanted] = RANDOM.integers(0, 9, sizes).astype(helper.tensor_dtype_to_np_dtype(kind))
    back = view.to_graph()
    expected = reference(back, inputs, tmp_path)
    before = reference(graph, inputs, tmp_path)
    for output, value in view_outputs(view, inputs).items():
        assert np.abs(value - expected[output]).max() <= 1e-3 * np.abs(expected[output]).max()
        assert not np.array_equal(before[output], expected[output])


def test_layers_are_torch_modules_found_by_node(tmp_path):
    graph = Graph.read(classifier(tmp_path / "m.onnx"))
    view = TorchView(graph)
    kinds = {name: type(view.layer(name)).__name__ for name in view.layer_names}
    assert sorted(kinds.values()) == ["Conv2d", "Linear"]
    for name in view.layer_names:
        assert view.node_of(view.layer(name)) == name
    with pytest.raises(BadInputError, match="is no weighted layer"):
        view.layer("nothing")
    with pytest.raises(BadInputError, match="is no layer of this view"):
        view.node_of(torch.nn.Linear(2, 2))


def test_what_may_be_trained_is_a_parameter_and_all_else_is_not():
    constants = {
        "bias": floats(4, 1, 1),
        "scalar": np.array(2.0, np.float32),
        "table": floats(4, 9, 7),
        "mask": np.full((4, 1, 1), -np.inf, np.float32),
    }
    nodes = [
        helper.make_node("Add", ["x", "bias"], ["a"]),
        helper.make_node("Mul", ["a", "scalar"], ["b"]),
        helper.make_node("Add", ["b", "table"], ["c"]),
        helper.make_node("Max", ["c", "mask"], ["y"]),
    ]
    view = TorchView(graph_of(nodes, {"x": X}, constants, ["y"], 17))
    assert [tuple(parameter.shape) for parameter in view.parameters()] == [(4, 1, 1)]


def test_a_constant_read_twice_is_one_parameter():
    weight = floats(5, 5)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"]),
    ]
    view = TorchView(graph_of(nodes, {"x": V}, {"w": weight}, ["y"], 17))
    assert len(list(view.parameters())) == 1
    trained(view)
    np.testing.assert_array_equal(view.to_graph().array("w"), next(view.parameters()).detach().numpy().T)


def test_a_constant_read_in_two_layouts_is_still_one_parameter(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Gemm", ["a", "w"], ["y"], transB=1),
    ]
    graph = graph_of(nodes, {"x": V}, {"w": floats(5, 5)}, ["y"], 17)
    view = TorchView(graph).eval()
    assert len(list(view.parameters())) == 1
    trained(view)
    found = view_outputs(view, {"x": V})["y"]
    np.testing.assert_allclose(found, reference(view.to_graph(), {"x": V}, tmp_path)["y"], rtol=1e-4, atol=1e-5)


def test_batch_normalisation_learns_the_statistics_of_what_it_sees():
    names = ("scale", "bias", "mean", "var")
    constants = {name: np.ones(4, np.float32) for name in names}
    nodes = [helper.make_node("BatchNormalization", ["x", *names], ["y"], momentum=0.75)]
    graph = graph_of(nodes, {"x": X}, constants, ["y"], 17)
    view = TorchView(graph).train()
    y = view({"x": torch.from_numpy(X)})["y"]
    assert abs(float(y.detach().mean()) - 1.0) < 1e-4  # batch statistics, then scale 1 and bias 1
    expected = 0.75 * 1.0 + 0.25 * X.mean(axis=(0, 2, 3))
    np.testing.assert_allclose(view.to_graph().array("mean"), expected, rtol=1e-4)


def test_hooks_see_tensors_and_weights_by_their_onnx_names(tmp_path):
    graph = Graph.read(classifier(tmp_path / "m.onnx"))
    view = TorchView(graph).eval()
    x = {"image": torch.from_numpy(images(3))}
    plain = view(x)["logits"]
    seen: dict[str, tuple[int, ...]] = {}
    weights: dict[str, tuple[int, ...]] = {}

    def activation(name: str, value: torch.Tensor) -> torch.Tensor:
        seen[name] = tuple(value.shape)
        return value

    def weight(name: str, value: torch.Tensor) -> torch.Tensor:
        weights[name] = tuple(value.shape)
        return value * 2 if value.dim() == 2 else value

    view.activation_hook, view.weight_hook = activation, weight
    doubled = view(x)["logits"]
    assert list(seen) == ["image", "c", "r", "p", "f", "logits"]
    assert list(weights.values()) == [(8, 1, 3, 3), (8, 4)]  # ONNX's layout, [in, out] for the MatMul
    torch.testing.assert_close(doubled, plain * 2)


@pytest.mark.parametrize(
    ("kind", "weight", "attributes"),
    [
        ("Conv", floats(8, 2, 3, 3), {"group": 2, "strides": [2, 1], "pads": [0, 1, 1, 1]}),
        ("ConvTranspose", floats(4, 3, 3, 3), {"strides": [2, 2], "output_padding": [1, 1]}),
    ],
)
def test_a_hooked_layer_runs_as_it_does_without(kind, weight, attributes):
    graph = graph_of([helper.make_node(kind, ["x", "w"], ["y"], **attributes)], {"x": X}, {"w": weight}, ["y"], 17)
    view = TorchView(graph).eval()
    plain = view_outputs(view, {"x": X})["y"]
    view.weight_hook = lambda name, value: value
    np.testing.assert_array_equal(view_outputs(view, {"x": X})["y"], plain)


def test_a_graph_of_fixed_batch_runs_on_other_batches():
    graph = Graph.read(shared_model("mnist_cnn.onnx"))
    view = TorchView(graph).eval()
    x = (RANDOM.random((5, 1, 28, 28)) * 255).astype(np.float32)
    one_by_one = np.concatenate([next(iter(view_outputs(view, {"Input3": x[i : i + 1]}).values())) for i in range(5)])
    together = next(iter(view_outputs(view, {"Input3": x}).values()))
    np.testing.assert_allclose(together, one_by_one, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("allowzero", [0, 1])  # torch's exporter writes 1, with which onnxruntime refuses [0, -1]
def test_widths_that_pruning_changed_go_back_into_the_graph(allowzero, tmp_path):
    constants = {
        "w1": floats(6, 3, 3, 3),
        "b1": floats(6),
        "dw": floats(6, 1, 3, 3),
        "fc": floats(54, 2),
        "to": i64(-1, 54),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"]),
        helper.make_node("Conv", ["a", "dw"], ["d"], group=6),
        helper.make_node("Reshape", ["d", "to"], ["f"], allowzero=allowzero),
        helper.make_node("MatMul", ["f", "fc"], ["y"]),
    ]
    x = floats(2, 3, 7, 7)
    graph = graph_of(nodes, {"x": x}, constants, ["y"], 17, batch="n")
    view = TorchView(graph).eval()
    first, depthwise, matrix = (view.layer(name) for name in view.layer_names)
    with torch.no_grad():
        first.weight, first.bias = torch.nn.Parameter(first.weight[:4]), torch.nn.Parameter(first.bias[:4])
        depthwise.weight, depthwise.groups = torch.nn.Parameter(depthwise.weight[:4]), 4
        matrix.weight = torch.nn.Parameter(matrix.weight[:, :36])
    small = view.to_graph()
    small.proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", F32, ["n", 2]))
    small.write(tmp_path / "small.onnx")
    assert small.array("fc").shape == (36, 2)
    expected = reference(small, {"x": x}, tmp_path)["y"]
    np.testing.assert_allclose(view_outputs(view, {"x": x})["y"], expected, rtol=1e-4, atol=1e-4)
    assert graph.array("fc").shape == (54, 2)


def test_inputs_that_do_not_fit_are_refused_by_node(tmp_path):
    view = TorchView(Graph.read(classifier(tmp_path / "m.onnx")))
    with pytest.raises(BadInputError, match="input 'image' is missing"):
        view({})
    with pytest.raises(BadInputError, match=r"node 'Conv_0' \(Conv\) cannot run"):
        view({"image": torch.zeros(1, 3, 8, 8)})


def test_a_shape_no_model_has_is_refused():
    graph = graph_of([helper.make_node("ConstantOfShape", ["n"], ["y"])], {"n": i64(1)}, {}, ["y"], 17)
    with pytest.raises(BadInputError, match="asks for a tensor of shape"):
        TorchView(graph)({"n": torch.tensor([2**20, 2**20])})

"""FP16, BF16, FP8, INT4 weights and dynamic INT8: what each computes, what it leaves alone, what it refuses."""

from __future__ import annotations

import wave
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from kedge.build.plan import plan
from kedge.errors import BadInputError, IncompatibleError
from kedge.model.graph import Graph
from kedge.model.onnx_io import model_spec
from kedge.model.qdq_check import check_qdq
from kedge.model.samples import Samples
from kedge.optimize.proof.runner import run_all
from kedge.optimize.quantize.awq import awq_weights
from kedge.optimize.quantize.blocks import symmetric_blocks
from kedge.optimize.quantize.simulate import simulation
from kedge.optimize.quantize.step import Quantize
from kedge.optimize.work import Result, Work
from kedge.targets import load_target
from kedge_agent.engine.apart import compile_apart
from kedge_agent.engine.order import Order
from tests.support import compiled
from tests.support.environment import SHARED, modelopt, shared_model, tensorrt_rtx

CPU, RTX = "cpu-generic-x86_64", "rtx-ada-2000"
RANDOM = np.random.default_rng(0)


def normal(*shape: int, scale: float = 1.0) -> NDArray[np.float32]:
    return (RANDOM.standard_normal(shape) * scale).astype(np.float32)


def graph(
    nodes: list[onnx.NodeProto],
    width: int,
    outputs: dict[str, tuple[int | str, ...]],
    opset: int = 17,
    **constants: NDArray[np.generic],
) -> Graph:
    """x [n, width] → the outputs."""
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])]
    body = helper.make_graph(nodes, "test", given, made, tensors)
    return Graph(helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=8))


def node(op: str, inputs: str, output: str, **given: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], name=f"{op}_{output}", **given)


def two_layers(width: int = 32) -> Graph:
    """A product, ReLU, and a Gemm with its weights turned."""
    return graph(
        [node("MatMul", "x w", "a"), node("Relu", "a", "b"), node("Gemm", "b v c", "y", transB=1)],
        width,
        {"y": ("n", 10)},
        w=normal(width, 48, scale=0.2),
        v=normal(10, 48, scale=0.2),
        c=normal(10),
    )


def work(target: str, given: Graph, folder: Path, data: NDArray[np.float32] | None = None, name: str = "x") -> Work:
    calibration = None if data is None else Samples({name: data})
    return Work(load_target(target), given, calibration, None, scratch=folder, cache=folder)


def outputs_of(given: Graph, x: NDArray[np.float32], *, faithful: bool = True) -> NDArray[np.float32]:
    return next(iter(run_all(given, Samples({"x": x}), faithful=faithful).values()))


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))


def kind(given: Graph, tensor: str) -> int:
    return given.types[tensor][0]


def test_fp16_is_inside_and_fp32_outside(tmp_path: Path) -> None:
    given, x = two_layers(), normal(40, 32)
    result = Quantize(precision="fp16").apply(given, work(CPU, given, tmp_path, x))
    made = result.graph
    assert (kind(made, "x"), kind(made, "y")) == (TensorProto.FLOAT, TensorProto.FLOAT)
    assert {tensor.data_type for tensor in made.initializers.values()} == {TensorProto.FLOAT16}
    found, expected = outputs_of(made, x), outputs_of(given, x)
    assert np.abs(found - expected).max() < 0.02
    assert not np.array_equal(found, expected)
    assert result.changed["output_error"] < 1e-5
    assert model_spec(made.proto).precision == "fp16"
    assert plan(model_spec(made.proto), load_target(CPU)).precision == "fp16"
    assert "not faster" in " ".join(result.notes)


def test_what_a_subgraph_reads_and_what_is_an_output_stay_fp32(tmp_path: Path) -> None:
    then = helper.make_graph(
        [node("Mul", "a a", "squared")], "then", [], [helper.make_tensor_value_info("squared", TensorProto.FLOAT, None)]
    )
    other = helper.make_graph(
        [node("Identity", "a", "same")], "else", [], [helper.make_tensor_value_info("same", TensorProto.FLOAT, None)]
    )
    given = graph(
        [
            node("MatMul", "x w", "a"),
            node("If", "yes", "b", then_branch=then, else_branch=other),
            node("MatMul", "b v", "y"),
        ],
        8,
        {"y": ("n", 4), "a": ("n", 8)},
        w=normal(8, 8),
        v=normal(8, 4),
        yes=np.array(True),
    )
    made = Quantize(precision="fp16").apply(given, work(RTX, given, tmp_path)).graph
    x = normal(5, 8)
    assert kind(made, "a") == TensorProto.FLOAT
    for name, values in run_all(made, Samples({"x": x})).items():
        assert np.allclose(values, run_all(given, Samples({"x": x}))[name], rtol=0.05, atol=0.2), name


def test_values_and_constants_that_fp16_cannot_hold_stay_fp32(tmp_path: Path) -> None:
    given = graph(
        [
            node("Mul", "x big", "a"),
            node("Mul", "a small", "b"),
            node("MatMul", "b w", "c"),
            node("Mul", "c c", "d"),
            node("Sqrt", "d", "e"),
            node("MatMul", "e w", "y"),
        ],
        8,
        {"y": ("n", 8)},
        big=np.float32(3e5) * np.ones(8, np.float32),
        small=np.float32(1e-8) * np.ones(8, np.float32),
        w=np.abs(normal(8, 8)),
    )
    x = np.abs(normal(16, 8))
    result = Quantize(precision="fp16").apply(given, work(RTX, given, tmp_path, x))
    low = result.evidence["precision"]
    assert "Mul_a" not in low, "its constant is above 65504"
    assert "Mul_b" not in low, "its constant is below the least normal number"
    assert "Mul_d" in low or "Sqrt_e" in low or "MatMul_y" in low
    assert np.abs(outputs_of(result.graph, x) / outputs_of(given, x) - 1).max() < 0.02


def test_activations_out_of_range_are_found_on_the_data(tmp_path: Path) -> None:
    given = graph(
        [node("MatMul", "x w", "a"), node("Mul", "a a", "b"), node("Mul", "b c", "d"), node("MatMul", "d w", "y")],
        16,
        {"y": ("n", 16)},
        w=normal(16, 16),
        c=np.full(16, 1e-4, np.float32),
    )
    x = normal(32, 16, scale=100)
    blind = Quantize(precision="fp16").apply(given, work(RTX, given, tmp_path))
    assert "neither the range of values nor the error was measured" in blind.notes[0]
    rounded = simulation(blind.graph)
    assert rounded is not None
    assert not np.isfinite(outputs_of(rounded, x)).all()
    seen = Quantize(precision="fp16").apply(given, work(RTX, given, tmp_path, x))
    assert "Mul_b" not in seen.evidence["precision"]
    rounded = simulation(seen.graph)
    assert rounded is not None
    assert cosines(outputs_of(rounded, x), outputs_of(given, x)).min() > 0.9999


def test_sensitive_operators_shapes_and_what_is_asked_for_stay_fp32(tmp_path: Path) -> None:
    given = graph(
        [
            node("MatMul", "x w", "a"),
            node("Softmax", "a", "b"),
            node("MatMul", "b w", "c"),
            node("MatMul", "c w", "d"),
            node("Shape", "d", "s"),
            node("Cast", "s", "f", to=TensorProto.FLOAT),
            node("Mul", "f halved", "g"),
            node("Cast", "g", "i", to=TensorProto.INT64),
            node("Reshape", "d i", "y"),
        ],
        8,
        {"y": ("m", 4)},
        w=normal(8, 8),
        halved=np.array([2, 0.5], np.float32),
    )
    low = Quantize(precision="fp16", keep=("MatMul_c",)).apply(given, work(RTX, given, tmp_path)).evidence["precision"]
    assert {"MatMul_a", "MatMul_d", "Reshape_y"} <= set(low)
    assert not {"Softmax_b", "MatMul_c", "Mul_g"} & set(low)
    with pytest.raises(BadInputError, match="no layer matches"):
        Quantize(precision="fp16", keep=("nothing*",)).apply(given, work(RTX, given, tmp_path))


def test_a_quantised_graph_is_not_cast(tmp_path: Path) -> None:
    given, x = two_layers(), normal(16, 32)
    made = Quantize(calibrator="min-max").apply(given, work(RTX, given, tmp_path, x)).graph
    for precision in ("fp16", "int4"):
        with pytest.raises(IncompatibleError, match="quantised already"):
            Quantize(precision=precision).apply(made, work(RTX, given, tmp_path, x))


def test_a_target_without_the_precision_refuses_it(tmp_path: Path) -> None:
    given = two_layers()
    for precision in ("bf16", "fp8"):
        with pytest.raises(IncompatibleError, match=f"not {precision}"):
            Quantize(precision=precision).apply(given, work(CPU, given, tmp_path))


def test_bf16_is_simulated_as_rounding_of_each_result(tmp_path: Path) -> None:
    given, x = two_layers(), normal(8, 32)
    result = Quantize(precision="bf16").apply(given, work(RTX, given, tmp_path, x))
    twin = simulation(result.graph)
    assert twin is not None
    assert simulation(given) is None

    def rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return values.astype(ml_dtypes.bfloat16).astype(np.float32)

    a = np.maximum(rounded(rounded(x) @ rounded(given.array("w"))), 0)
    expected = rounded(a @ rounded(given.array("v")).T + rounded(given.array("c")))
    found = outputs_of(twin, x)
    # A sum in another order may fall on the other side of a rounding.
    assert (found == expected).mean() > 0.95
    assert np.abs(found - expected).max() <= np.abs(expected).max() * 2**-8
    assert 1e-6 < result.changed["output_error"] < 1e-3


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_compiles_for_tensorrt(tmp_path: Path, precision: str) -> None:
    tensorrt_rtx()
    weight = normal(16, 8, 3, 3, scale=0.1)
    given = graph(
        [
            node("Reshape", "x shape", "a"),
            node("Conv", "a w", "b", pads=[1, 1, 1, 1]),
            node("Relu", "b", "c"),
            node("GlobalAveragePool", "c", "d"),
            node("Flatten", "d", "e"),
            node("Gemm", "e v", "y"),
        ],
        8 * 64,
        {"y": ("n", 4)},
        shape=np.array([-1, 8, 8, 8]),
        w=weight,
        v=normal(16, 4),
    )
    result = Quantize(precision=precision).apply(given, work(RTX, given, tmp_path, normal(8, 512)))
    assert result.evidence["precision"]["Conv_b"] == precision
    result.graph.write(tmp_path / "m.onnx")
    assert compile_apart((tmp_path / "m.onnx").read_bytes(), Order(compute_capabilities=("8.9",))).engine


def test_fp8_rounds_as_e4m3_and_compiles(tmp_path: Path) -> None:
    tensorrt_rtx()
    given, x = two_layers(), normal(64, 32)
    result = Quantize(precision="fp8").apply(given, work(RTX, given, tmp_path, x))
    made = result.graph

    def fake(values: NDArray[np.float32], amax: NDArray[np.float32] | np.float32) -> NDArray[np.float32]:
        scale = (amax / np.float32(448)).astype(np.float32)
        q = np.clip(values / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn)
        return q.astype(np.float32) * scale

    w = given.array("w")
    product = fake(x, np.abs(x).max()) @ fake(w, np.abs(w).max(axis=0))
    tapped = made.copy()
    tapped.proto.graph.output.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, None))
    assert np.allclose(run_all(tapped, Samples({"x": x}), faithful=True)["a"], product, atol=1e-5)
    assert result.changed["layers"] == {"fp32": 0, "fp8": 2}
    assert result.changed["output_error"] < 0.01
    assert not check_qdq(made, load_target(RTX).precisions).errors
    assert model_spec(made.proto).precision == "fp8"
    made.write(tmp_path / "m.onnx")
    engine = compile_apart((tmp_path / "m.onnx").read_bytes(), Order(compute_capabilities=("8.9",))).engine
    assert compiled.layers(engine) == (2, 2)


def test_fp8_keeps_what_harms_in_a_residual_network(tmp_path: Path) -> None:
    """With fewer layers chosen, another operand of an Add is the one that is quantised."""
    given = Graph.read(shared_model("resnet8_cifar10_mlperftiny.onnx"))
    name = given.input_names[0]
    x = np.random.default_rng(1).random((8, *(dim or 1 for dim in given.types[name][1][1:]))).astype(np.float32)
    result = Quantize(precision="fp8").apply(given, work(RTX, given, tmp_path, x, name))
    assert result.changed["kept_for_their_error"]
    assert result.changed["output_error"] < 0.02
    assert not check_qdq(result.graph, load_target(RTX).precisions).errors


def test_fp8_takes_no_calibrator_and_needs_data(tmp_path: Path) -> None:
    given = two_layers()
    with pytest.raises(BadInputError, match="calibration data"):
        Quantize(precision="fp8").apply(given, work(RTX, given, tmp_path))
    with pytest.raises(BadInputError, match="largest magnitude"):
        Quantize(precision="fp8", calibrator="entropy").apply(given, work(RTX, given, tmp_path, normal(8, 32)))


@pytest.mark.parametrize("width", [32, 64, 40, 7])
def test_four_bits_run_in_onnxruntime_whatever_the_width(tmp_path: Path, width: int) -> None:
    given, x = two_layers(width), normal(64, width)
    result = Quantize(precision="int4").apply(given, work(CPU, given, tmp_path))
    made = result.graph
    assert [entry.op_type for entry in made.nodes].count("MatMulNBits") == 2
    made.write(tmp_path / "m.onnx")
    spec = model_spec(made.proto)
    assert (spec.precision, plan(spec, load_target(CPU)).precision) == ("int4", "int4")
    assert result.changed["output_error"] is None
    expected, found = outputs_of(given, x), outputs_of(made, x, faithful=False)
    error = float(((found - expected) ** 2).sum() / (expected**2).sum())
    assert 1e-5 < error < 0.015


@pytest.mark.parametrize(("width", "size"), [(256, "128"), (96, "32"), (40, "a channel")])
def test_four_bits_for_tensorrt_are_blocks_that_compile(tmp_path: Path, width: int, size: str) -> None:
    tensorrt_rtx()
    given = graph([node("MatMul", "x w", "y")], width, {"y": ("n", 24)}, w=normal(width, 24))
    result = Quantize(precision="int4").apply(given, work(RTX, given, tmp_path))
    made = result.graph
    assert result.changed["layers_by_block_size"] == {size: 1}
    dequantize = next(entry for entry in made.nodes if entry.op_type == "DequantizeLinear")
    assert made.initializers[dequantize.input[0]].data_type == TensorProto.INT4
    x = normal(32, width)
    assert cosines(outputs_of(made, x), outputs_of(given, x)).min() > 0.97
    assert not check_qdq(made, load_target(RTX).precisions).errors
    made.write(tmp_path / "m.onnx")
    assert compile_apart((tmp_path / "m.onnx").read_bytes(), Order(compute_capabilities=("8.9",))).engine


def test_awq_spares_the_weights_that_large_activations_meet_and_compiles(tmp_path: Path) -> None:
    modelopt()
    tensorrt_rtx()
    # One input channel in eight is twenty times as large: its weights decide the product.
    x = normal(64, 128) * np.where(np.arange(128) % 8 == 0, 20, 1).astype(np.float32)
    # Mapped from a matrix whose large weights sit on small activations: a clip that spares them costs the others.
    w = normal(128, 32) * np.where(np.arange(128) % 8 == 0, 0.2, 1)[:, None].astype(np.float32)
    given = graph([node("MatMul", "x w", "y")], 128, {"y": ("n", 32)}, w=w)
    given.add_opset(21)
    given.proto.ir_version = 10
    found = awq_weights(given, ["MatMul_y"], Samples({"x": x}), work(RTX, given, tmp_path, x))["MatMul_y"]
    assert found.size is not None
    plain, scale = symmetric_blocks(w, 0, found.size)

    def error(q: NDArray[np.int8], scale: NDArray[np.float32]) -> float:
        return float(((x @ (q * np.repeat(scale, found.size or 1, axis=0)) - x @ w) ** 2).sum())

    assert error(found.q, found.scale) < 0.9 * error(plain, scale)
    gentle = work(RTX, given, tmp_path, normal(64, 128))
    made = Quantize(precision="int4", rounding="awq").apply(given, gentle)
    assert made.changed["clips_by_awq"] == made.changed["layers"]["int4"] == 1
    made.graph.write(tmp_path / "m.onnx")
    assert compile_apart((tmp_path / "m.onnx").read_bytes(), Order(compute_capabilities=("8.9",))).engine


def test_awq_is_refused_where_it_means_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = graph([node("MatMul", "x w", "y")], 128, {"y": ("n", 32)}, w=normal(128, 32))
    with pytest.raises(BadInputError, match="AWQ is for int4"):
        Quantize(precision="int8", rounding="awq")
    step = Quantize(precision="int4", rounding="awq")
    with pytest.raises(IncompatibleError, match="for TensorRT"):
        step.apply(given, work(CPU, given, tmp_path, normal(8, 128)))
    with pytest.raises(BadInputError, match="AWQ needs calibration data"):
        step.apply(given, work(RTX, given, tmp_path))
    monkeypatch.setattr("kedge.optimize.quantize.awq.importlib.util.find_spec", lambda name: None)
    with pytest.raises(IncompatibleError, match="needs ModelOpt") as refused:
        step.apply(given, work(RTX, given, tmp_path, normal(8, 128)))
    assert "kedge[modelopt]" in refused.value.hint


def test_dynamic_int8_quantises_an_activation_once_and_keeps_names(tmp_path: Path) -> None:
    given = graph(
        [
            node("MatMul", "x w", "a"),
            node("Gemm", "x v c", "b", transB=1),
            node("Add", "a b", "d"),
            node("MatMul", "d u", "y"),
        ],
        32,
        {"y": ("n", 4)},
        w=normal(32, 16),
        v=normal(16, 32),
        c=normal(16),
        u=normal(16, 4),
    )
    x = normal(64, 32)
    result = Quantize(precision="int8-dynamic", keep=("MatMul_y",)).apply(given, work(CPU, given, tmp_path, x))
    ops = [entry.op_type for entry in result.graph.nodes]
    assert (ops.count("DynamicQuantizeLinear"), ops.count("MatMulInteger"), ops.count("MatMul")) == (1, 2, 1)
    assert result.evidence["precision"] == {"MatMul_a": "int8", "Gemm_b": "int8"}
    assert cosines(outputs_of(result.graph, x, faithful=False), outputs_of(given, x)).min() > 0.999
    with pytest.raises(IncompatibleError, match="no dynamic INT8"):
        Quantize(precision="int8-dynamic").apply(given, work(RTX, given, tmp_path))


def test_the_one_layer_that_harms_is_found_and_kept(tmp_path: Path) -> None:
    """x has one large column, which the first layer ignores: eight bits for all leave nothing of the others."""
    nodes = [node("MatMul", "x first", "t0")]
    constants: dict[str, NDArray[np.generic]] = {"first": np.vstack([np.zeros((1, 16)), normal(15, 16)]).astype("f4")}
    for index in range(10):
        constants[f"w{index}"] = normal(16, 16, scale=0.25)
        nodes.append(node("MatMul", f"t{index} w{index}", f"t{index + 1}"))
    given = graph(nodes, 16, {"t10": ("n", 16)}, **constants)
    x = normal(64, 16)
    x[:, 0] *= 1000
    result = Quantize(precision="int8-dynamic").apply(given, work(CPU, given, tmp_path, x))
    assert result.changed["kept_for_their_error"] == ["MatMul_t0"]
    assert result.changed["layers"] == {"int8": 10, "fp32": 1}
    blind = Quantize(precision="int8-dynamic").apply(given, work(CPU, given, tmp_path))
    assert blind.changed["layers"] == {"int8": 11, "fp32": 0}
    assert "not measured" in blind.notes[0]


def test_models_without_such_layers_are_refused_with_the_way_out(tmp_path: Path) -> None:
    given = graph([node("Relu", "x", "y")], 4, {"y": ("n", 4)})
    for precision, target in (("int4", CPU), ("int8-dynamic", CPU), ("fp8", RTX)):
        with pytest.raises(IncompatibleError, match="the model has no") as raised:
            Quantize(precision=precision).apply(given, work(target, given, tmp_path, normal(4, 4)))
        assert raised.value.hint


def windows(name: str, count: int) -> NDArray[np.float32]:
    path = SHARED / "data" / "audio" / name
    if not path.is_file():
        pytest.skip(f"needs the recording {name} in a folder `shared/data/audio` beside the checkout")
    with wave.open(str(path)) as audio:
        values = np.frombuffer(audio.readframes(count * 16000), "<i2").astype(np.float32) / 32768
    return values.reshape(count, 16000)


def keyword_transformer(precision: str, target: str, folder: Path, samples: int) -> tuple[Result, NDArray[np.float32]]:
    """The real model, calibrated on one recording; cosines on another."""
    given = Graph.read(shared_model("kwt1_speechcommands.onnx"))
    calibration, heard = windows("noisy_snr0.wav", samples), Samples({"input_1": windows("silero_test.wav", 20)})
    result = Quantize(precision=precision).apply(given, work(target, given, folder, calibration, "input_1"))
    runnable = (simulation(result.graph) or result.graph) if target == RTX else result.graph
    expected, found = (next(iter(run_all(each, heard).values())) for each in (given, runnable))
    return result, cosines(expected, found)


def test_a_real_transformer_keeps_its_answers_in_fp16_and_compiles(tmp_path: Path) -> None:
    tensorrt_rtx()
    result, found = keyword_transformer("fp16", RTX, tmp_path, 4)
    assert found.min() > 0.999
    assert result.changed["nodes"]["fp16"] > 400
    result.graph.write(tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").stat().st_size < 2.2e6
    assert compile_apart((tmp_path / "m.onnx").read_bytes(), Order(compute_capabilities=("8.9",))).engine


def test_a_real_transformer_keeps_its_answers_in_dynamic_int8(tmp_path: Path) -> None:
    result, found = keyword_transformer("int8-dynamic", CPU, tmp_path, 6)
    assert found.min() > 0.99
    assert result.changed["layers"]["int8"] > 60


def test_a_recurrent_model_with_branches_is_unharmed_in_fp16(tmp_path: Path) -> None:
    given = Graph.read(shared_model("silero_vad_16k_op15.onnx"))
    result = Quantize(precision="fp16").apply(given, work(CPU, given, tmp_path))
    sound = windows("silero_test.wav", 6).reshape(-1)
    heard = [_speech(each, sound) for each in (given, result.graph)]
    assert np.abs(heard[0] - heard[1]).max() < 0.01
    assert heard[0].max() > 0.9
    assert len(result.graph.proto.SerializeToString()) < 0.75 * len(given.proto.SerializeToString())
    with pytest.raises(IncompatibleError, match="no matrix product"):
        Quantize(precision="int8-dynamic").apply(given, work(CPU, given, tmp_path))


def _speech(given: Graph, sound: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities of speech, frame by frame, with the state handed on."""
    from kedge.model.session import ReferenceModel

    model = ReferenceModel(given.proto.SerializeToString(), threads=1)
    state, context, found = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32), []
    for frame in sound[: len(sound) // 512 * 512].reshape(-1, 512):
        x = np.concatenate([context, frame])[None]
        made = model.run({"input": x, "state": state, "sr": np.array(16000)})
        state, context = made["stateN"], frame[-64:]
        found.append(float(made["output"][0, 0]))
    return np.asarray(found, dtype=np.float32)

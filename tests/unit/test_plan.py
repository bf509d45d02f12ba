"""The planner, as the pure function it is: over every profile, and over hosts that are and are not what a target is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kedge.build.memory import LEAST_WORKSPACE_BYTES, MemoryEstimate, estimate
from kedge.build.plan import Host, Plan, plan, require_room
from kedge.build.release import BuildOptions, plan_model
from kedge.build.shapes import parse_shapes, shape_profiles
from kedge.errors import BadInputError, ExitCode, IncompatibleError, NoSpaceError
from kedge.model.footprint import activation_bytes, weight_bytes
from kedge.model.graph import Graph
from kedge.model.onnx_io import ModelSpec
from kedge.targets import Memory, Target, list_targets, load_target
from kedge_agent.formats.passport import Passport
from kedge_agent.formats.tensors import DYNAMIC, TensorSpec
from tests.support import models

# Of each profile: the runtime that its first choice is, and where an engine is built on an x86-64 host without a GPU.
EXPECTED = {
    "a2": ("tensorrt", "device"),
    "agx-orin-32gb": ("tensorrt", "device"),
    "agx-orin-64gb": ("tensorrt", "device"),
    "agx-thor-t4000": ("tensorrt", "device"),
    "agx-thor-t5000": ("tensorrt", "device"),
    "agx-xavier": None,
    "cpu-generic-aarch64": ("onnxruntime", "nowhere"),
    "cpu-generic-x86_64": ("onnxruntime", "nowhere"),
    "dgx-spark": ("tensorrt-rtx", "device"),
    "h100": ("tensorrt", "device"),
    "h200": ("tensorrt", "device"),
    "l4": ("tensorrt", "device"),
    "orin-nano-4gb": ("tensorrt", "device"),
    "orin-nano-8gb": ("tensorrt", "device"),
    "orin-nx-16gb": ("tensorrt", "device"),
    "orin-nx-8gb": ("tensorrt", "device"),
    "raspberry-pi-5": ("onnxruntime", "nowhere"),
    "rtx-a2000": ("tensorrt-rtx", "host"),
    "rtx-ada-2000": ("tensorrt-rtx", "host"),
    "rtx-pro-2000-blackwell": ("tensorrt-rtx", "host"),
    "t4": ("tensorrt", "device"),
    "xavier-nx": None,
}

PLANNED = sorted(name for name, expected in EXPECTED.items() if expected is not None)
JETSONS = [name for name in PLANNED if load_target(name).family == "jetson"]
GIB = 1 << 30


def spec(precision: str = "fp32", *inputs: tuple[str, tuple[int, ...]]) -> ModelSpec:
    tensors = tuple(TensorSpec(name, "FP32", shape) for name, shape in inputs or (("x", (1, 3, 8, 8)),))
    quantized = precision in ("int8", "fp8")
    weights = "fp32" if precision == "int8" else precision
    return ModelSpec(tensors, (TensorSpec("y", "FP32", (1, 4)),), 17, 8, quantized, weights=weights)


def passport(runtime: str, version: str, *capabilities: str, arch: str = "x86_64") -> Passport:
    return Passport(runtime, version, "linux", arch, capabilities)


def laptop(*capabilities: str) -> Host:
    """A host with TensorRT for RTX and no GPU."""
    return Host({"tensorrt-rtx": passport("tensorrt-rtx", "1.7.1.116", *capabilities)})


def like(target: Target, version: str) -> Host:
    """A host with the target's own platform and GPU, and a TensorRT."""
    own = target.compute_capability
    assert own is not None
    return Host({"tensorrt": passport("tensorrt", version, own, arch=target.arch)})


def test_every_profile_is_in_the_table() -> None:
    assert sorted(EXPECTED) == list_targets()


@pytest.mark.parametrize("name", PLANNED)
def test_a_laptop_without_a_gpu_gets_a_runtime_and_a_place_for_each_target(name: str) -> None:
    target = load_target(name)
    choice = plan(spec(), target, host=laptop("8.9"))
    assert (choice.runtime, choice.where) == EXPECTED[name]
    assert choice.precision == "fp32"
    assert choice.reason
    assert not choice.lacks
    assert choice.compute_capabilities == (() if choice.where == "nowhere" else (target.compute_capability,))
    assert json.loads(json.dumps(choice.to_json())) == choice.to_json()


@pytest.mark.parametrize("name", PLANNED)
def test_the_same_question_has_the_same_answer(name: str) -> None:
    target = load_target(name)
    assert plan(spec(), target, host=laptop()) == plan(spec(), target, host=laptop())


@pytest.mark.parametrize("name", ["agx-xavier", "xavier-nx"])
def test_xavier_is_refused_with_the_version_that_it_carries(name: str) -> None:
    with pytest.raises(
        IncompatibleError, match=r"carries TensorRT 8\.5\.2; kedge builds with 10\.3 and newer"
    ) as caught:
        plan(spec(), load_target(name))
    assert caught.value.hint == "its profile serves preflight alone"


@pytest.mark.parametrize("name", list_targets())
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8", "int4", "fp4"])
def test_a_precision_is_taken_exactly_where_the_profile_has_it(name: str, precision: str) -> None:
    target = load_target(name)
    if precision not in target.precisions:
        with pytest.raises(IncompatibleError, match=rf"the model is {precision}, {name} runs fp32"):
            plan(spec(precision), target)
    elif EXPECTED[name] is not None:
        assert plan(spec(precision), target, host=laptop()).precision == precision


@pytest.mark.parametrize("name", JETSONS)
def test_int8_for_tensorrt_is_not_given_to_onnxruntime(name: str) -> None:
    target = load_target(name)
    assert plan(spec(), target, runtime="onnxruntime").where == "nowhere"
    assert plan(spec("int8"), target).runtime == "tensorrt"
    with pytest.raises(IncompatibleError, match="which onnxruntime runs slowly") as caught:
        plan(spec("int8"), target, runtime="onnxruntime")
    assert "cpu-generic-aarch64" in caught.value.hint


def test_a_runtime_that_the_target_does_not_have_is_refused() -> None:
    with pytest.raises(IncompatibleError, match="rtx-ada-2000 runs tensorrt-rtx, not onnxruntime"):
        plan(spec(), load_target("rtx-ada-2000"), runtime="onnxruntime")


@pytest.mark.parametrize("name", ["rtx-ada-2000", "orin-nano-8gb"])
def test_an_engine_cannot_take_or_give_fp64(name: str) -> None:
    wide = replace(spec(), inputs=(TensorSpec("x", "FP64", (1, 4)),))
    with pytest.raises(IncompatibleError, match="has no FP64: x would be FP32 in the engine"):
        plan(wide, load_target(name))
    assert plan(wide, load_target("cpu-generic-x86_64")).where == "nowhere"


def test_without_tensorrt_for_rtx_the_plan_says_what_is_lacking() -> None:
    choice = plan(spec(), load_target("rtx-ada-2000"))
    assert choice.where == "host"
    assert choice.lacks == "pip install 'kedge[tensorrt]'"


def test_an_engine_for_another_kind_of_processor_is_left_to_the_device() -> None:
    spark = load_target("dgx-spark")
    choice = plan(spec(), spark, host=laptop("12.1"))
    assert choice.where == "device"
    assert "dgx-spark is linux/aarch64, this host linux/x86_64" in choice.reason
    arm = Host({"tensorrt-rtx": passport("tensorrt-rtx", "1.7.1.116", "12.1", arch="aarch64")})
    assert plan(spec(), spark, host=arm).where == "host"


@pytest.mark.parametrize("name", [name for name in PLANNED if EXPECTED[name] == ("tensorrt", "device")])
def test_a_host_gpu_builds_where_its_passport_fits_and_nowhere_else(name: str) -> None:
    target = load_target(name)
    carried = target.software[0].tensorrt if target.software else "10.13.3"
    fits = like(target, f"{carried}.9")
    choice = plan(spec(), target, host=fits)
    assert choice.where == "host"
    assert target.name in choice.reason
    built = fits.builders["tensorrt"]
    others = [
        replace(built, compute_capabilities=("9.9",)),
        replace(built, compute_capabilities=(*built.compute_capabilities, "9.9")),
        replace(built, compute_capabilities=()),
        replace(built, arch="riscv64"),
        replace(built, os="windows"),
    ]
    if target.software:
        others.append(replace(built, runtime_version="10.9.0.34"))
    for other in others:
        assert plan(spec(), target, host=Host({"tensorrt": other})).where == "device", other


def test_a_version_of_any_jetpack_of_the_target_fits() -> None:
    orin = load_target("orin-nano-8gb")
    for version in ("10.16.2.10", "10.3.0.30", "10.3.0"):
        assert plan(spec(), orin, host=like(orin, version)).where == "host"
    assert plan(spec(), orin).tensorrt == ("10.16.2", "10.3.0", "8.6.2")


def test_the_user_may_leave_the_compilation_to_a_device() -> None:
    choice = plan(spec(), load_target("rtx-ada-2000"), host=laptop("8.9"), on_device=True)
    assert choice.where == "device"


def test_several_compute_capabilities_are_for_tensorrt_for_rtx_alone() -> None:
    choice = plan(spec(), load_target("rtx-ada-2000"), host=laptop(), compute_capabilities=("12.0", "8.9"))
    assert choice.compute_capabilities == ("8.9", "12.0")
    for name in ("orin-nano-8gb", "cpu-generic-x86_64"):
        with pytest.raises(IncompatibleError, match="for one compute capability"):
            plan(spec(), load_target(name), compute_capabilities=("12.0",))


def with_memory(target: Target, size_gib: float, *, unified: bool) -> Target:
    return replace(target, memory=Memory(size_gib, unified))


def test_of_unified_memory_three_quarters_are_there_and_weights_count_twice() -> None:
    target = with_memory(load_target("orin-nano-8gb"), 8, unified=True)
    found = estimate(100, {"least": 10, "greatest": 70, "usual": 30}, target)
    assert found.usable == 6 * GIB
    assert found.needed == 2 * 100 + 70 + LEAST_WORKSPACE_BYTES
    assert found.fits is True


def test_of_a_discrete_gpu_nine_tenths_are_there_and_weights_count_once() -> None:
    target = with_memory(load_target("rtx-ada-2000"), 10, unified=False)
    found = estimate(100, {"usual": 70}, target)
    assert found.usable == 9 * GIB
    assert found.needed == 100 + 70 + LEAST_WORKSPACE_BYTES


def test_what_is_not_known_of_memory_is_neither_zero_nor_a_refusal() -> None:
    found = estimate(100, {"usual": None}, load_target("cpu-generic-x86_64"))
    assert found.usable is None
    assert found.fits is None
    assert found.to_json()["activations_bytes"] == {"usual": None}
    require_room(planned(found), load_target("cpu-generic-x86_64"))
    require_room(planned(None), load_target("cpu-generic-x86_64"))


def planned(memory: MemoryEstimate | None) -> Plan:
    return Plan("tensorrt", "fp32", "device", "because", memory=memory)


@pytest.mark.parametrize("name", [name for name in list_targets() if load_target(name).memory is not None])
def test_what_cannot_fit_is_refused_on_every_target_and_what_just_fits_is_not(name: str) -> None:
    target = load_target(name)
    usable = estimate(0, {}, target).usable
    assert usable is not None
    require_room(planned(estimate(0, {"usual": usable - LEAST_WORKSPACE_BYTES}, target)), target)
    with pytest.raises(NoSpaceError, match=f"{name} has .* GiB to give") as caught:
        require_room(planned(estimate(0, {"usual": usable - LEAST_WORKSPACE_BYTES + 1}, target)), target)
    assert caught.value.exit_code is ExitCode.NO_SPACE == 8
    assert "--shapes" in caught.value.hint


def test_a_plan_states_memory_at_each_shape_profile(tmp_path: Path) -> None:
    model = models.classifier(tmp_path / "m.onnx")
    shapes = parse_shapes(["image=1x1x8x8:4x1x8x8:16x1x8x8"])
    _, choice = plan_model(model, load_target("orin-nano-8gb"), BuildOptions("m", shapes=shapes))
    assert choice.memory is not None
    image, convolved = 8 * 8 * 4, 8 * 8 * 8 * 4
    # The greatest moment is between the convolution and ReLU: what ReLU reads and what it makes.
    assert convolved * 2 > image + convolved
    assert choice.memory.activations == {
        "least": 2 * convolved,
        "usual": 4 * 2 * convolved,
        "greatest": 16 * 2 * convolved,
    }
    assert choice.memory.weights == (8 * 9 + 8 * 4) * 4
    assert choice.profiles == {"image": ((1, 1, 8, 8), (4, 1, 8, 8), (16, 1, 8, 8))}


def test_a_batch_that_cannot_fit_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    model = models.classifier(tmp_path / "m.onnx")
    shapes = parse_shapes(["image=1x1x8x8:1x1x8x8:2000000x1x8x8"])
    with pytest.raises(NoSpaceError):
        plan_model(model, load_target("orin-nano-4gb"), BuildOptions("m", shapes=shapes))


def test_shapes_are_one_for_all_three_or_three() -> None:
    assert parse_shapes(["x=1x3", "a=b=2:4:8"]) == {
        "x": ((1, 3), (1, 3), (1, 3)),
        "a=b": ((2,), (4,), (8,)),
    }
    assert parse_shapes([]) == {}


@pytest.mark.parametrize("text", ["", "x", "=1", "x=", "x=1:2", "x=1:2:3:4", "x=0", "x=-1x3", "x=1xa", "x=1x", "x=1.5"])
def test_what_is_no_shape_profile_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadInputError, match="is no shape profile") as caught:
        parse_shapes([text])
    assert "--shapes input=" in caught.value.hint


FREE: dict[str, Any] = {"x": (DYNAMIC, 3, DYNAMIC), "n": (DYNAMIC, 4), "fixed": (1, 5)}


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["z=1"], "no input z"),
        ([], "input x has free dimensions besides its batch"),
        (["x=1x3"], "does not fit its shape"),
        (["x=1x4x8"], "does not fit its shape"),
        (["x=2x3x8:1x3x8:4x3x8"], "not in order"),
        (["x=1x3x8", "fixed=2x5"], "does not fit its shape"),
    ],
)
def test_shapes_that_do_not_fit_the_model_are_refused(texts: list[str], reason: str) -> None:
    with pytest.raises(BadInputError, match=reason):
        shape_profiles(spec("fp32", *FREE.items()), parse_shapes(texts))


def test_a_free_batch_alone_needs_no_shapes_and_a_fixed_input_gets_none() -> None:
    given = parse_shapes(["x=1x3x8:2x3x8:2x3x9", "fixed=1x5"])
    assert shape_profiles(spec("fp32", *FREE.items()), given) == {
        "x": ((1, 3, 8), (2, 3, 8), (2, 3, 9)),
        "n": ((1, 4), (1, 4), (1, 4)),
    }


def graph(nodes: list[onnx.NodeProto], constants: dict[str, Any], out: str, shape: Any = ("n", 8)) -> Graph:
    body = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return Graph(helper.make_model(body, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def test_a_residual_branch_keeps_its_input_alive() -> None:
    """At the second product x, its branch and the product are there at once; without the Add x would be gone."""
    weight = np.zeros((8, 8), np.float32)
    chain = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["b"])]
    plain = graph(chain, {"w": weight}, "b")
    residual = graph([*chain, helper.make_node("Add", ["b", "x"], ["y"])], {"w": weight}, "y")
    tensor = 8 * 4
    assert activation_bytes(plain, {"x": (1, 8)}) == 2 * tensor
    assert activation_bytes(residual, {"x": (1, 8)}) == 3 * tensor
    assert activation_bytes(residual, {"x": (5, 8)}) == 5 * 3 * tensor
    assert weight_bytes(residual) == 8 * 8 * 4


def test_an_output_lives_to_the_end() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["early"]), *(helper.make_node("Neg", [a], [b]) for a, b in ("xb", "bc"))]
    given = graph(nodes, {}, "c")
    assert activation_bytes(given, {"x": (1, 8)}) == 2 * 8 * 4
    with_two = graph(nodes, {}, "c")
    with_two.proto.graph.output.append(helper.make_tensor_value_info("early", TensorProto.FLOAT, None))
    with_two.touched()
    assert activation_bytes(with_two, {"x": (1, 8)}) == 3 * 8 * 4


def test_four_bit_weights_are_packed_two_to_a_byte() -> None:
    int4 = helper.tensor_dtype_to_np_dtype(TensorProto.INT4)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["f"]),
        helper.make_node("MatMul", ["x", "f"], ["y"]),
    ]
    constants = {"w": np.zeros((8, 5), int4), "s": np.float32(1), "odd": np.zeros(3, int4), "half": np.zeros(3, "f2")}
    given = graph(nodes, constants, "y")
    assert weight_bytes(given) == 20 + 4 + 2 + 6
    # x, the weights as floats, and y.
    assert activation_bytes(given, {"x": (1, 8)}) == 8 * 4 + 8 * 5 * 4 + 5 * 4


def test_a_size_that_depends_on_the_data_is_not_known() -> None:
    given = graph([helper.make_node("NonZero", ["x"], ["i"]), helper.make_node("Cast", ["i"], ["y"], to=1)], {}, "y")
    assert activation_bytes(given, {"x": (1, 8)}) is None


def test_shapes_that_the_graph_computes_itself_are_followed() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "first"], ["n"]),
        helper.make_node("Concat", ["n", "four"], ["wanted"], axis=0),
        helper.make_node("Expand", ["one", "wanted"], ["y"]),
    ]
    one = {"first": np.array([0]), "four": np.array([4]), "one": np.ones((1, 4), np.float32)}
    assert activation_bytes(graph(nodes, one, "y"), {"x": (2, 8)}) is not None

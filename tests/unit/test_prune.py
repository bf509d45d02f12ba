"""Pruning: what is counted, what goes, and that the rest answers as it should."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kedge.errors import BadInputError, IncompatibleError
from kedge.model.graph import Graph
from kedge.model.samples import Samples
from kedge.optimize.prune.blocks import PruneBlocks
from kedge.optimize.prune.channels import PruneChannels
from kedge.optimize.prune.counts import count, layer_macs
from kedge.optimize.prune.magnitude import PruneMagnitude
from kedge.optimize.prune.outputs import answers, output_error
from kedge.optimize.prune.residual import residual_blocks
from kedge.optimize.prune.shrink import Shrink, shrink
from kedge.optimize.prune.two_four import PruneTwoFour, check_two_four
from kedge.optimize.work import Latency, Work
from kedge.targets import load_target
from tests.support.environment import shared_model


class Net:
    """A graph in the making: layers by name, random weights."""

    def __init__(self, *shape: int | str, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.shape = shape

    def op(self, kind: str, *inputs: str, name: str = "", **settings: object) -> str:
        name = name or f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [f"{name}.y"], name=name, **settings))
        return f"{name}.y"

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants[name] = value
        return name

    def weight(self, name: str, *shape: int) -> str:
        fan = max(int(np.prod(shape[1:])), 1)
        return self.constant(name, (self.random.standard_normal(shape) * (2 / fan) ** 0.5).astype(np.float32))

    def conv(
        self, x: str, name: str, channels: tuple[int, int], *, kernel: int = 3, group: int = 1, stride: int = 1
    ) -> str:
        out, inside = channels[1], channels[0] // group
        inputs = (x, self.weight(f"{name}.w", out, inside, kernel, kernel), self.weight(f"{name}.b", out))
        return self.op("Conv", *inputs, name=name, pads=[kernel // 2] * 4, group=group, strides=[stride, stride])

    def graph(self, y: str, *shape: int | str, opset: int = 17) -> Graph:
        self.nodes.append(helper.make_node("Identity", [y], ["y"], name="last"))
        proto = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        onnx.checker.check_model(model)
        return Graph(model)


def residual_net(blocks: int = 3, width: int = 16, *, dead_block: int | None = None) -> Graph:
    """[batch, 3, 8, 8] → [batch, 5] with residual blocks; the dead one adds nothing."""
    net = Net("batch", 3, 8, 8)
    x = net.op("Relu", net.conv("x", "stem", (3, width)))
    for index in range(blocks):
        inner = net.op("Relu", net.conv(x, f"a{index}", (width, width)))
        branch = net.conv(inner, f"b{index}", (width, width))
        x = net.op("Relu", net.op("Add", branch, x, name=f"add{index}"))
    if dead_block is not None:
        for name in (f"b{dead_block}.w", f"b{dead_block}.b"):
            net.constants[name] = np.zeros_like(net.constants[name])
    pooled = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.graph(net.op("Gemm", pooled, net.weight("fc.w", width, 5), name="fc"), "batch", 5)


def option_a_net() -> Graph:
    """A residual stream that is halved by a strided Slice and widened by a Pad of its channels."""
    net = Net("batch", 3, 8, 8)
    x = net.op("Relu", net.conv("x", "stem", (3, 8)))
    ends = [net.constant(f"s{i}", np.array(v, np.int64)) for i, v in enumerate(([0, 0], [9999, 9999], [2, 3], [2, 2]))]
    small = net.op("Slice", x, *ends)
    padded = net.op("Pad", small, net.constant("pads", np.array([0, 4, 0, 0, 0, 4, 0, 0], np.int64)))
    inner = net.op("Relu", net.conv(x, "a", (8, 16), stride=2))
    x = net.op("Relu", net.op("Add", net.conv(inner, "b", (16, 16)), padded))
    pooled = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.graph(net.op("Gemm", pooled, net.weight("fc.w", 16, 5), name="fc"), "batch", 5)


def int8_conv() -> Graph:
    """A convolution whose INT8 weight lies behind DequantizeLinear, zero point 3 in its first channel."""
    net = Net("batch", 8, 4, 4)
    net.constant("q", net.random.integers(-120, 120, (2, 8, 1, 1)).astype(np.int8))
    net.constant("s", np.array([0.1, 0.2], np.float32))
    net.constant("z", np.array([3, 0], np.int8))
    w = net.op("DequantizeLinear", "q", "s", "z", name="dq", axis=0)
    return net.graph(net.op("Conv", "x", w, name="conv"), "batch", 2, 4, 4)


def samples_for(graph: Graph, number: int = 24) -> Samples:
    name = graph.input_names[0]
    shape = [size or number for size in graph.types[name][1] or ()]
    return Samples({name: np.random.default_rng(5).standard_normal(shape).astype(np.float32)}, name="noise")


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def work_on(graph: Graph, scratch: Path, **more: object) -> Work:
    calibration = samples_for(graph)
    return replace(
        Work(load_target("cpu-generic-x86_64"), graph, calibration, None, scratch, scratch),
        **more,  # type: ignore[arg-type]
    )


def difference(graph: Graph, other: Graph, scratch: Path) -> float:
    samples = samples_for(graph)
    return output_error(answers(graph, samples, scratch), answers(other, samples, scratch))


# --- counts


def test_macs_follow_from_the_shapes_of_each_layer() -> None:
    net = Net("batch", 4, 6, 6)
    y = net.conv("x", "plain", (4, 8))
    y = net.conv(y, "grouped", (8, 8), group=8)
    y = net.op("ConvTranspose", y, net.weight("t.w", 8, 2, 2, 2), name="transposed", strides=[2, 2])
    flat = net.op("Flatten", y)
    y = net.op("Gemm", flat, net.weight("g.w", 288, 3), name="gemm")
    square = net.op("MatMul", net.op("Unsqueeze", y, net.constant("a1", np.array([2], np.int64))),
                    net.op("Unsqueeze", y, net.constant("a2", np.array([1], np.int64))), name="product")  # fmt: skip
    assert layer_macs(net.graph(square, "batch", 3, 3)) == {
        "plain": 36 * 8 * 4 * 9,
        "grouped": 36 * 8 * 9,
        "transposed": 36 * 8 * 2 * 4,
        "gemm": 288 * 3,
        "product": 3 * 3 * 1,
    }


def test_a_free_dimension_that_is_no_batch_leaves_macs_unmeasured_until_its_size_is_given() -> None:
    net = Net("batch", "time", 4)
    graph = net.graph(net.op("MatMul", "x", net.weight("w", 4, 6), name="m"), "batch", "time", 6)
    assert count(graph).macs is None
    assert count(graph, {"x": (1, 10, 4)}).macs == 10 * 4 * 6
    with pytest.raises(BadInputError, match="no input 'z'"):
        count(graph, {"z": (1, 10, 4)})
    with pytest.raises(BadInputError, match="3 dimensions"):
        count(graph, {"x": (1, 10)})


def test_a_quantised_weight_counts_as_its_elements_and_its_zero_point_as_zero() -> None:
    graph = int8_conv()
    stored = graph.array("q")
    stored[0, :3], stored[1, :2] = 3, 0
    stored[0, 3:], stored[1, 2:] = 7, 7
    graph.set_array("q", stored)
    counts = count(graph)
    assert (counts.parameters, counts.nonzero, counts.macs) == (16, 11, 16 * 16)


def test_resnet20_has_the_macs_that_are_published() -> None:
    counts = count(Graph.read(shared_model("resnet20_cifar10.onnx")))
    assert counts.macs == 40_551_040
    assert counts.parameters == 269_034


# --- magnitude


def weights(graph: Graph, name: str) -> np.ndarray:
    return graph.array(f"{name}.w")


def test_magnitude_takes_exactly_the_ratio_and_in_each_layer_the_smallest(scratch: Path) -> None:
    graph = residual_net(2)
    before = graph.proto.SerializeToString()
    result = PruneMagnitude(ratio=0.6).apply(graph, work_on(graph, scratch))
    inner = [np.abs(weights(graph, name)).ravel() for name in ("a0", "b0", "a1", "b1")]
    kept = [weights(result.graph, name).ravel() for name in ("a0", "b0", "a1", "b1")]
    together, after = np.concatenate(inner), np.concatenate(kept)
    assert np.count_nonzero(after == 0) == round(0.6 * together.size)
    for old, new in zip(inner, kept, strict=True):
        assert old[new == 0].max() <= old[new != 0].min()
    assert graph.proto.SerializeToString() == before
    assert result.changed["nonzero"]["before"] - result.changed["nonzero"]["after"] == round(0.6 * together.size)
    assert result.changed["latency"] is None
    assert any("saves bytes, not time" in note for note in result.notes)


def test_a_layer_whose_scale_is_smaller_is_not_emptied_for_it(scratch: Path) -> None:
    graph = residual_net(2)
    same = PruneMagnitude().apply(graph, work_on(graph, scratch)).changed["zeros"]
    graph.set_array("a0.w", weights(graph, "a0") * np.float32(1 / 64))
    assert PruneMagnitude().apply(graph, work_on(graph, scratch)).changed["zeros"] == same


def test_the_first_and_last_layer_stay_whole_unless_asked(scratch: Path) -> None:
    graph = residual_net(1)
    kept = PruneMagnitude().apply(graph, work_on(graph, scratch))
    assert kept.changed["left"] == ["fc", "stem"]
    assert np.all(weights(kept.graph, "stem") != 0)
    named = PruneMagnitude(layers=("stem=0.25",)).apply(graph, work_on(graph, scratch))
    assert np.mean(weights(named.graph, "stem") == 0) == pytest.approx(0.25, abs=0.01)
    everywhere = PruneMagnitude(keep_ends=False, scope="layer").apply(graph, work_on(graph, scratch))
    assert np.mean(weights(everywhere.graph, "fc") == 0) == pytest.approx(0.5, abs=0.01)


def test_layers_can_have_ratios_of_their_own_or_be_left_out(scratch: Path) -> None:
    graph = residual_net(2)
    rule = PruneMagnitude(ratio=0.5, scope="layer", layers=("a*=0.75",), exclude=("b1",))
    zeros = rule.apply(graph, work_on(graph, scratch)).changed["zeros"]
    assert zeros == {"a0": 0.75, "a1": 0.75, "b0": 0.5}


def test_a_threshold_takes_what_lies_below_it(scratch: Path) -> None:
    graph = residual_net(1)
    pruned = PruneMagnitude(threshold=0.05).apply(graph, work_on(graph, scratch)).graph
    old, new = weights(graph, "a0"), weights(pruned, "a0")
    assert np.array_equal(new == 0, np.abs(old) < 0.05)
    assert np.array_equal(new[new != 0], old[new != 0])


def test_a_quantised_weight_is_pruned_to_its_zero_point(scratch: Path) -> None:
    graph = int8_conv()
    pruned = PruneMagnitude(ratio=0.5, keep_ends=False).apply(graph, work_on(graph, scratch)).graph
    stored = pruned.array("q").astype(int) - np.array([3, 0]).reshape(2, 1, 1, 1)
    assert np.count_nonzero(stored == 0) == 8
    assert pruned.array("q").dtype == np.int8


@pytest.mark.parametrize(
    "fields",
    [
        {"ratio": 1.0},
        {"ratio": -0.1},
        {"ratio": float("nan")},
        {"threshold": float("inf")},
        {"scope": "galaxy"},
        {"layers": ("a0",)},
        {"layers": ("a0=2",)},
        {"layers": ("=0.5",)},
        {"layers": ("a0=nan",)},
    ],
)
def test_senseless_magnitudes_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(BadInputError) as refused:
        PruneMagnitude(**fields)  # type: ignore[arg-type]
    assert refused.value.hint


@pytest.mark.parametrize(
    "rule", [PruneMagnitude(exclude=("a00",)), PruneTwoFour(("a00",)), PruneChannels(ignore=("a00",))]
)
def test_a_layer_that_is_not_there_is_named_with_the_closest(rule: PruneMagnitude, scratch: Path) -> None:
    graph = residual_net(1)
    with pytest.raises(BadInputError, match="'a00'") as refused:
        rule.apply(graph, work_on(graph, scratch))
    assert refused.value.hint == "did you mean a0?"


@pytest.mark.parametrize("rule", [PruneMagnitude(), PruneTwoFour(), PruneBlocks(), PruneChannels(ratio=0.5), Shrink()])
def test_a_graph_with_nothing_to_prune_says_so(rule: PruneMagnitude, scratch: Path) -> None:
    net = Net("batch", 3)
    graph = net.graph(net.op("Relu", "x"), "batch", 3)
    result = rule.apply(graph, work_on(graph, scratch))
    assert result.notes[0].startswith("nothing to prune")
    assert difference(graph, result.graph, scratch) == 0


# --- 2:4


def test_two_four_keeps_the_two_largest_of_every_four_input_channels(scratch: Path) -> None:
    graph = residual_net(1)
    assert "a0" in check_two_four(graph)["broken"]
    result = PruneTwoFour().apply(graph, work_on(graph, scratch))
    old, new = weights(graph, "a0"), weights(result.graph, "a0")
    for start in range(0, 16, 4):
        group, kept = np.abs(old[:, start : start + 4]), new[:, start : start + 4]
        assert np.all(np.count_nonzero(kept, axis=1) == 2)
        assert np.all(np.where(kept == 0, group, 0).max(axis=1) <= np.where(kept != 0, group, np.inf).min(axis=1))
    gemm = weights(result.graph, "fc").T.reshape(-1, 4)
    assert np.all(np.count_nonzero(gemm, axis=1) == 2)
    assert check_two_four(result.graph) == {
        "holds": ["a0", "b0", "fc"],
        "broken": {},
        "unfit": {"stem": "3 input channels, no multiple of 4"},
    }
    assert any("stem (3 input channels" in note for note in result.notes)
    assert any("saves bytes, not time" in note for note in result.notes)


def test_two_four_reads_through_dequantize_linear(scratch: Path) -> None:
    graph = int8_conv()
    assert check_two_four(graph)["broken"] == {"conv": 4}
    pruned = PruneTwoFour().apply(graph, work_on(graph, scratch)).graph
    assert check_two_four(pruned)["holds"] == ["conv"]
    wrong = pruned.copy()
    wrong.set_array("q", np.where(pruned.array("q") == 3, 0, pruned.array("q")).astype(np.int8))
    assert "conv" in check_two_four(wrong)["broken"]


# --- blocks


def test_the_block_that_adds_nothing_goes_first_and_no_output_changes(scratch: Path) -> None:
    graph = residual_net(3, dead_block=1)
    result = PruneBlocks(count=1).apply(graph, work_on(graph, scratch))
    assert [entry["block"] for entry in result.changed["blocks"]] == ["add1"]
    assert difference(graph, result.graph, scratch) < 1e-10
    assert not {"a1", "b1", "add1"} & set(result.graph.by_name)
    assert sum(node.op_type == "Relu" for node in result.graph.nodes) == 5
    assert (result.graph.input_names, result.graph.output_names) == (["x"], ["y"])


@pytest.mark.parametrize("error", ["mse", "kl"])
def test_blocks_go_until_the_share_of_macs_is_reached(error: str, scratch: Path) -> None:
    graph = residual_net(4)
    result = PruneBlocks(macs=0.6, rounds=2, error=error).apply(graph, work_on(graph, scratch))
    assert result.changed["reached"]
    assert result.changed["macs"]["after"] <= 0.6 * result.changed["macs"]["before"]
    assert len(result.changed["blocks"]) == 2
    assert result.changed["macs"]["after"] == count(result.graph).macs


def test_when_no_block_is_left_the_goal_is_said_to_be_missed(scratch: Path) -> None:
    graph = residual_net(2)
    result = PruneBlocks(count=9, exclude=("add0",)).apply(graph, work_on(graph, scratch))
    assert [entry["block"] for entry in result.changed["blocks"]] == ["add1"]
    assert result.changed["reached"] is False
    assert any("not reached" in note for note in result.notes)


def test_a_branch_that_something_else_reads_is_no_block() -> None:
    net = Net("batch", 4, 4, 4)
    branch = net.conv("x", "a", (4, 4))
    summed = net.op("Add", "x", branch)
    graph = net.graph(net.op("Mul", summed, branch), "batch", 4, 4, 4)
    assert residual_blocks(graph) == []


def test_an_activation_written_with_an_add_is_no_block() -> None:
    net = Net("batch", 4)
    y = net.op("MatMul", "x", net.weight("w", 4, 4))
    cubed = net.op("Mul", net.op("Mul", y, y), y)
    assert residual_blocks(net.graph(net.op("Add", y, cubed), "batch", 4)) == []


def test_a_block_that_makes_the_output_can_go(scratch: Path) -> None:
    net = Net("batch", 4)
    x = net.op("Relu", "x")
    y = net.op("MatMul", x, net.weight("w", 4, 4))
    net.nodes.append(helper.make_node("Add", [x, y], ["y"], name="add"))
    graph = _ending_in_add(net)
    result = PruneBlocks(count=1).apply(graph, work_on(graph, scratch))
    values = samples_for(graph)
    assert np.array_equal(answers(result.graph, values, scratch)["y"], np.maximum(values.inputs["x"], 0))


def _ending_in_add(net: Net) -> Graph:
    proto = helper.make_graph(
        net.nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, net.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, net.shape)],
        [numpy_helper.from_array(value, name) for name, value in net.constants.items()],
    )
    return Graph(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_choosing_blocks_without_data_or_by_time_without_a_probe_is_refused(scratch: Path) -> None:
    graph = residual_net(2)
    with pytest.raises(BadInputError, match="calibration"):
        PruneBlocks().apply(graph, work_on(graph, scratch, calibration=None))
    with pytest.raises(BadInputError, match="latency"):
        PruneBlocks(latency=0.5).apply(graph, work_on(graph, scratch))


@pytest.mark.parametrize(
    "fields",
    [
        {"count": -1},
        {"rounds": 0},
        {"samples": 1000},
        {"macs": 1.5},
        {"macs": 0.0},
        {"macs": float("nan")},
        {"error": "x"},
    ],
)
def test_senseless_block_goals_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(BadInputError):
        PruneBlocks(**fields)  # type: ignore[arg-type]


# --- channels


def test_channels_that_do_nothing_can_go_and_no_output_changes(scratch: Path) -> None:
    graph = residual_net(2)
    for name in ("a0", "a1"):
        weight, bias = graph.array(f"{name}.w"), graph.array(f"{name}.b")
        weight[8:], bias[8:] = 0, 0
        graph.set_array(f"{name}.w", weight)
        graph.set_array(f"{name}.b", bias)
    rule = PruneChannels(ratio=0.5, scope="layer", ignore=("stem",))
    result = rule.apply(graph, work_on(graph, scratch))
    assert result.changed["layers"] == {"a0": {"before": 16, "after": 8}, "a1": {"before": 16, "after": 8}}
    assert difference(graph, result.graph, scratch) < 1e-10
    assert weights(result.graph, "a0").shape == (8, 16, 3, 3)
    assert weights(result.graph, "b0").shape == (16, 8, 3, 3)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("importance", ["data-free", "l1", "l2", "taylor"])
def test_every_importance_reaches_the_share_of_macs(importance: str, scope: str, scratch: Path) -> None:
    graph = residual_net(2)
    rule = PruneChannels(macs=0.6, importance=importance, scope=scope, round_to=4)
    result = rule.apply(graph, work_on(graph, scratch))
    assert result.changed["reached"]
    assert result.changed["macs"]["after"] <= 0.6 * result.changed["macs"]["before"]
    assert all(layer["after"] % 4 == 0 for layer in result.changed["layers"].values())
    assert result.changed["macs"]["after"] == count(result.graph).macs


def test_a_residual_stream_that_is_sliced_and_padded_is_left_and_named(scratch: Path) -> None:
    graph = option_a_net()
    result = PruneChannels(ratio=0.5, round_to=4).apply(graph, work_on(graph, scratch))
    assert set(result.changed["layers"]) == {"a"}
    assert {"stem", "b", "fc"} <= set(result.changed["left"])
    assert "Pad" in result.changed["left"]["stem"]
    assert any("stem" in note for note in result.notes)
    assert answers(result.graph, samples_for(graph), scratch)["y"].shape == (24, 5)


def test_channels_follow_through_depthwise_convolution_batchnorm_concat_and_flatten(scratch: Path) -> None:
    net = Net("batch", 3, 4, 4)
    left = net.conv("x", "left", (3, 8))
    scale, shift = (net.constant(name, np.full(8, value, np.float32)) for name, value in (("g", 1.5), ("h", 0.5)))
    mean, spread = (net.constant(name, np.full(8, value, np.float32)) for name, value in (("m", 0.1), ("v", 2.0)))
    left = net.op("Relu", net.op("BatchNormalization", left, scale, shift, mean, spread, name="norm"))
    left = net.conv(left, "depthwise", (8, 8), group=8)
    right = net.conv("x", "right", (3, 8))
    head = net.op("Relu", net.conv(net.op("Concat", left, right, axis=1), "head", (16, 8)))
    graph = net.graph(net.op("Gemm", net.op("Flatten", head), net.weight("fc.w", 128, 5), name="fc"), "batch", 5)
    quiet = [(name, slice(4, 8)) for name in ("left.w", "left.b", "g", "h", "m", "depthwise.w", "depthwise.b")]
    quiet += [(name, slice(2, 6)) for name in ("right.w", "right.b", "head.w", "head.b")]
    for name, part in quiet:
        value = graph.array(name)
        value[part] = 0
        graph.set_array(name, value)
    work = work_on(graph, scratch, calibration=None)
    result = PruneChannels(ratio=0.5, round_to=4, scope="layer").apply(graph, work)
    narrower = {"before": 8, "after": 4}
    assert result.changed["layers"] == {"left": narrower, "right": narrower, "head": narrower}
    assert difference(graph, result.graph, scratch) < 1e-10
    assert layer_macs(result.graph)["fc"] == 64 * 5


def test_batchnorm_statistics_are_those_of_the_pruned_model_on_calibration_data(scratch: Path) -> None:
    net = Net("batch", 3, 4, 4)
    y = net.conv(net.op("Relu", net.conv("x", "a", (3, 16))), "b", (16, 4))
    ones, nothing = np.ones(4, np.float32), np.zeros(4, np.float32)
    parts = [net.constant(name, value) for name, value in (("g", ones), ("h", nothing), ("m", nothing), ("v", ones))]
    graph = net.graph(net.op("BatchNormalization", y, *parts, name="norm"), "batch", 4, 4, 4)
    result = PruneChannels(ratio=0.5).apply(graph, work_on(graph, scratch))
    assert set(result.changed["layers"]) == {"a"}
    normal = answers(result.graph, samples_for(graph), scratch)["y"]
    assert np.allclose(normal.mean(axis=(0, 2, 3)), 0, atol=1e-3)
    assert np.allclose(normal.std(axis=(0, 2, 3)), 1, atol=1e-2)


def test_channels_that_would_be_followed_wrongly_are_left(scratch: Path) -> None:
    net = Net("batch", 3, 4, 4)
    both = net.op("Concat", net.conv("x", "left", (3, 8)), net.conv("x", "right", (3, 8)), axis=1)
    graph = net.graph(net.op("Gemm", net.op("Flatten", both), net.weight("fc.w", 256, 5), name="fc"), "batch", 5)
    result = PruneChannels(ratio=0.5, round_to=4).apply(graph, work_on(graph, scratch))
    assert set(result.changed["left"]) == {"left", "right", "fc"}
    assert result.notes[0].startswith("nothing to prune")


def test_the_hidden_units_of_a_transformers_mlp_go_through_fixed_reshapes(scratch: Path) -> None:
    net = Net(1, 6, 8)
    flat = net.op("Reshape", "x", net.constant("to2", np.array([6, 8], np.int64)))
    hidden = net.op("Gemm", flat, net.weight("up.w", 8, 32), net.weight("up.b", 32), name="up")
    hidden = net.op("Reshape", hidden, net.constant("to3", np.array([1, 6, 32], np.int64)))
    hidden = net.op("Reshape", net.op("Relu", hidden), net.constant("to2b", np.array([6, 32], np.int64)))
    down = net.op("Gemm", hidden, net.weight("down.w", 32, 8), name="down")
    out = net.op("Add", "x", net.op("Reshape", down, net.constant("to3b", np.array([1, 6, 8], np.int64))))
    graph = net.graph(out, 1, 6, 8)
    result = PruneChannels(ratio=0.5, scope="layer").apply(graph, work_on(graph, scratch))
    assert result.changed["layers"] == {"up": {"before": 32, "after": 16}}


def test_taylor_without_data_and_an_operator_without_torch_form_are_refused(scratch: Path) -> None:
    graph = residual_net(1)
    with pytest.raises(BadInputError, match="calibration"):
        PruneChannels(importance="taylor").apply(graph, work_on(graph, scratch, calibration=None))
    net = Net("batch", 4)
    strange = net.graph(net.op("MatMul", net.op("Atanh", "x"), net.weight("w", 4, 4), name="m"), "batch", 4)
    with pytest.raises(IncompatibleError, match="Atanh"):
        PruneChannels().apply(strange, work_on(strange, scratch))


@pytest.mark.parametrize(
    "fields",
    [{"macs": 0.0}, {"macs": float("nan")}, {"ratio": 1.0}, {"importance": "luck"}, {"scope": "x"}, {"round_to": -1},
     {"alpha": 2.0}, {"max_ratio": 1.0}, {"samples": 0}],
)  # fmt: skip
def test_senseless_channel_goals_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(BadInputError):
        PruneChannels(**fields)  # type: ignore[arg-type]


def test_resnet20_loses_inner_channels_in_eights_and_keeps_its_residual_stream(scratch: Path) -> None:
    graph = Graph.read(shared_model("resnet20_cifar10.onnx"))
    result = PruneChannels(macs=0.5).apply(graph, work_on(graph, scratch, calibration=None))
    assert result.changed["reached"]
    assert all(layer["after"] % 8 == 0 for layer in result.changed["layers"].values())
    assert len(result.changed["layers"]) == 9
    assert len(residual_blocks(result.graph)) == 7


# --- both


class Clock:
    """Says how long models take by their names' order."""

    def __init__(self, *p50_ms: float) -> None:
        self.p50_ms = p50_ms

    def measure(self, models: Mapping[str, Path]) -> dict[str, Latency]:
        assert all(path.is_file() for path in models.values())
        return {name: Latency(ms, ms, 100, "a clock") for name, ms in zip(models, self.p50_ms, strict=True)}


def test_the_mix_that_is_measured_fastest_is_taken_and_what_is_timed_is_quantised(scratch: Path) -> None:
    graph = residual_net(4)
    quantised: list[Graph] = []

    def quantise(model: Graph) -> Graph:
        quantised.append(model)
        return model

    rule = Shrink(macs=0.5, mixes=(0.0, 1.0), round_to=4)
    for clock, chosen in ((Clock(4, 3, 2), 1), (Clock(4, 2, 3), 0)):
        result = shrink(graph, work_on(graph, scratch, probe=clock), rule, quantise)
        assert result.changed["chosen"] == chosen
        assert result.changed["macs"]["after"] <= 0.5 * result.changed["macs"]["before"]
        assert result.changed["latency"]["before"]["p50_ms"] == 4
    assert len(quantised) == 6


def test_between_mixes_as_fast_as_each_other_the_smaller_change_of_outputs_decides(scratch: Path) -> None:
    graph = residual_net(4)
    rule = Shrink(macs=0.5, mixes=(0.0, 1.0), round_to=4)
    result = shrink(graph, work_on(graph, scratch, probe=Clock(4, 2.01, 2.0)), rule, None)
    errors = [entry["output_error"] for entry in result.changed["candidates"]]
    assert result.changed["chosen"] == int(np.argmin(errors))
    unmeasured = shrink(graph, work_on(graph, scratch), rule, None)
    assert unmeasured.changed["chosen"] == int(np.argmin(errors))
    assert any("not measured" in note for note in unmeasured.notes)
    enough = shrink(graph, work_on(graph, scratch, probe=Clock(4, 1.0, 2.0)), replace(rule, speedup=1.5), None)
    assert enough.changed["chosen"] == int(np.argmin(errors))
    # 2 ms is 1.99 times as fast by less than the noise.
    clock = Clock(4, *(2.0 if error == min(errors) else 1.0 for error in errors))
    barely = shrink(graph, work_on(graph, scratch, probe=clock), replace(rule, speedup=1.99), None)
    assert barely.changed["chosen"] != int(np.argmin(errors))


@pytest.mark.parametrize("fields", [{"macs": 1.0}, {"mixes": ()}, {"mixes": (2.0,)}, {"speedup": -1.0}, {"rounds": 0}])
def test_senseless_mixes_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(BadInputError):
        Shrink(**fields)  # type: ignore[arg-type]

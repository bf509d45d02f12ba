"""Heads of attention: found whatever moves make them, and a model without them answers as with them silenced."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F  # noqa: N812

from kedge.cli.optimize_recipe import _pruning
from kedge.errors import BadInputError
from kedge.model.graph import Graph
from kedge.model.samples import Samples
from kedge.optimize.export import export_onnx
from kedge.optimize.passes import make_pass
from kedge.optimize.prune.channels import PruneChannels
from kedge.optimize.prune.counts import count
from kedge.optimize.prune.heads import PruneHeads
from kedge.optimize.prune.outputs import answers
from kedge.optimize.quantize.static import quantize_static_int8
from kedge.optimize.simplify import simplify
from kedge.optimize.train.view import TorchView
from kedge.optimize.work import Result, Work
from kedge.targets import load_target
from tests.support.environment import shared_model

WIDTH, HEADS, TOKENS, CLASSES = 16, 4, 5, 3
HEAD = WIDTH // HEADS


class Block(nn.Module):
    """[batch, TOKENS, WIDTH] → the same by one block of attention, its heads made in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.before, self.query_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(HEAD)
        self.qkv, self.q, self.kv = (nn.Linear(WIDTH, parts * WIDTH) for parts in (3, 1, 2))
        self.out_proj = nn.Linear(WIDTH, WIDTH)
        self.bias = nn.Parameter(torch.randn(1, HEADS, TOKENS, TOKENS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.before(x)
        q, k, v = self.heads(y)
        if self.way == "norm":
            q = self.query_norm(q)
        if self.way == "mask":
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=x[:, None, None, :, 0] > -1)
        elif self.way == "merged":
            q, k, v = (part.reshape(-1, TOKENS, HEAD) for part in (q, k, v))
            mixed = (q @ k.transpose(1, 2) * HEAD**-0.5).softmax(-1) @ v
            mixed = mixed.reshape(-1, HEADS, TOKENS, HEAD)
        else:
            scores = q @ k.transpose(-2, -1) / HEAD**0.5
            mixed = (scores + self.bias if self.way == "bias" else scores).softmax(-1) @ v
        return self.out_proj(mixed.transpose(1, 2).reshape(y.shape))

    def heads(self, y: torch.Tensor) -> Iterable[torch.Tensor]:
        if self.way == "timm":
            return self.qkv(y).reshape(-1, TOKENS, 3, HEADS, HEAD).permute(2, 0, 3, 1, 4).unbind(0)
        if self.way == "heads first":
            return self.qkv(y).reshape(-1, TOKENS, HEADS, 3 * HEAD).transpose(1, 2).chunk(3, -1)
        parts = (self.q(y), *self.kv(y).chunk(2, -1)) if self.way == "apart" else self.qkv(y).chunk(3, -1)
        return [part.reshape(-1, TOKENS, HEADS, HEAD).transpose(1, 2) for part in parts]


class Torchs(nn.Module):
    """torch's own: nn.MultiheadAttention, alone or in its encoder layer."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.layer: nn.Module
        if way == "encoder":
            self.layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, batch_first=True)
        else:
            self.layer = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.alone = way != "encoder"
        attention = self.layer if self.alone else self.layer.self_attn
        nn.init.normal_(attention.in_proj_bias, std=0.3)
        self.projection = [attention.out_proj]

    @property
    def out_proj(self) -> nn.Linear:
        return self.projection[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x, x, x)[0] if self.alone else self.layer(x)


class Net(nn.Module):
    """[batch, TOKENS, WIDTH] → [batch, CLASSES] by blocks of attention one after another."""

    def __init__(self, *ways: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Torchs(way) if way in ("encoder", "alone") else Block(way) for way in ways)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean(1))


NETS = {
    "timm": ("timm",),
    "torch's": ("encoder", "alone"),
    "others": ("heads first", "apart", "bias", "norm", "mask", "merged"),
    "merged": ("merged",),
}


@cache
def module(name: str) -> Net:
    torch.manual_seed(3)
    return Net(*NETS[name]).eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Graph]:
    folder = tmp_path_factory.mktemp("exported")

    @cache
    def export(name: str, batch: int = 0) -> Graph:
        path = folder / "model.onnx"
        example = torch.randn(batch or 2, TOKENS, WIDTH)
        export_onnx(module(name), example, path, keep_batch_norm=True, free_batch=not batch)
        return Graph.read(path)

    return export


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def samples(number: int = 12) -> Samples:
    values = np.random.default_rng(5).standard_normal((number, TOKENS, WIDTH)).astype(np.float32)
    return Samples({"input": values}, name="noise")


def work_on(graph: Graph, scratch: Path, **more: Any) -> Work:
    return replace(Work(load_target("cpu-generic-x86_64"), graph, samples(), None, scratch, scratch), **more)


def silenced_answers(name: str, result: Result) -> np.ndarray:
    """What torch answers when the columns that read the heads that went are zero."""
    net = module(name)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.no_grad():
        for block, layer in zip(net.blocks, result.changed["layers"].values(), strict=True):
            for head in layer["removed"]:
                block.out_proj.weight[:, head * HEAD : (head + 1) * HEAD] = 0
        answer: np.ndarray = net(torch.from_numpy(samples().inputs["input"])).numpy()
    net.load_state_dict(state)
    return answer


@pytest.mark.parametrize("form", ["exported", "simplified"])
@pytest.mark.parametrize("name", ["timm", "torch's", "others"])
def test_a_model_without_heads_answers_as_torch_does_with_them_silenced(
    name: str, form: str, exported: Callable[..., Graph], scratch: Path
) -> None:
    graph = exported(name) if form == "exported" else simplify(exported(name))
    before = graph.proto.SerializeToString()
    result = PruneHeads(heads=2).apply(graph, work_on(graph, scratch))
    assert result.changed["left"] == {}
    assert [layer["after"] for layer in result.changed["layers"].values()] == [2] * len(NETS[name])
    found = answers(result.graph, samples(), scratch)["output"]
    np.testing.assert_allclose(found, silenced_answers(name, result), rtol=1e-3, atol=1e-4)
    assert graph.proto.SerializeToString() == before
    onnx.checker.check_model(result.graph.proto, full_check=True)


def test_what_goes_is_the_heads_share_of_the_block_and_sizes_on_the_outside_stay(
    exported: Callable[..., Graph], scratch: Path
) -> None:
    graph = exported("timm")
    result = PruneHeads(heads=3).apply(graph, work_on(graph, scratch))
    gone_macs = TOKENS * WIDTH * HEAD * 4 + 2 * TOKENS * TOKENS * HEAD
    assert result.changed["macs"]["before"] - result.changed["macs"]["after"] == gone_macs
    gone_parameters = 4 * WIDTH * HEAD + 3 * HEAD
    assert result.changed["parameters"]["before"] - result.changed["parameters"]["after"] == gone_parameters
    assert result.changed["macs"]["after"] == count(result.graph).macs
    for name in ("input", "output"):
        assert result.graph.types[name] == graph.types[name]
    scale = [value for value in map(result.graph.array, result.graph.initializers) if value.size == 1]
    assert any(np.isclose(value, HEAD**0.5) for value in scale)


def test_a_fixed_batch_that_is_merged_with_the_heads_follows(exported: Callable[..., Graph], scratch: Path) -> None:
    graph = exported("merged", 3)
    result = PruneHeads(heads=1).apply(graph, work_on(graph, scratch))
    assert result.changed["reached"]
    found = answers(result.graph, samples(), scratch)["output"]
    np.testing.assert_allclose(found, silenced_answers("merged", result), rtol=1e-3, atol=1e-4)


def test_by_output_the_head_that_is_silent_already_goes_first(exported: Callable[..., Graph], scratch: Path) -> None:
    graph = exported("timm").copy()
    product = [node for node in graph.nodes if node.op_type == "MatMul" and node.input[1] in graph.initializers][-1]
    weight = graph.array(product.input[1])
    weight[2 * HEAD : 3 * HEAD] = 0
    graph.set_array(product.input[1], weight)
    result = PruneHeads(heads=3).apply(graph, work_on(graph, scratch))
    assert result.changed["importance"] == "output"
    assert result.changed["layers"][product.name] == {"before": 4, "after": 3, "removed": [2]}
    assert result.changed["output_error"] < 1e-10


def test_without_data_the_head_of_the_smallest_weights_goes_first(
    exported: Callable[..., Graph], scratch: Path
) -> None:
    graph = by_hand()
    for name in "qkv":
        weight = graph.array(f"{name}.w")
        weight[:, HEAD : 2 * HEAD] *= 0.1
        graph.set_array(f"{name}.w", weight)
    result = PruneHeads(heads=3).apply(graph, work_on(graph, scratch, calibration=None))
    assert result.changed["importance"] == "data-free"
    assert [layer["removed"] for layer in result.changed["layers"].values()] == [[1]]
    assert result.changed["output_error"] is None


@pytest.mark.parametrize("rounds", [1, 3])
def test_heads_go_until_the_share_of_macs_is_reached_and_every_block_keeps_some(
    rounds: int, exported: Callable[..., Graph], scratch: Path
) -> None:
    graph = exported("torch's")
    result = PruneHeads(macs=0.75, rounds=rounds, keep_least=2).apply(graph, work_on(graph, scratch))
    assert result.changed["reached"]
    assert result.changed["macs"]["after"] <= 0.75 * result.changed["macs"]["before"]
    missed = PruneHeads(macs=0.01, keep_least=2).apply(graph, work_on(graph, scratch))
    assert [layer["after"] for layer in missed.changed["layers"].values()] == [2, 2]
    assert missed.changed["reached"] is False
    assert "not reached" in missed.notes[-1]


def test_a_block_that_is_excluded_stays(exported: Callable[..., Graph], scratch: Path) -> None:
    graph = exported("torch's")
    result = PruneHeads(ratio=0.5, exclude=("*self_attn*",)).apply(graph, work_on(graph, scratch))
    assert list(result.changed["layers"]) == ["blocks.1.layer.out_proj"]
    with pytest.raises(BadInputError, match="out_projj"):
        PruneHeads(exclude=("blocks.1.layer.out_projj",)).apply(graph, work_on(graph, scratch))


def test_a_goal_that_all_heads_meet_takes_none(exported: Callable[..., Graph], scratch: Path) -> None:
    graph = exported("timm")
    result = PruneHeads(heads=4).apply(graph, work_on(graph, scratch))
    assert result.changed["layers"] == {}
    assert result.changed["reached"]
    assert result.notes[0].startswith("nothing to prune")


def test_a_block_whose_shares_of_attention_are_an_output_is_left_and_named(scratch: Path) -> None:
    graph = by_hand()
    graph.proto.graph.output.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, None))
    graph.touched()
    result = PruneHeads().apply(graph, work_on(graph, scratch))
    assert result.changed["left"] == {"last": "a is an output"}
    assert result.notes == ("nothing to prune: no block's heads can go", "heads left, for a is an output: last")


def test_a_block_that_is_not_the_same_when_its_heads_go_is_left_and_named(scratch: Path) -> None:
    """The scores are multiplied by how many heads there are: their number is more than a size."""
    graph = by_hand(counted=True)
    result = PruneHeads(heads=1).apply(graph, work_on(graph, scratch))
    assert result.changed["left"] == {"last": "the model without them is not the model with them silenced"}
    assert "last" in result.notes[1]
    same = by_hand()
    assert PruneHeads(heads=1).apply(same, work_on(same, scratch)).changed["layers"]["last"]["after"] == 1


def by_hand(*, counted: bool = False) -> Graph:
    """Attention with shared constants and one projection for queries, keys and values; opset 17."""
    random = np.random.default_rng(1)
    constants = {
        **{f"{name}.w": random.standard_normal((WIDTH, WIDTH)).astype(np.float32) for name in "qkv"},
        "last.w": random.standard_normal((WIDTH, WIDTH)).astype(np.float32),
        "heads": np.array([0, TOKENS, HEADS, HEAD], np.int64),
        "merged": np.array([0, TOKENS, WIDTH], np.int64),
        "second": np.array(1, np.int64),
        "few": np.array(0.1, np.float32),
    }
    nodes = []
    for name, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes.append(helper.make_node("MatMul", ["input", f"{name}.w"], [f"{name}.p"], name=name))
        nodes.append(helper.make_node("Reshape", [f"{name}.p", "heads"], [f"{name}.h"]))
        nodes.append(helper.make_node("Transpose", [f"{name}.h"], [name], perm=perm))
    scores = "s"
    nodes.append(helper.make_node("MatMul", ["q", "k"], ["s"]))
    if counted:
        nodes.append(helper.make_node("Shape", ["s"], ["shape"]))
        nodes.append(helper.make_node("Gather", ["shape", "second"], ["number"]))
        nodes.append(helper.make_node("Cast", ["number"], ["scale"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", ["s", "scale"], ["t"]))
        nodes.append(helper.make_node("Mul", ["t", "few"], ["scaled"]))
        scores = "scaled"
    nodes.append(helper.make_node("Softmax", [scores], ["a"], axis=-1))
    nodes.append(helper.make_node("MatMul", ["a", "v"], ["m"]))
    nodes.append(helper.make_node("Transpose", ["m"], ["n"], perm=[0, 2, 1, 3]))
    nodes.append(helper.make_node("Reshape", ["n", "merged"], ["o"]))
    nodes.append(helper.make_node("MatMul", ["o", "last.w"], ["output"], name="last"))
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", TOKENS, WIDTH])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", TOKENS, WIDTH])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_a_graph_without_attention_says_so(scratch: Path) -> None:
    graph = by_hand()
    graph.replace_nodes([node for node in graph.nodes if node.op_type != "Softmax"])
    graph.rewire("a", "s")
    result = PruneHeads().apply(graph, work_on(graph, scratch))
    assert result.notes == ("nothing to prune: the graph has no attention",)
    assert result.changed["reached"] is False


def test_a_real_transformer_of_one_head_a_block_keeps_them_and_says_why(scratch: Path) -> None:
    graph = Graph.read(shared_model("kwt1_speechcommands.onnx"))
    result = PruneHeads().apply(graph, work_on(graph, scratch, calibration=None))
    assert result.notes[0] == "nothing to prune: each of the 12 blocks of attention has one head"
    assert result.graph.digest == graph.digest


@pytest.mark.parametrize("name", ["timm", "torch's"])
def test_a_pruned_graph_can_be_trained_and_quantised(name: str, exported: Callable[..., Graph], scratch: Path) -> None:
    graph = simplify(exported(name))
    work = work_on(graph, scratch)
    pruned = PruneHeads(ratio=0.5).apply(graph, work).graph
    view = TorchView(pruned).eval()
    values = samples()
    with torch.no_grad():
        seen = view({"input": torch.from_numpy(values.inputs["input"])})["output"].numpy()
    expected = answers(pruned, values, scratch)["output"]
    np.testing.assert_allclose(seen, expected, rtol=1e-3, atol=1e-4)
    quantised = quantize_static_int8(pruned, work)
    assert any(node.op_type == "QuantizeLinear" for node in quantised.nodes)
    found = answers(quantised, values, scratch)["output"]
    assert np.linalg.norm(found - expected) < 0.2 * np.linalg.norm(expected)


def test_pruning_channels_leaves_projections_of_attention_to_this_pass(scratch: Path) -> None:
    graph = by_hand()
    result = PruneChannels(ratio=0.5).apply(graph, work_on(graph, scratch))
    assert any("prune-heads" in note and "last" in note for note in result.notes)


def test_a_recipe_and_the_command_line_name_the_pass() -> None:
    assert make_pass(*_pruning("heads=0.25")) == PruneHeads(ratio=0.25)


def test_importance_by_output_without_data_is_refused(exported: Callable[..., Graph], scratch: Path) -> None:
    graph = exported("timm")
    with pytest.raises(BadInputError, match="calibration"):
        PruneHeads(importance="output").apply(graph, work_on(graph, scratch, calibration=None))


@pytest.mark.parametrize(
    "fields",
    [{"ratio": 1.0}, {"ratio": float("nan")}, {"macs": -0.1}, {"ratio": 0.0}, {"heads": -1}, {"keep_least": 0},
     {"rounds": 0}, {"samples": 0}, {"importance": "luck"}],
)  # fmt: skip
def test_senseless_goals_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(BadInputError) as refused:
        PruneHeads(**fields)
    assert refused.value.hint

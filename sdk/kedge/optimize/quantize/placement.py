"""Where Q/DQ pairs go: a pure function of the graph, the plan and the target's scheme.

Two schemes, because one does not serve two runtimes:

`tensor` (onnxruntime): every activation of a connected quantised region is quantised once, after
its producer and the activation function fused into that, and all readers take the quantised form.
So a whole residual network runs in integers from its first convolution to its last.

`tensorrt`: a pair stands before the inputs of the layers with weights, nothing after their outputs
(the next layer's pair serves), and on one operand of a residual Add: the one that is *not* made by
a convolution directly, so that convolution, bias, Add and ReLU fuse into one kernel.
Source: NVIDIA, "Working with Quantized Types", Q/DQ placement recommendations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx

from ...model.graph import Graph, attributes
from ...targets import Target

__all__ = ["WEIGHTED", "Placement", "WeightSite", "place", "quantizable", "thin_layers", "weight_site"]

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")

_FUSED = ("Relu", "Clip")
# What onnxruntime's CPU computes in integers between convolutions, or moves without looking at.
_ELEMENTWISE = ("Add", "Mul", "Concat", "GlobalAveragePool", "AveragePool", "Sigmoid", "LeakyRelu")
_SAME_SCALE = (
    "MaxPool",
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "Split",
    "DepthToSpace",
    "Pad",
)

Reader = tuple[str, int]


@dataclass(frozen=True)
class WeightSite:
    """The constant weight of a layer: which input it is, and the axis of its output channels (None: per tensor)."""

    node: str
    index: int
    tensor: str
    axis: int | None


@dataclass(frozen=True)
class Placement:
    """activations: tensor → readers (node, input index) that take its quantised form.
    weights: by node. same_scale: tensor → the tensor whose scale it must share.
    outputs: outputs of the graph that come out of their pair; others stay as they were computed.
    """

    activations: Mapping[str, frozenset[Reader]]
    weights: Mapping[str, WeightSite]
    same_scale: Mapping[str, str]
    outputs: frozenset[str] = frozenset()


def weight_site(graph: Graph, node: onnx.NodeProto) -> WeightSite | None:
    """Where a node's constant weights are, or None when it has none."""
    if node.op_type not in WEIGHTED or len(node.input) < 2 or node.input[1] not in graph.initializers:
        return None
    dims = len(graph.initializers[node.input[1]].dims)
    if not graph.is_float(node.input[1]) or dims < 2:
        return None
    if node.op_type == "Conv":
        axis: int | None = 0
    elif node.op_type == "ConvTranspose":
        # Output channels lie on axis 1 within each group; with groups no axis tells them apart.
        axis = 1 if attributes(node).get("group", 1) == 1 else None
    elif node.op_type == "Gemm":
        axis = 0 if attributes(node).get("transB", 0) else 1
    else:
        axis = dims - 1 if dims == 2 else None
    return WeightSite(node.name, 1, node.input[1], axis)


def thin_layers(graph: Graph, layers: Iterable[onnx.NodeProto], below: int | None) -> set[str]:
    """Convolutions over fewer input channels than `below`, by name; never all layers there are. None: none.

    Depthwise convolutions have one channel a group and kernels of their own: they are not meant.
    """
    all_layers = list(layers)
    thin = {
        node.name
        for node in all_layers
        if below is not None
        and node.op_type == "Conv"
        and attributes(node).get("group", 1) == 1
        and node.input[1] in graph.initializers
        and graph.initializers[node.input[1]].dims[1] < below
    }
    return thin if len(thin) < len(all_layers) else set()


def quantizable(graph: Graph) -> list[onnx.NodeProto]:
    """The layers a plan may name: those whose time is multiplications, with FP32 inputs."""
    out = []
    for node in graph.nodes:
        # Neither runtime has an integer kernel for ConvTranspose, a pair would only cost: seen in the graphs that
        # onnxruntime 1.32 optimises and in the engines that TensorRT for RTX 1.7.1 makes.
        if node.op_type not in WEIGHTED or node.op_type == "ConvTranspose" or len(node.input) < 2:
            continue
        constant = [name in graph.initializers for name in node.input[:2]]
        # A constant first operand (Gemm, MatMul) has its channels on another axis than runtimes take.
        if constant[0] or not all(graph.is_float(name) for name in node.input[:2]):
            continue
        if constant[1] and weight_site(graph, node) is None:
            continue
        out.append(node)
    return out


def place(graph: Graph, chosen: set[str], target: Target) -> Placement:
    """Where the pairs go when the named layers are quantised."""
    layers = [node for node in quantizable(graph) if node.name in chosen]
    weights = {node.name: site for node in layers if (site := weight_site(graph, node)) is not None}
    if target.int8.placement == "tensorrt":
        return Placement(_before_layers(graph, layers, weights), weights, {})
    return _whole_region(graph, layers, weights)


def _activation_inputs(node: onnx.NodeProto, weights: Mapping[str, WeightSite]) -> list[int]:
    return [0] if node.name in weights else [0, 1]


def _before_layers(
    graph: Graph, layers: list[onnx.NodeProto], weights: Mapping[str, WeightSite]
) -> dict[str, frozenset[Reader]]:
    readers: dict[str, set[Reader]] = {}
    for node in layers:
        for index in _activation_inputs(node, weights):
            readers.setdefault(node.input[index], set()).add((node.name, index))
    names = {node.name for node in layers}
    for node in graph.nodes:
        if node.op_type != "Add" or any(name in graph.initializers or not graph.is_float(name) for name in node.input):
            continue
        direct = [_made_by_layer(graph, name, names) for name in node.input]
        if not any(direct):
            continue
        # Both made by convolutions (a projection shortcut): the later one, in the main branch, stays fused.
        residual = 0 if direct[1] else 1
        if graph.types.get(node.input[0], (0, None))[1] == graph.types.get(node.input[1], (0, None))[1]:
            readers.setdefault(node.input[residual], set()).add((node.name, residual))
    return {tensor: frozenset(takers) for tensor, takers in readers.items()}


def _made_by_layer(graph: Graph, tensor: str, layers: set[str]) -> bool:
    maker = graph.producer.get(tensor)
    return maker is not None and maker.name in layers and len(graph.consumers[tensor]) == 1


def _whole_region(graph: Graph, layers: list[onnx.NodeProto], weights: Mapping[str, WeightSite]) -> Placement:
    region = {node.name for node in layers}
    # Tensors whose values a quantised layer reads or (through a fused activation) makes.
    held = {node.input[index] for node in layers for index in _activation_inputs(node, weights)}
    same_scale: dict[str, str] = {}
    fused: dict[str, str] = {}
    for node in graph.nodes:
        if node.name in region and node.op_type != "MatMul":
            end = _after_fusion(graph, node, fused)
            held.add(end)
        elif node.name in region or node.name in fused:
            continue
        elif node.op_type in _ELEMENTWISE + _SAME_SCALE and _takes_integers(graph, node, held):
            region.add(node.name)
            if node.op_type in _SAME_SCALE:
                for name in node.output:
                    if name and graph.is_float(name):
                        held.add(name)
                        same_scale[name] = node.input[0]
            else:
                held.add(_after_fusion(graph, node, fused))
    # A pair serves when an integer kernel reads it, or when the layer that made it needs one to be fused.
    _trim(graph, region, held, same_scale, fused)
    activations = {}
    for tensor in held:
        takers = graph.consumers.get(tensor, [])
        activations[tensor] = frozenset((reader.name, index) for reader, index in takers if index >= 0)
    # An integer kernel ends in a Q: what it makes for the caller must pass through one as well.
    outputs = frozenset(name for name in graph.output_names if name in held)
    return Placement(activations, weights, {name: root for name, root in same_scale.items() if name in held}, outputs)


def _after_fusion(graph: Graph, node: onnx.NodeProto, fused: dict[str, str]) -> str:
    """The tensor after the activation function that the runtime fuses into this node."""
    out = str(node.output[0])
    takers = graph.consumers.get(out, [])
    if len(takers) == 1 and takers[0][0].op_type in _FUSED and out not in graph.output_names:
        fused[takers[0][0].name] = node.name
        return str(takers[0][0].output[0])
    return out


def _takes_integers(graph: Graph, node: onnx.NodeProto, held: set[str]) -> bool:
    inputs = [name for name in node.input if name and graph.is_float(name)]
    if node.op_type in _SAME_SCALE:
        return bool(inputs) and inputs[0] in held and inputs[0] == node.input[0]
    # A constant operand would need its own pair; onnxruntime gains nothing from it.
    return bool(inputs) and all(name in held for name in inputs)


def _trim(graph: Graph, region: set[str], held: set[str], same_scale: dict[str, str], fused: Mapping[str, str]) -> None:
    needed = {"Conv"} | set(_ELEMENTWISE)
    changed = True
    while changed:
        changed = False
        for tensor in sorted(held):
            maker = graph.producer.get(tensor)
            if maker is not None and maker.name in fused:
                maker = graph.by_name[fused[maker.name]]
            if maker is not None and maker.op_type in needed and maker.name in region:
                continue
            if any(reader.name in region and index >= 0 for reader, index in graph.consumers.get(tensor, [])):
                continue
            held.discard(tensor)
            same_scale.pop(tensor, None)
            if maker is not None and maker.op_type in _SAME_SCALE:
                region.discard(maker.name)
            changed = True

"""What compiles in TensorRT, and yet runs in float, is rounded once more than needed, or keeps layers apart.

That a layer runs in float was read, for each rule, from what TensorRT for RTX 1.7.1 had compiled; that Q/DQ pairs keep
a convolution from being fused with what follows is NVIDIA's own statement (TensorRT documentation, "Explicit
Quantization", section "Q/DQ Layer-Placement Recommendations"), of which the compiled kernels show the extra rounding.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto

from .graph import attributes
from .qdq_layer import Layer
from .qdq_view import TRANSPARENT, Finding, QdqView, is_refused

__all__ = ["RULES"]

_FUSED_AFTER_CONV = (
    "BatchNormalization", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu",
    "Sigmoid", "Tanh",
)  # fmt: skip
_CARRIES_INTEGERS = ("DequantizeLinear", *(name for name in TRANSPARENT if name != "Cast"))
_LONGEST = 4  # nodes on the way from an Add back to its convolution: DQ, Q, BatchNormalization
_PLACEMENT = "quantise for a tensorrt target: its placement puts pairs at the inputs of layers and on one branch"


def granularity(view: QdqView) -> Iterator[Finding]:
    """Scales that are not per tensor (activations), or not along the output channels (weights)."""
    for node in view.quantize:
        scale = view.parameters(node)[0]
        if scale is not None and scale.size > 1 and not view.is_constant(node.input[0]):
            yield Finding(
                "activation-granularity",
                "warning",
                node.name,
                node.input[0],
                f"QuantizeLinear {node.name}: {scale.size} scales for an activation, the layer behind runs in float",
                "quantise activations with one scale per tensor",
            )
    for layer in view.layers:
        axis = view.quantized_axis(layer)
        if axis is not None and axis != layer.weight_axis and view.source(layer.activation).dq:
            yield Finding(
                "weight-axis",
                "warning",
                layer.node.name,
                layer.weight,
                f"{layer.node.op_type} {layer.node.name}: scales of its weights lie along axis {axis}, "
                "it runs in float",
                f"give weights one scale a channel, along axis {layer.weight_axis}",
            )


def depthwise(view: QdqView) -> Iterator[Finding]:
    """One scale for all filters of a depthwise convolution."""
    for layer in view.layers:
        groups = attributes(layer.node).get("group", 1)
        source = view.source(layer.weight).dq
        is_depthwise = layer.node.op_type == "Conv" and groups > 1 and layer.shape[1:2] == (1,)
        if is_depthwise and source and view.per_tensor(source[0]):
            yield Finding(
                "depthwise-per-tensor",
                "warning",
                layer.node.name,
                layer.weight,
                f"Conv {layer.node.name}: one scale for {layer.shape[0]} depthwise filters of different range",
                "give weights one scale a channel, along axis 0",
            )


def one_sided(view: QdqView) -> Iterator[Finding]:
    """Layers of which only weights or only the activation are quantised, and deconvolutions: they run in float."""
    for layer in view.layers:
        activation, weight = view.source(layer.activation), view.source(layer.weight)
        where = f"{layer.node.op_type} {layer.node.name}"
        if weight.dq and not activation.dq:
            four_bits = view.quantized_type(weight.dq[0]) == "int4"
            yield Finding(
                "weight-only",
                "info" if four_bits else "warning",
                layer.node.name,
                layer.weight,
                f"{where}: weights are quantised, its activation is not (it comes from {activation.made_by}): "
                "it runs in float",
                "weights of INT4 save memory" if four_bits else "put a Q/DQ pair directly before its input",
            )
        elif activation.dq and not weight.dq:
            yield Finding(
                "activation-only",
                "warning",
                layer.node.name,
                layer.activation,
                f"{where}: its activation is quantised, its weights are not: rounded for nothing, it runs in float",
                "quantise its weights as well, or take the pair away",
            )
        elif weight.dq and layer.node.op_type == "ConvTranspose":
            yield Finding(
                "deconvolution",
                "warning",
                layer.node.name,
                layer.weight,
                f"{where}: quantised, but TensorRT for RTX runs transposed convolutions in float",
                "leave it in float: the rounding buys nothing",
            )


def _convolution_behind(view: QdqView, tensor: str, layers: dict[str, Layer]) -> bool:
    """Whether a quantised convolution alone makes a tensor that is read once, but for BatchNormalization and a pair."""
    for _ in range(_LONGEST):
        maker = view.graph.producer.get(tensor)
        if maker is None or tensor in view.graph.output_names or len(view.graph.consumers[tensor]) != 1:
            return False
        if maker.op_type == "Conv":
            return maker.name in layers and view.is_quantized(layers[maker.name])
        if maker.op_type not in ("BatchNormalization", "QuantizeLinear", "DequantizeLinear"):
            return False
        tensor = maker.input[0]
    return False


def residuals(view: QdqView) -> Iterator[Finding]:
    """Add nodes of which not exactly the branch without the convolution is quantised.

    The convolution is fused with the Add behind it, and takes the other operand as INT8.
    """
    layers = {layer.node.name: layer for layer in view.layers}
    for node in view.graph.nodes:
        if node.op_type != "Add" or any(view.is_constant(name) for name in node.input):
            continue
        shapes = [view.types.get(name, (0, None))[1] for name in node.input]
        if None not in shapes and shapes[0] != shapes[1]:
            continue
        direct = [_convolution_behind(view, name, layers) for name in node.input]
        paired = [bool(view.source(name).dq) for name in node.input]
        if not any(direct):
            continue
        code, message = "", ""
        if all(paired):
            code, message = (
                "residual-both",
                "both operands are quantised, which can keep the convolution before it apart",
            )
        elif not any(paired):
            code, message = "residual-float", "no operand is quantised: the residual tensor is written in float as well"
        elif not all(direct) and paired == direct:
            code, message = "residual-branch", "the operand that comes from the convolution is quantised, not the other"
        if code:
            where = f"Add {node.name}"
            yield Finding(code, "warning", node.name, node.output[0], f"{where}: {message}", _PLACEMENT)


def unpaired(view: QdqView) -> Iterator[Finding]:
    """A Q without a DQ behind it, a DQ without a Q or a constant before it, and pairs whose halves differ."""
    for node in view.quantize:
        behind = [reader for reader, _ in view.graph.consumers.get(node.output[0], ())]
        fine = any(reader.op_type in _CARRIES_INTEGERS or is_refused(reader) for reader in behind)
        if not fine and node.output[0] not in view.graph.output_names:
            names = ", ".join(sorted({reader.op_type for reader in behind})) or "nothing"
            message = f"QuantizeLinear {node.name}: read by {names}, not by a DQ"
            yield Finding("unpaired", "warning", node.name, node.output[0], message, "put DequantizeLinear behind it")
    for node in view.dequantize:
        pair, maker = view.pair_of(node), view.graph.producer.get(node.input[0])
        fine = maker is None or is_refused(maker) or maker.op_type in _CARRIES_INTEGERS
        if pair is None and maker is not None and not fine and not view.is_constant(node.input[0]):
            message = f"DequantizeLinear {node.name}: fed by {maker.op_type}, not by a Q or a constant"
            yield Finding("unpaired", "warning", node.name, node.input[0], message, "put QuantizeLinear before it")
        if pair is None or list(pair.input[1:]) == list(node.input[1:]):
            continue
        theirs, ours = view.parameters(pair), view.parameters(node)
        if any(a is not None and b is not None and not np.array_equal(a, b) for a, b in zip(theirs, ours, strict=True)):
            message = f"DequantizeLinear {node.name}: its scale differs from that of {pair.name} before it"
            yield Finding("pair-differs", "warning", node.name, node.input[1], message, "give both one scale")


def between_fused(view: QdqView) -> Iterator[Finding]:
    """A pair between a convolution and the normalisation or activation function that would be fused with it."""
    for node in view.quantize:
        maker = view.graph.producer.get(node.input[0])
        while maker is not None and maker.op_type == "BatchNormalization":
            maker = view.graph.producer.get(maker.input[0])
        if maker is None or maker.op_type not in ("Conv", "ConvTranspose"):
            continue
        readers = _behind_pair(view, node)
        if readers and all(reader.op_type in _FUSED_AFTER_CONV for reader in readers):
            names = ", ".join(sorted({reader.op_type for reader in readers}))
            yield Finding(
                "between-fused",
                "warning",
                node.name,
                node.input[0],
                f"QuantizeLinear {node.name}: stands between {maker.op_type} {maker.name} and its {names}",
                f"put the pair behind {names}",
            )


def _behind_pair(view: QdqView, quantize: NodeProto) -> list[NodeProto]:
    pairs = [reader for reader, _ in view.graph.consumers.get(quantize.output[0], ())]
    outputs = [pair.output[0] for pair in pairs if pair.op_type == "DequantizeLinear"]
    return [reader for name in outputs for reader, _ in view.graph.consumers.get(name, ())]


def concat(view: QdqView) -> Iterator[Finding]:
    """Different scales that meet in a Concat."""
    for node in view.graph.nodes:
        if node.op_type != "Concat":
            continue
        found = [dq for name in node.input for dq in view.source(name).dq]
        values = [view.parameters(dq)[0] for dq in found]
        known = {float(value.ravel()[0]) for value in values if value is not None and value.size == 1}
        if len(known) > 1:
            yield Finding(
                "concat-scales",
                "warning",
                node.name,
                node.output[0],
                f"Concat {node.name}: {len(known)} different scales meet, what reads it runs in float or rounds again",
                "quantise what Concat makes, not what it reads; or give its inputs one scale",
            )


RULES = (granularity, depthwise, one_sided, residuals, unpaired, between_fused, concat)

"""What TensorRT refuses, or silently computes otherwise than the graph says.

Each rule was tried on TensorRT for RTX 1.7.1: `tests/unit/test_qdq_check.py` compiles a graph that breaks it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto

from .qdq_view import Finding, QdqView, is_refused

__all__ = ["RULES"]

_PRECISIONS = ("int8", "int4", "fp8")

_HINTS = {
    "MatMulNBits": "write INT4 weights as DequantizeLinear with blocks, before an ordinary MatMul",
    "DynamicQuantizeLinear": "dynamic quantisation is for CPUs: use static INT8",
    "ConvInteger": "dynamic quantisation is for CPUs: use static INT8",
    "MatMulInteger": "dynamic quantisation is for CPUs: use static INT8",
}


def operators(view: QdqView) -> Iterator[Finding]:
    """Operators on integers that TensorRT does not have."""
    for node in view.graph.nodes:
        if not is_refused(node):
            continue
        otherwise = "quantise the FP32 model anew, with Q/DQ pairs for TensorRT"
        if node.domain == "com.microsoft" and not node.op_type.startswith("QLinear"):
            otherwise = "optimise the model without onnxruntime's own operators"
        yield Finding(
            "unsupported-operator",
            "error",
            node.name,
            node.output[0],
            f"{node.op_type} {node.name}: TensorRT has no such operator",
            _HINTS.get(node.op_type, otherwise),
        )


def _heads(view: QdqView) -> Iterator[NodeProto]:
    """Q nodes, and the DQ nodes that stand alone: where the parameters of a pair are stated."""
    yield from view.quantize
    yield from (node for node in view.dequantize if view.pair_of(node) is None and not _after_refused(view, node))


def _after_refused(view: QdqView, node: NodeProto) -> bool:
    maker = view.graph.producer.get(node.input[0])
    return maker is not None and is_refused(maker)


def _is_bias(view: QdqView, node: NodeProto) -> bool:
    return any(layer.bias is not None and node in view.source(layer.bias).dq for layer in view.layers)


def types(view: QdqView) -> Iterator[Finding]:
    """Quantised types that TensorRT does not read, reads as another one, or that the target does not have."""
    for node in _heads(view):
        kind = view.quantized_type(node)
        _, zero = view.parameters(node)
        where, tensor = f"{node.op_type} {node.name}", node.output[0]
        if kind == "uint8" and node.op_type == "QuantizeLinear":
            # With another zero point it is refused for that, and named by the rule below.
            if zero is not None and not zero.any():
                yield Finding(
                    "unsigned",
                    "error",
                    node.name,
                    tensor,
                    f"{where}: TensorRT reads UINT8 as INT8, so that values above 127 scales are cut off",
                    "quantise activations to INT8, symmetric",
                )
        elif kind not in _PRECISIONS:
            if not _is_bias(view, node):
                yield Finding(
                    "unsupported-type",
                    "error",
                    node.name,
                    tensor,
                    f"{where}: TensorRT has no {kind}",
                    f"use one of: {', '.join(_PRECISIONS)}",
                )
        elif kind not in view.precisions:
            yield Finding(
                "precision",
                "error",
                node.name,
                tensor,
                f"{where}: the target has no {kind}",
                f"it has: {', '.join(view.precisions)}",
            )


def zero_points(view: QdqView) -> Iterator[Finding]:
    """Zero points other than 0."""
    for node in _heads(view):
        zero = view.parameters(node)[1]
        if zero is not None and zero.any():
            value = zero.ravel()[np.flatnonzero(zero)[0]]
            yield Finding(
                "zero-point",
                "error",
                node.name,
                node.input[2],
                f"{node.op_type} {node.name}: zero point {value:g}, TensorRT takes only 0",
                "quantise symmetrically: activations and weights INT8 with zero point 0",
            )


def scales(view: QdqView) -> Iterator[Finding]:
    """Scales that are not positive numbers, or not constants."""
    smallest = float(np.finfo(np.float32).tiny)
    for node in (*view.quantize, *view.dequantize):
        pair = view.pair_of(node) if node.op_type == "DequantizeLinear" else None
        if _after_refused(view, node) or (pair is not None and list(pair.input[1:]) == list(node.input[1:])):
            continue
        scale, zero = view.parameters(node)
        where = f"{node.op_type} {node.name}"
        if scale is None or zero is None:
            yield Finding(
                "scale-not-constant",
                "error",
                node.name,
                node.input[1],
                f"{where}: its scale or zero point is computed at run time, on which the compiler can crash",
                "fold constants, or quantise statically",
            )
        elif scale.size and not (np.isfinite(scale).all() and (scale >= smallest).all()):
            bad = scale.ravel()[np.flatnonzero(~(np.isfinite(scale) & (scale >= smallest)))[0]]
            yield Finding(
                "scale-value",
                "error",
                node.name,
                node.input[1],
                f"{where}: scale {bad:g} is not a positive normal number",
                "calibrate again; a channel that is all zeros needs any positive scale",
            )


def scale_types(view: QdqView) -> Iterator[Finding]:
    """Scales of another float type than the tensor they scale, or than the layer's other operand."""
    hint = "give scales the type of the tensor; Cast before Q or after DQ where types change"
    for node in view.quantize:
        kind, scale = view.float_type(node.input[0]), view.types.get(node.input[1], (0, None))[0]
        if kind and scale and kind != scale:
            message = f"QuantizeLinear {node.name}: its scale and its input have different types"
            yield Finding("scale-type", "error", node.name, node.input[1], message, hint)
    for layer in view.layers:
        kinds = {view.float_type(name) for name in layer.node.input[:2]}
        if len(kinds - {0}) > 1:
            message = f"{layer.node.op_type} {layer.node.name}: activation and weights have different float types"
            yield Finding("scale-type", "error", layer.node.name, layer.activation, message, hint)


def operands(view: QdqView) -> Iterator[Finding]:
    """Quantised operands for which there is no kernel."""
    for layer in view.layers:
        activation, weight = view.source(layer.activation).dq, view.source(layer.weight).dq
        if not activation or not weight:
            continue
        kinds = view.quantized_type(activation[0]), view.quantized_type(weight[0])
        if set(kinds) <= set(_PRECISIONS) and not view.operands_fit(layer, *kinds):
            yield Finding(
                "operand-types",
                "error",
                layer.node.name,
                layer.activation,
                f"{layer.node.op_type} {layer.node.name}: no kernel for {kinds[0]} activations and {kinds[1]} weights",
                "quantise both to one type, or leave the activation in float",
            )


def blocks(view: QdqView) -> Iterator[Finding]:
    """Weights with scales for blocks, under a quantised activation.

    The engine that TensorRT for RTX 1.7.1 makes multiplies over all blocks at once and then scales the product by the
    first block's scales. Under an activation in float, blocks are dequantised as the graph says.
    """
    for layer in view.layers:
        weight = view.source(layer.weight).dq
        if weight and view.blocked(weight[0]) and view.source(layer.activation).dq:
            yield Finding(
                "weight-blocks",
                "error",
                layer.node.name,
                layer.weight,
                f"{layer.node.op_type} {layer.node.name}: scales for blocks of weights under a quantised activation, "
                "TensorRT applies the first block's to all",
                f"give weights one scale a channel, along axis {layer.weight_axis}; or leave the activation in float",
            )


def biases(view: QdqView) -> Iterator[Finding]:
    """Quantised biases."""
    for layer in view.layers:
        found = view.source(layer.bias).dq if layer.bias is not None else ()
        if not found or layer.bias is None:
            continue
        kind, where = view.quantized_type(found[0]), f"{layer.node.op_type} {layer.node.name}"
        hint = "leave biases in float: onnxruntime's quantiser does with extra_options={'QuantizeBias': False}"
        if kind in _PRECISIONS:
            message = f"{where}: an {kind} bias loses accuracy and saves nothing"
            yield Finding("bias-quantized", "warning", layer.node.name, layer.bias, message, hint)
        else:
            message = f"{where}: its bias is quantised to {kind.upper()}, which TensorRT does not take"
            yield Finding("bias-quantized", "error", layer.node.name, layer.bias, message, hint)


RULES = (operators, types, zero_points, scales, scale_types, operands, blocks, biases)

"""Layers with weights: which input is the weight, along which axis its output channels lie, what a run costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx

from .graph import attributes

__all__ = ["WEIGHTED", "Layer", "layer_macs", "weight_axis"]

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Layer:
    """A layer with weights. activation, weight and bias are tensor names; macs None where shapes are not known.

    weight_axis: of the output channels, counted from 0.
    """

    node: onnx.NodeProto
    activation: str
    weight: str
    bias: str | None
    weight_axis: int
    shape: tuple[int, ...]
    macs: int | None


def weight_axis(node: onnx.NodeProto, side: int, rank: int) -> int:
    """Axis of a weight's output channels; side is the index of the input that is the weight.

    Source: NVIDIA TensorRT documentation, "Explicit Quantization": K of KCRS for convolutions, of CKRS for
    deconvolutions, of the second matrix's columns for products.
    """
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        transposed = attributes(node).get("transB" if side else "transA", 0)
        return 1 - side if transposed else side
    return rank - 1 if side else rank - 2


def layer_macs(
    node: onnx.NodeProto, weight: tuple[int, ...], axis: int, shape: tuple[int | None, ...] | None
) -> int | None:
    """Multiply-accumulates of one inference, None where a shape is not known; a free first dimension counts as 1.

    Args:
        weight: the weight's shape. axis: of its output channels.
        shape: of what the node makes; of what it reads, for ConvTranspose.
    """
    if not weight or not shape:
        return None
    dims = [1 if dim is None and index == 0 else dim for index, dim in enumerate(shape)]
    known = [dim for dim in dims if dim is not None]
    if len(known) != len(dims):
        return None
    if node.op_type in ("Conv", "ConvTranspose"):
        return known[0] * math.prod(known[2:]) * math.prod(weight)
    return math.prod(known) * weight[-1 if axis == len(weight) - 2 else -2]

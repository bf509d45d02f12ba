"""The layers of a graph that hold weights: where these lie, along which axis they are summed, where they are 0."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from ...errors import BadInputError
from ...model.graph import Graph, attributes

__all__ = ["Layer", "chosen", "lift_constants", "set_zeros", "values", "weight_layers", "zeros"]

# What a weight may pass on its way to the layer without changing which of its elements are zero, or their axes.
_TRANSPARENT = ("DequantizeLinear", "QuantizeLinear", "Identity")


@dataclass(frozen=True)
class Layer:
    """A Conv, ConvTranspose, Gemm or MatMul with a constant weight.

    name: of the node. tensor: name of the constant. reduction_axis, output_axis: axes of the constant that run over
    what is summed (input channels) and over output channels. groups: of a convolution, else 1.
    dequantize: name of the DequantizeLinear node through which an integer constant is read, "" for a float one.
    """

    name: str
    op: str
    tensor: str
    reduction_axis: int
    output_axis: int
    groups: int = 1
    dequantize: str = ""


def lift_constants(graph: Graph) -> Graph:
    """A copy in which the tensors of Constant nodes are initializers, where passes can change them."""
    lifted = graph.copy()
    kept = []
    for node in lifted.nodes:
        value = attributes(node).get("value") if node.op_type == "Constant" else None
        if isinstance(value, onnx.TensorProto) and node.output[0] not in lifted.output_names:
            tensor = lifted.proto.graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
        else:
            kept.append(node)
    lifted.replace_nodes(kept)
    return lifted


def weight_layers(graph: Graph) -> list[Layer]:
    """Layers whose weight is an initializer, plain or behind DequantizeLinear (and QuantizeLinear), in graph order."""
    layers = []
    for node in graph.nodes:
        for index in _weight_inputs(node):
            tensor, dequantize = _origin(graph, node.input[index])
            if tensor not in graph.initializers:
                continue
            rank = len(graph.initializers[tensor].dims)
            reduction, output = _axes(node, index, rank)
            if rank < 2 and node.op_type != "MatMul":
                continue
            groups = int(attributes(node).get("group", 1)) if node.op_type.startswith("Conv") else 1
            layers.append(Layer(node.name, node.op_type, tensor, reduction, output, groups, dequantize))
            break
    return layers


def values(graph: Graph, layer: Layer) -> NDArray[np.float32]:
    """The weight as the layer sees it, FP32: (q − z) · s for an integer constant."""
    stored = graph.array(layer.tensor)
    if not layer.dequantize:
        return stored.astype(np.float32)
    scale, zero = _quantisation(graph, layer, stored)
    return np.asarray((stored.astype(np.float32) - zero) * scale, np.float32)


def zeros(graph: Graph, layer: Layer) -> NDArray[np.bool_]:
    """Where the weight is 0; for an integer constant, where it equals the zero point."""
    stored = graph.array(layer.tensor)
    if not layer.dequantize:
        return np.asarray(stored == 0)
    _, zero = _quantisation(graph, layer, stored)
    return np.asarray(stored.astype(np.float32) == zero.astype(np.float32))


def set_zeros(graph: Graph, layer: Layer, mask: NDArray[np.bool_]) -> None:
    """Make the weight 0 where the mask, of the weight's shape, is true. Changes the graph."""
    stored = graph.array(layer.tensor)
    if layer.dequantize:
        _, zero = _quantisation(graph, layer, stored)
        stored[mask] = zero.astype(stored.dtype)[mask]
    else:
        stored[mask] = 0
    graph.set_array(layer.tensor, stored)


def chosen(patterns: Iterable[str], names: Iterable[str]) -> set[str]:
    """Names that are given exactly or match a shell pattern.

    Raises:
        BadInputError: a pattern matches nothing.
    """
    known = list(names)
    found: set[str] = set()
    for pattern in patterns:
        matches = {pattern} if pattern in known else {name for name in known if fnmatchcase(name, pattern)}
        if not matches:
            close = difflib.get_close_matches(pattern, known, n=1)
            raise BadInputError(
                f"no layer with weights is named {pattern!r}",
                hint=f"did you mean {close[0]}?" if close else f"layers: {', '.join(known[:5]) or 'none'}",
            )
        found |= matches
    return found


def _weight_inputs(node: onnx.NodeProto) -> tuple[int, ...]:
    if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
        return (1,)
    return (1, 0) if node.op_type == "MatMul" else ()


def _origin(graph: Graph, name: str) -> tuple[str, str]:
    """The constant behind a tensor, and the DequantizeLinear that reads it when it is stored as integers."""
    dequantize = ""
    while name not in graph.initializers and name in graph.producer:
        node = graph.producer[name]
        if node.op_type not in _TRANSPARENT:
            break
        dequantize = node.name if node.op_type == "DequantizeLinear" else ""
        name = node.input[0]
    return name, dequantize


def _axes(node: onnx.NodeProto, index: int, rank: int) -> tuple[int, int]:
    if node.op_type == "Conv":
        return 1, 0
    if node.op_type == "ConvTranspose":
        return 0, 1
    if node.op_type == "Gemm":
        return (1, 0) if attributes(node).get("transB", 0) else (0, 1)
    if rank < 2:
        return 0, 0
    return (rank - 2, rank - 1) if index == 1 else (rank - 1, rank - 2)


def _quantisation(graph: Graph, layer: Layer, stored: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Scale and zero point of a dequantised constant, both in its shape."""
    node = graph.by_name[layer.dequantize]
    scale = _constant(graph, node.input[1])
    zero = _constant(graph, node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros_like(scale)
    settings = attributes(node)
    axis, block = int(settings.get("axis", 1)), int(settings.get("block_size", 0))

    def spread(parameter: NDArray[Any]) -> NDArray[Any]:
        parameter = parameter.astype(np.float32)
        if block:
            repeated = np.repeat(parameter, block, axis=axis)
            return np.take(repeated, range(stored.shape[axis]), axis=axis)
        if parameter.size == 1:
            return np.broadcast_to(parameter.reshape(()), stored.shape)
        shape = [1] * stored.ndim
        shape[axis] = parameter.size
        return np.broadcast_to(parameter.reshape(shape), stored.shape)

    return spread(scale), spread(zero)


def _constant(graph: Graph, name: str) -> NDArray[Any]:
    if name in graph.initializers:
        return graph.array(name)
    value = attributes(graph.producer[name]).get("value") if name in graph.producer else None
    if not isinstance(value, onnx.TensorProto):
        raise BadInputError(
            f"the quantisation parameter {name!r} of a weight is not a constant", hint="simplify the model first"
        )
    return np.array(numpy_helper.to_array(value))

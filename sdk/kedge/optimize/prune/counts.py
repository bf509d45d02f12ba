"""Parameters and multiply-accumulate operations of a graph, by shape inference."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from ...errors import BadInputError, first_line
from ...model.graph import Graph, attributes

__all__ = ["Counts", "count", "layer_macs", "shapes_at_batch_one"]

Shape = tuple[int, ...]

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
# Which input is the data and which the weight, for each operator that multiplies matrices.
_CONVOLUTIONS = {"Conv": (0, 1), "FusedConv": (0, 1), "ConvInteger": (0, 1), "QLinearConv": (0, 3)}
_PRODUCTS = {"MatMul": (0, 1), "MatMulInteger": (0, 1), "QLinearMatMul": (0, 3), "DynamicQuantizeMatMul": (0, 1)}
# The integer inputs that are weights or biases, each with its zero point (-1: 0), for operators that take integers.
_INTEGER_WEIGHTS: dict[str, tuple[tuple[int, int], ...]] = {
    "DequantizeLinear": ((0, 2),),
    "QLinearConv": ((3, 5), (8, -1)),
    "QLinearMatMul": ((3, 5),),
    "ConvInteger": ((1, 3),),
    "MatMulInteger": ((1, 3),),
    "DynamicQuantizeMatMul": ((1, 3),),
}
_SCALES = {
    "QuantizeLinear": (1,),
    "DequantizeLinear": (1,),
    "QLinearConv": (1, 4, 6),
    "QLinearMatMul": (1, 4, 6),
    "MatMulNBits": (2,),
    "DynamicQuantizeMatMul": (2,),
}


@dataclass(frozen=True)
class Counts:
    """Size of a graph.

    parameters: elements of its trained constants: floating-point ones of at least one dimension, and integer ones
    that are quantised weights or biases; scales, zero points, shapes and scalars are none.
    nonzero: parameters whose value is not 0.
    macs: multiply-accumulates of one inference, None where a shape is unknown.
    """

    parameters: int
    nonzero: int
    macs: int | None


def count(graph: Graph, shapes: Mapping[str, Shape] | None = None) -> Counts:
    """Parameters, those that are not zero, and MACs.

    MACs are summed over convolutions and matrix products (`layer_macs`), at batch one where the batch is free.
    One layer whose shape is unknown, or that lies in the body of an If or Loop, makes the sum None: not measured.

    Args:
        graph: float or quantised.
        shapes: shapes of inputs, for free dimensions that are no batch.

    Raises:
        BadInputError: a shape given is not one of the input's.
    """
    parameters, nonzero = _parameters(graph)
    macs = list(layer_macs(graph, shapes).values())
    known = [value for value in macs if value is not None]
    complete = len(known) == len(macs) and not any(_multiplies_inside(node) for node in graph.nodes)
    return Counts(parameters, nonzero, sum(known) if complete else None)


def layer_macs(graph: Graph, shapes: Mapping[str, Shape] | None = None) -> dict[str, int | None]:
    """Multiply-accumulates of each convolution and matrix product by node name, in graph order; None: shape unknown.

    With output [N, O, …], weight [O, I/groups, kernel…]:
        Conv           N · O · (output positions) · (I/groups) · (kernel positions)
        ConvTranspose  N · I · (input positions) · (O/groups) · (kernel positions)
        Gemm, MatMul   (elements of the output) · (length of the summed axis), constants or not
    Additions of biases, activations and normalisation are not counted, as in He et al. 2016.
    Quantised operators (QLinearConv, MatMulInteger, MatMulNBits …) count as their float forms.

    Raises:
        BadInputError: a shape given is not one of the input's.
    """
    known = shapes_at_batch_one(graph, shapes)
    found: dict[str, int | None] = {}
    for node in graph.nodes:
        if _multiplies(node):
            found[node.name] = _macs(node, known)
    return found


def shapes_at_batch_one(graph: Graph, shapes: Mapping[str, Shape] | None = None) -> dict[str, Shape]:
    """Shapes of all tensors that are fully known when the batch (a free first dimension of an input) is one.

    A free dimension elsewhere that bears the batch's name is the batch, too.

    Raises:
        BadInputError: a shape given is not one of the input's.
    """
    proto = copy.deepcopy(graph.proto)
    given = dict(shapes or {})
    fed = [value for value in proto.graph.input if value.name in graph.input_names]
    for name in given:
        if name not in graph.input_names:
            raise BadInputError(f"the model has no input {name!r}", hint=f"inputs: {', '.join(graph.input_names)}")
    batch_names = {value.type.tensor_type.shape.dim[0].dim_param for value in fed if value.type.tensor_type.shape.dim}
    for value in fed:
        dims = value.type.tensor_type.shape.dim
        if value.name in given and len(given[value.name]) != len(dims):
            raise BadInputError(f"input {value.name!r} has {len(dims)} dimensions, not {len(given[value.name])}")
        for index, dim in enumerate(dims):
            free = not dim.HasField("dim_value")
            if value.name in given:
                if not free and dim.dim_value != given[value.name][index]:
                    raise BadInputError(f"dimension {index} of input {value.name!r} is {dim.dim_value}")
                dim.dim_value = given[value.name][index]
            elif free and (index == 0 or dim.dim_param in batch_names - {""}):
                dim.dim_value = 1
    # Names that exporters left for free dimensions would stand in the way of the sizes that now follow.
    for value in (*proto.graph.value_info, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.ClearField("dim_param")
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    except Exception as error:  # onnx raises InferenceError and RuntimeError
        raise BadInputError(f"the model's shapes contradict one another: {first_line(error)}") from error
    known: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            known[value.name] = tuple(dim.dim_value for dim in kind.shape.dim)
    return known


def _multiplies(node: onnx.NodeProto) -> bool:
    return node.op_type in (*_CONVOLUTIONS, *_PRODUCTS, "ConvTranspose", "Gemm", "FusedGemm", "MatMulNBits")


def _multiplies_inside(node: onnx.NodeProto) -> bool:
    for attribute in node.attribute:
        bodies = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else list(attribute.graphs)
        for body in bodies:
            if any(_multiplies(inner) or _multiplies_inside(inner) for inner in body.node):
                return True
    return False


def _macs(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int | None:
    settings = attributes(node)
    output = shapes.get(node.output[0])
    if node.op_type == "MatMulNBits":
        return None if output is None else prod(output) * int(settings["K"])
    data, weight = {**_CONVOLUTIONS, **_PRODUCTS}.get(node.op_type, (0, 1))
    left, right = shapes.get(node.input[data]), shapes.get(node.input[weight])
    if left is None or right is None:
        return None
    if node.op_type == "ConvTranspose":
        return prod(left) * prod(right[1:])
    if output is None:
        return None
    if node.op_type in _CONVOLUTIONS:
        return prod(output) * prod(right[1:])
    if node.op_type in ("Gemm", "FusedGemm"):
        return prod(output) * left[0 if settings.get("transA", 0) else 1]
    return prod(output) * left[-1]


def _parameters(graph: Graph) -> tuple[int, int]:
    """Elements of trained constants, and how many are not zero."""
    constants = dict(graph.initializers)
    for node in graph.nodes:
        value = attributes(node).get("value") if node.op_type == "Constant" else None
        if isinstance(value, TensorProto):
            constants[node.output[0]] = value
    scales = {node.input[i] for node in graph.nodes for i in _SCALES.get(node.op_type, ()) if i < len(node.input)}
    total = nonzero = 0
    for name, tensor in constants.items():
        if tensor.data_type in _FLOATS and len(tensor.dims) > 0 and name not in scales and name in graph.consumers:
            total += prod(tensor.dims)
            nonzero += int(np.count_nonzero(numpy_helper.to_array(tensor)))
    seen: set[str] = set()
    for node in graph.nodes:
        if node.op_type == "MatMulNBits":
            settings = attributes(node)
            # Four-bit weights lie packed with their blocks' scales: their zeros are not looked for.
            total += int(settings["K"]) * int(settings["N"])
            nonzero += int(settings["K"]) * int(settings["N"])
            continue
        for data, zero_point in _INTEGER_WEIGHTS.get(node.op_type, ()):
            name = node.input[data] if data < len(node.input) else ""
            if name in seen or name not in constants or constants[name].data_type in _FLOATS:
                continue
            seen.add(name)
            stored = numpy_helper.to_array(constants[name])
            zero = node.input[zero_point] if 0 <= zero_point < len(node.input) else ""
            total += stored.size
            nonzero += int(np.count_nonzero(stored.astype(np.float32) - _zero_point(node, stored, constants.get(zero))))
    return total, nonzero


def _zero_point(node: onnx.NodeProto, stored: NDArray[Any], zero: TensorProto | None) -> NDArray[Any]:
    """A zero point in a shape that broadcasts over the constant."""
    if zero is None:
        return np.zeros((), np.float32)
    value = np.asarray(numpy_helper.to_array(zero)).astype(np.float32)
    if value.size == 1:
        return value.reshape(())
    settings = attributes(node)
    axis = int(settings.get("axis", 1)) if node.op_type == "DequantizeLinear" else 0
    if node.op_type in ("MatMulInteger", "QLinearMatMul", "DynamicQuantizeMatMul"):
        axis = stored.ndim - 1
    if value.ndim == stored.ndim:
        repeated = np.repeat(value, int(settings.get("block_size", 1)), axis=axis)
        return np.take(repeated, range(stored.shape[axis]), axis=axis)
    shape = [1] * stored.ndim
    shape[axis] = value.size
    return value.reshape(shape)

"""How much memory a graph needs: its weights, and the most that its activations take at once at given shapes.

An estimate from the graph alone, before any compiler has fused or reused anything: tensors live from the node that
makes them to the last that reads them, in the graph's order. Compilers usually need less, and kernels' scratch memory
comes on top; reports call it an estimate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx

from .graph import Graph

__all__ = ["activation_bytes", "weight_bytes"]

_BITS = {
    onnx.TensorProto.INT4: 4,
    onnx.TensorProto.UINT4: 4,
    getattr(onnx.TensorProto, "FLOAT4E2M1", -1): 4,
}


def weight_bytes(graph: Graph) -> int:
    """Bytes of all constants."""
    return sum(_bytes(tensor.data_type, tuple(tensor.dims)) for tensor in graph.initializers.values())


def activation_bytes(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Peak bytes of activations with inputs of these shapes; None where shape inference leaves a size open.

    Args:
        shapes: of every input.
    """
    fixed = graph.copy()
    for value in fixed.proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, shapes[value.name], strict=True):
            dim.Clear()
            dim.dim_value = size
    del fixed.proto.graph.value_info[:]
    for value in fixed.proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    # Shapes that the graph computes itself are followed too.
    fixed.proto = onnx.shape_inference.infer_shapes(fixed.proto, data_prop=True)
    fixed.touched()
    known = fixed.types
    nodes = fixed.nodes
    last = {name: index for index, node in enumerate(nodes) for name in node.input}
    last |= dict.fromkeys(fixed.output_names, len(nodes))
    sizes: dict[str, int] = {}

    def size_of(name: str) -> int | None:
        kind, shape = known.get(name, (0, None))
        if shape is None or None in shape:
            return None
        return _bytes(kind, tuple(dim for dim in shape if dim is not None))

    made = [list(fixed.input_names), *([name for name in node.output if name] for node in nodes)]
    peak = 0
    for index, names in enumerate(made, start=-1):
        for name in names:
            found = size_of(name)
            if found is None:
                return None
            sizes[name] = found
        peak = max(peak, sum(sizes.values()))
        read = nodes[index].input if index >= 0 else ()
        for name in (*read, *names):
            if name in sizes and index >= 0 and last.get(name, index) <= index:
                del sizes[name]
    return peak


def _bytes(kind: int, shape: tuple[int, ...]) -> int:
    count = math.prod(shape)
    if kind in _BITS:
        return (count * _BITS[kind] + 7) // 8
    try:
        return count * int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)
    except KeyError:  # a type without a size: strings, or none that is known
        return 0

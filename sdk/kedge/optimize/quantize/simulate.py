"""A graph in half precision as one that onnxruntime's CPU computes in FP32, rounding each result."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from ...model.graph import Graph, attributes

__all__ = ["simulation"]

_LOW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def simulation(graph: Graph) -> Graph | None:
    """A graph that stands in for one that another runtime computes in FP16 or BF16; None: it computes in neither.

    onnxruntime's CPU has no kernels for most of BF16, and computes most of FP16 in FP32 without rounding in between.
    Here constants become the same values in FP32, and what a node makes is made in FP32 and rounded, once, as kernels
    do that multiply in half precision and add in FP32 (the tensor cores of NVIDIA's GPUs). Tensors keep their names.
    """
    types = graph.types

    def low(name: str) -> int | None:
        kind = types.get(name, (0, None))[0]
        return kind if kind in _LOW else None

    # Data in half precision must be handed over in it.
    if any(low(name) for name in (*graph.input_names, *graph.output_names)) or not any(low(name) for name in types):
        return None
    out = graph.copy()
    for name, tensor in list(out.initializers.items()):
        if tensor.data_type in _LOW:
            out.set_array(name, graph.array(name).astype(np.float32))
    for value in out.proto.graph.value_info:
        if value.type.tensor_type.elem_type in _LOW:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    added: list[onnx.NodeProto] = []
    for node in out.nodes:
        if node.op_type == "Cast" and low(node.input[0]) and attributes(node)["to"] == TensorProto.FLOAT:
            # Its input is rounded already.
            node.op_type = "Identity"
            del node.attribute[:]
        for index, name in enumerate(node.output):
            if name and (kind := low(name)):
                node.output[index] = out.unused_name(f"{name}_unrounded")
                added += _rounding(out, node.output[index], name, kind)
                if node.op_type == "Cast":
                    _set_type(node, TensorProto.FLOAT)
    out.replace_nodes([*out.nodes, *added])
    return out


def _rounding(graph: Graph, source: str, name: str, kind: int) -> list[onnx.NodeProto]:
    between = graph.unused_name(f"{name}_rounded")
    first, second = (graph.unused_name(f"{between}_{part}") for part in ("down", "up"))
    return [
        helper.make_node("Cast", [source], [between], name=first, to=kind),
        helper.make_node("Cast", [between], [name], name=second, to=TensorProto.FLOAT),
    ]


def _set_type(cast: onnx.NodeProto, kind: int) -> None:
    for attribute in cast.attribute:
        if attribute.name == "to":
            attribute.i = kind

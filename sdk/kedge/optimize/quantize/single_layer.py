"""One layer of a graph as a graph of its own: input, weights, output. For searches that look at a layer at a time."""

from __future__ import annotations

import onnx
from onnx import helper

from ...model.graph import Graph

__all__ = ["single_layer"]


def single_layer(graph: Graph, layer: str) -> Graph:
    """The named layer alone. Its activation inputs become the graph's inputs, under their names."""
    node = graph.by_name[layer]
    constants = [graph.initializers[name] for name in node.input if name in graph.initializers]
    inputs = [_value(graph, name) for name in dict.fromkeys(node.input) if name and name not in graph.initializers]
    body = helper.make_graph([node], layer, inputs, [_value(graph, node.output[0])], constants)
    proto = helper.make_model(body, opset_imports=graph.proto.opset_import, ir_version=graph.proto.ir_version)
    return Graph(proto)


def _value(graph: Graph, name: str) -> onnx.ValueInfoProto:
    kind, shape = graph.types[name]
    return helper.make_tensor_value_info(name, kind, shape)

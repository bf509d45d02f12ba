"""Attention in a graph: softmax(Q·Kᵀ)·V between projections with constant weights, found by its nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import onnx

from ...model.graph import Graph, attributes

__all__ = ["ELEMENTWISE", "SAME", "SEEN_ONLY", "Attention", "find_attention"]

SAME = ("Identity", "Cast", "Dropout", "Softmax", "Neg", "LayerNormalization")
"""What leaves every element where it is."""

SEEN_ONLY = ("Shape", "IsNaN")
"""What may read heads beside the block: sizes follow, and rows that are masked throughout are made 0 by IsNaN."""

ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Where")
"""What combines elements of the same place."""

_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Gather")
_LONGEST = 100


@dataclass(frozen=True)
class Attention:
    """One block of attention (Vaswani et al. 2017), by the names of its nodes.

    name: the projection that reads the heads. projections: those that make queries, keys and values; one when fused.
    scores: the product of queries and keys. mix: the product of softmax and values. inward: what lies between the
    projections and these products. onward: what lies between scores and name, softmax and mix among it. In order.
    """

    name: str
    projections: tuple[str, ...]
    scores: str
    mix: str
    inward: tuple[str, ...]
    onward: tuple[str, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """The nodes with weights."""
        return (*self.projections, self.name)


def find_attention(graph: Graph) -> tuple[list[Attention], dict[str, str]]:
    """Blocks in graph order; and, by the name of a softmax between two products, why it is none that heads can leave.

    Only the structure is looked at; constants must be initializers.
    """
    found: list[Attention] = []
    strange: dict[str, str] = {}
    order = {node.name: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        before = _back(graph, node.input[0], _is_product) if _over_last_axis(graph, node) else None
        after = _ahead(graph, node.output[0], lambda reader, index: _is_product(graph, reader) and index == 0)
        if before is None or after is None:
            continue
        scores, mix = before[0], after[-1]
        sides = [_back(graph, name, _is_projection) for name in (*scores.input, mix.input[1])]
        out = _ahead(graph, mix.output[0], lambda reader, index: _is_projection(graph, reader) and index == 0)
        if out is None or None in sides:
            missing = "no constant matrix reads them" if out is None else "no constant matrix makes them"
            strange[node.name] = f"{missing}, by moves of elements alone"
            continue
        paths = [side for side in sides if side is not None]
        found.append(
            Attention(
                out[-1].name,
                _ordered(order, (path[0] for path in paths)),
                scores.name,
                mix.name,
                _ordered(order, (step for path in paths for step in path[1:])),
                _ordered(order, (*before[1:], node, *after, *out[:-1])),
            )
        )
    return found, strange


def _ordered(order: dict[str, int], nodes: Iterable[onnx.NodeProto]) -> tuple[str, ...]:
    return tuple(sorted({node.name for node in nodes}, key=order.__getitem__))


def _over_last_axis(graph: Graph, node: onnx.NodeProto) -> bool:
    if node.op_type != "Softmax" or node.domain not in ("", "ai.onnx"):
        return False
    axis = attributes(node).get("axis", -1 if graph.opset >= 13 else 1)
    shape = graph.types.get(node.output[0], (0, None))[1]
    return axis == -1 or (shape is not None and axis == len(shape) - 1)


def _is_product(graph: Graph, node: onnx.NodeProto) -> bool:
    return node.op_type == "MatMul" and not any(name in graph.initializers for name in node.input)


def _is_projection(graph: Graph, node: onnx.NodeProto) -> bool:
    """A product of something computed with a constant matrix."""
    if node.op_type not in ("MatMul", "Gemm") or node.input[0] in graph.initializers:
        return False
    weight = graph.initializers.get(node.input[1])
    constant = all(name in graph.initializers for name in node.input[2:] if name)
    return weight is not None and len(weight.dims) == 2 and constant and not attributes(node).get("transA", 0)


def _flowing(graph: Graph, node: onnx.NodeProto) -> list[int]:
    """Inputs whose elements a node hands on."""
    if node.domain not in ("", "ai.onnx"):
        return []
    if node.op_type in _MOVES or node.op_type in SAME:
        return [0]
    if node.op_type not in ELEMENTWISE:
        return []
    return [
        index
        for index, name in enumerate(node.input)
        if name not in graph.initializers and (index > 0 or node.op_type != "Where")
    ]


def _back(
    graph: Graph, name: str, wanted: Callable[[Graph, onnx.NodeProto], bool], seen: set[str] | None = None
) -> list[onnx.NodeProto] | None:
    """Nodes from the nearest wanted one to the maker of a tensor; None where there is no such way."""
    seen = set() if seen is None else seen
    node = graph.producer.get(name)
    if node is None or node.name in seen or len(seen) > _LONGEST:
        return None
    if wanted(graph, node):
        return [node]
    seen.add(node.name)
    for index in _flowing(graph, node):
        path = _back(graph, node.input[index], wanted, seen)
        if path is not None:
            return [*path, node]
    return None


def _ahead(
    graph: Graph, name: str, wanted: Callable[[onnx.NodeProto, int], bool], seen: set[str] | None = None
) -> list[onnx.NodeProto] | None:
    """Nodes from a reader of a tensor to the nearest wanted one; None where there is no such way."""
    seen = set() if seen is None else seen
    for node, index in graph.consumers.get(name, ()):
        if wanted(node, index):
            return [node]
        if node.name in seen or index not in _flowing(graph, node) or len(seen) > _LONGEST:
            continue
        seen.add(node.name)
        for made in node.output:
            path = _ahead(graph, made, wanted, seen)
            if path is not None:
                return [node, *path]
    return None

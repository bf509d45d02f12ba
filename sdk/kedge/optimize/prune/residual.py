"""Residual blocks of a graph, found by structure: Add(x, f(x)) where nothing but the Add reads what f makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from ...model.graph import Graph
from .counts import layer_macs, shapes_at_batch_one

__all__ = ["Block", "remove_block", "residual_blocks"]


@dataclass(frozen=True)
class Block:
    """One block. name: of its Add. skip: the tensor x. nodes: names of f's nodes. macs: of f, None where unknown."""

    name: str
    skip: str
    nodes: tuple[str, ...]
    macs: int | None


def residual_blocks(graph: Graph) -> list[Block]:
    """Blocks that can be taken out by putting x in the place of Add(x, f(x)), in graph order.

    A block is an Add of two tensors of one known, equal shape, one of which (x) the other depends on. f is all that
    lies between; it holds a layer (Conv, Gemm, MatMul …), and none of it is read from outside f and the Add, or is an
    output of the model.
    """
    shapes = shapes_at_batch_one(graph)
    macs = layer_macs(graph)
    above = _ancestors(graph)
    blocks = []
    for node in graph.nodes:
        if node.op_type != "Add" or len(set(node.input)) != 2:
            continue
        first, second = node.input
        if first not in shapes or shapes[first] != shapes.get(second):
            continue
        for skip, branch in ((first, second), (second, first)):
            inside = _between(graph, skip, branch, above)
            # Without a layer inside it is an activation such as GELU's x + 0.044715·x³.
            if inside & set(macs) and _closed(graph, inside, node):
                blocks.append(Block(node.name, skip, tuple(sorted(inside)), _sum_macs(inside, macs)))
    return blocks


def remove_block(graph: Graph, block: Block) -> Graph:
    """A copy without the block. Inputs and outputs keep their names and shapes."""
    smaller = graph.copy()
    add = smaller.by_name[block.name]
    made = add.output[0]
    readers = smaller.consumers.get(made, [])
    if made in smaller.output_names:
        keep = onnx.helper.make_node("Identity", [block.skip], [made], name=smaller.unused_name(f"{block.name}_out"))
        smaller.replace_nodes([*(node for node in smaller.nodes if node.name != block.name), keep])
    elif any(index < 0 for _, index in readers):
        # A subgraph reads the sum by name: the name must stay.
        smaller.replace_nodes(
            [
                onnx.helper.make_node("Identity", [block.skip], [made], name=block.name)
                if node.name == block.name
                else node
                for node in smaller.nodes
            ]
        )
    else:
        smaller.rewire(made, block.skip)
        _drop_repeated_relu(smaller, block.skip)
    smaller.prune_unused()
    return smaller


def _drop_repeated_relu(graph: Graph, name: str) -> None:
    """Relu(Relu(x)) is Relu(x): the Relu behind a removed block costs time for nothing."""
    maker = graph.producer.get(name)
    if maker is None or maker.op_type != "Relu":
        return
    for node, _ in list(graph.consumers.get(name, ())):
        made = node.output[0]
        if node.op_type == "Relu" and made not in graph.output_names:
            readers = graph.consumers.get(made, [])
            if all(index >= 0 for _, index in readers):
                graph.rewire(made, name)


def _ancestors(graph: Graph) -> dict[str, frozenset[str]]:
    """Names of all tensors that each tensor depends on."""
    above: dict[str, frozenset[str]] = {}
    for node in graph.nodes:
        read = [reader_input for reader_input in _reads(node) if reader_input]
        merged: frozenset[str] = frozenset(read).union(*(above.get(name, frozenset()) for name in read))
        for name in node.output:
            above[name] = merged
    return above


def _reads(node: onnx.NodeProto) -> list[str]:
    names = list(node.input)
    for attribute in node.attribute:
        bodies = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else list(attribute.graphs)
        for body in bodies:
            for inner in body.node:
                names.extend(_reads(inner))
            names.extend(value.name for value in body.output)
    return names


def _between(graph: Graph, skip: str, branch: str, above: Mapping[str, frozenset[str]]) -> set[str]:
    """Nodes on the ways from x to f(x); empty when there is none."""
    if skip not in above.get(branch, frozenset()):
        return set()
    inside = set()
    for name in (branch, *above[branch]):
        node = graph.producer.get(name)
        if node is not None and skip in above.get(name, frozenset()):
            inside.add(node.name)
    return inside


def _closed(graph: Graph, inside: set[str], add: onnx.NodeProto) -> bool:
    """Whether nothing but the Add and the nodes themselves read what they make."""
    outputs = set(graph.output_names)
    for name in inside:
        for made in graph.by_name[name].output:
            if made in outputs:
                return False
            if any(
                reader.name not in inside and reader.name != add.name for reader, _ in graph.consumers.get(made, ())
            ):
                return False
    return True


def _sum_macs(inside: set[str], macs: Mapping[str, int | None]) -> int | None:
    total = 0
    for name in inside & set(macs):
        value = macs[name]
        if value is None:
            return None
        total += value
    return total

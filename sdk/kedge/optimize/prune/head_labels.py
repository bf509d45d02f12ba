"""Which head each element of attention's tensors belongs to: followed element by element through the moves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ...model.graph import Graph, attributes
from .attention import ELEMENTWISE, SAME, SEEN_ONLY, Attention

__all__ = ["Heads", "UnclearError", "heads_of", "slice_bounds"]

Shapes = Mapping[str, tuple[int, ...]]
Labels = NDArray[np.int32]

_NOWHERE = -1


class UnclearError(Exception):
    """Heads that cannot go; its text is the reason, to be read after "heads left, for"."""


@dataclass(frozen=True)
class Heads:
    """The heads of one block.

    labels: for each tensor from the projections' outputs to the input of the last projection, the head that each of
    its elements belongs to, -1 for none; tensors as they are for one batch of samples.
    """

    attention: Attention
    count: int
    labels: Mapping[str, Labels]

    def rows(self, graph: Graph) -> Labels:
        """The head that each input channel of the last projection belongs to."""
        entered = self.labels[graph.by_name[self.attention.name].input[0]]
        return np.asarray(entered.reshape(-1, entered.shape[-1])[0])


def heads_of(graph: Graph, attention: Attention, shapes: Shapes) -> Heads:
    """Follow the channels of the projections to the products, and what these make of them to the last projection.

    Places of the scores that are made of the same channels of queries and keys are one head's.

    Args:
        shapes: of every tensor of the block, for one batch.

    Raises:
        UnclearError: the heads share channels, or something else reads them.
    """
    _check_readers(graph, attention)
    columns = _columns(graph, attention, shapes)
    scores, mix = graph.by_name[attention.scores], graph.by_name[attention.mix]
    owner = np.full(1 + max(int(value.max()) for value in columns.values()), _NOWHERE, np.int32)
    placed = shapes[scores.output[0]][:-2]
    queries, keys = (_used(columns, name, placed) for name in scores.input)
    known: dict[tuple[bytes, bytes], int] = {}
    ids = [known.setdefault((q.tobytes(), k.tobytes()), len(known)) for q, k in zip(queries, keys, strict=True)]
    for used in (queries, keys):
        _own(owner, used, ids, "queries or keys")
    heads = {scores.output[0]: _spread(np.array(ids, np.int32), shapes[scores.output[0]])}
    for name in attention.onward:
        node = graph.by_name[name]
        if name == attention.mix:
            weights, placed = heads[mix.input[0]], shapes[mix.output[0]][:-2]
            ids = _one_each(np.broadcast_to(weights, (*placed, *weights.shape[-2:])))
            _own(owner, _used(columns, mix.input[1], placed), ids, "values")
            heads[mix.output[0]] = _spread(np.array(ids, np.int32), shapes[mix.output[0]])
        else:
            _hand_on(graph, node, heads, shapes)
    entered = heads[graph.by_name[attention.name].input[0]]
    if (entered.reshape(-1, entered.shape[-1]) != entered.reshape(-1, entered.shape[-1])[0]).any():
        raise UnclearError("the last projection mixes them with positions")
    return Heads(attention, len(known), {**heads, **{name: owner[value] for name, value in columns.items()}})


def slice_bounds(graph: Graph, node: onnx.NodeProto, shape: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(axis, first, end) of a Slice with constant bounds and steps of 1.

    Raises:
        UnclearError: it is another kind of Slice.
    """
    if graph.opset < 10 or any(name and name not in graph.initializers for name in node.input[1:]):
        raise UnclearError("they pass a Slice whose bounds are computed")
    starts, ends, *more = ([int(v) for v in graph.array(name).ravel()] if name else [] for name in node.input[1:])
    axes = more[0] if more and more[0] else list(range(len(starts)))
    if len(more) > 1 and any(step != 1 for step in more[1]):
        raise UnclearError("they pass a Slice with steps")
    found = []
    for axis, start, end in zip(axes, starts, ends, strict=True):
        first, last, _ = slice(start, end).indices(shape[axis])
        found.append((axis % len(shape), first, last))
    return found


def _check_readers(graph: Graph, attention: Attention) -> None:
    """Whatever else reads a head would miss it."""
    block = {*attention.inward, *attention.onward, attention.scores, attention.name}
    for name in (*attention.projections, *attention.inward, *attention.onward, attention.scores):
        for tensor in graph.by_name[name].output:
            for reader, index in graph.consumers.get(tensor, ()):
                if index < 0 or (reader.name not in block and reader.op_type not in SEEN_ONLY):
                    raise UnclearError(f"{reader.name} reads them, too")
            if tensor in graph.output_names:
                raise UnclearError(f"{tensor} is an output")


def _columns(graph: Graph, attention: Attention, shapes: Shapes) -> dict[str, Labels]:
    """For each tensor up to the products, the projection's channel that each element is; numbered through."""
    columns: dict[str, Labels] = {}
    first = 0
    for name in attention.projections:
        made = graph.by_name[name].output[0]
        width = shapes[made][-1]
        columns[made] = np.broadcast_to(np.arange(first, first + width, dtype=np.int32), shapes[made])
        first += width
    for name in attention.inward:
        _hand_on(graph, graph.by_name[name], columns, shapes)
    return columns


def _hand_on(graph: Graph, node: onnx.NodeProto, labels: dict[str, Labels], shapes: Shapes) -> None:
    """Labels of a node's outputs from those of its input."""
    given = [name for name in node.input if name in labels]
    if len(given) != 1:
        raise UnclearError(f"{node.op_type} {node.name} joins them with themselves")
    value, settings, shape = labels[given[0]], attributes(node), shapes.get(node.output[0], ())
    if node.op_type in ("Reshape", "Squeeze", "Unsqueeze", "Flatten"):
        labels[node.output[0]] = value.reshape(shape)
    elif node.op_type == "Transpose":
        labels[node.output[0]] = value.transpose(settings.get("perm", range(value.ndim)[::-1]))
    elif node.op_type == "Slice":
        for axis, start, end in slice_bounds(graph, node, value.shape):
            value = value[(slice(None),) * axis + (slice(start, end),)]
        labels[node.output[0]] = value
    elif node.op_type == "Split":
        axis = settings.get("axis", 0)
        cuts = np.cumsum([shapes[name][axis] for name in node.output])[:-1]
        labels.update(zip(node.output, np.split(value, cuts, axis=axis), strict=True))
    elif node.op_type == "Gather" and node.input[1] in graph.initializers:
        labels[node.output[0]] = np.take(value, graph.array(node.input[1]), axis=settings.get("axis", 0))
    elif node.op_type in (*SAME, *ELEMENTWISE):
        labels[node.output[0]] = np.broadcast_to(value, shape)
    else:
        raise UnclearError(f"they pass {node.op_type} {node.name}")


def _used(columns: Mapping[str, Labels], name: str, placed: tuple[int, ...]) -> list[NDArray[Any]]:
    """The channels that an operand has at each place of a product."""
    value = columns[name]
    value = np.broadcast_to(value, (*placed, *value.shape[-2:]))
    return [np.unique(part) for part in value.reshape(prod(placed), -1)]


def _own(owner: Labels, used: Iterable[NDArray[Any]], ids: Iterable[int], what: str) -> None:
    for channels, head in zip(used, ids, strict=True):
        if not np.isin(owner[channels], (_NOWHERE, head)).all():
            raise UnclearError(f"heads share {what}")
        owner[channels] = head


def _one_each(labels: Labels) -> list[int]:
    """The one head that each place of a product belongs to."""
    flat = labels.reshape(prod(labels.shape[:-2]), -1)
    if (flat != flat[:, :1]).any():
        raise UnclearError("the product with the values mixes them")
    return [int(head) for head in flat[:, 0]]


def _spread(ids: Labels, shape: tuple[int, ...]) -> Labels:
    return np.broadcast_to(ids.reshape(*shape[:-2], 1, 1), shape)

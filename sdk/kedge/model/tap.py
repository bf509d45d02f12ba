"""Read the activations inside a graph: add tensors as outputs of a copy, and run it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import onnx
from numpy.typing import NDArray

from ..errors import BadInputError
from .graph import Graph
from .samples import Samples
from .session import ReferenceModel

__all__ = ["activations", "graph_batch"]

_CHUNK_BYTES = 256 << 20


def activations(
    graph: Graph, tensors: Sequence[str], samples: Samples, *, batch: int = 16, optimise: bool = True
) -> Iterator[dict[str, NDArray[Any]]]:
    """Values of tensors, batch by batch, and in groups of tensors that together stay below 256 MB.

    Each dictionary holds some of the tensors for one batch; over the whole iteration each tensor
    comes once for each batch, in the samples' order. Samples that do not fill a last batch of a fixed size are
    left out.

    Raises:
        BadInputError: there are fewer samples than a batch of the model's own size takes; onnxruntime refuses
            the model or the samples.
    """
    fixed = graph_batch(graph)
    if fixed and samples.count < fixed:
        raise BadInputError(
            f"{samples.count} samples of {samples.name} do not fill one batch of {fixed}",
            hint=f"give at least {fixed}, better a few hundred, or export the model with a free batch",
        )
    for group in _groups(graph, list(tensors), fixed or batch):
        tapped = graph.copy()
        present = set(tapped.output_names)
        for name in group:
            if name not in present:
                tapped.proto.graph.output.append(_typed(graph, name))
        model = ReferenceModel(tapped.proto.SerializeToString(), optimise=optimise)
        for inputs in samples.batches(fixed or batch):
            if fixed and next(iter(inputs.values())).shape[0] < fixed:
                continue
            outputs = model.run(inputs, group)
            yield {name: outputs[name] for name in group}


def _typed(graph: Graph, name: str) -> onnx.ValueInfoProto:
    kind, _ = graph.types.get(name, (onnx.TensorProto.FLOAT, None))
    return onnx.helper.make_tensor_value_info(name, kind, None)


def graph_batch(graph: Graph) -> int | None:
    """The batch size that a graph insists on, or None when its first dimension is free."""
    sizes = {shape[0] for _, shape in (graph.types[name] for name in graph.input_names) if shape}
    known = {size for size in sizes if size is not None}
    return max(known) if known else None


def _groups(graph: Graph, tensors: list[str], batch: int) -> list[list[str]]:
    groups: list[list[str]] = []
    room = 0
    for name in dict.fromkeys(tensors):
        _, shape = graph.types.get(name, (0, None))
        size = 4 * batch * math.prod(dim or 1 for dim in (shape or (1 << 20,))[1:])
        if not groups or size > room:
            groups.append([])
            room = _CHUNK_BYTES
        groups[-1].append(name)
        room -= size
    return groups

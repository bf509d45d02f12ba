"""A layer with weights as a matrix product: the rows that its weights meet, and the weights as a matrix."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812

from ...model.graph import Graph, attributes
from ..train.op import op_of
from ..train.spatial import same_pads, torch_pads, window

__all__ = ["as_matrix", "from_matrix", "has_rows", "one_thread_below", "rows"]

_WIDE = 1024


def has_rows(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether `rows` knows this layer: Conv in one or two dimensions, Gemm, MatMul with a constant matrix."""
    rank = len(graph.initializers[node.input[1]].dims)
    if node.op_type == "Conv":
        return rank in (3, 4)
    return rank == 2 and (node.op_type == "MatMul" or (node.op_type == "Gemm" and not attributes(node).get("transA")))


def rows(graph: Graph, node: onnx.NodeProto, x: torch.Tensor) -> torch.Tensor:
    """What the weights are multiplied with, for an input batch: [groups, rows, values a row].

    A convolution's rows are its patches, in the order of a flattened kernel.
    """
    if node.op_type != "Conv":
        return x.reshape(1, -1, x.shape[-1])
    op, kernel = op_of(node, graph), [int(dim) for dim in graph.initializers[node.input[1]].dims[2:]]
    strides, dilations = window(op, kernel)
    padded = F.pad(x, torch_pads(same_pads(op, list(x.shape[2:]), kernel)))
    if len(kernel) == 1:
        padded, kernel, strides, dilations = padded.unsqueeze(2), [1, *kernel], [1, *strides], [1, *dilations]
    patches = F.unfold(padded, tuple(kernel), dilation=tuple(dilations), stride=tuple(strides))
    groups = int(op.get("group", 1))
    split = patches.reshape(patches.shape[0], groups, -1, patches.shape[2])
    return split.permute(1, 0, 3, 2).reshape(groups, -1, split.shape[2])


def as_matrix(node: onnx.NodeProto, weights: NDArray[Any]) -> NDArray[Any]:
    """Weights as [output channels, values a row]."""
    return weights.T if _is_transposed(node) else weights.reshape(weights.shape[0], -1)


def from_matrix(node: onnx.NodeProto, matrix: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The inverse of `as_matrix`."""
    return np.ascontiguousarray(matrix.T if _is_transposed(node) else matrix.reshape(shape), dtype=np.float32)


@contextlib.contextmanager
def one_thread_below(width: int, wide: int = _WIDE) -> Iterator[None]:
    """Small products lose more to waking threads than they gain: 50 s became 550 on a busy machine of two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if width < wide else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _is_transposed(node: onnx.NodeProto) -> bool:
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and not attributes(node).get("transB"))

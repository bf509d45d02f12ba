"""What a torch form of an ONNX operator is given: the node's facts, read once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch

from ...errors import BadInputError, IncompatibleError
from ...model.graph import Graph, attributes

__all__ = ["Function", "Op", "bound", "integers", "op_of", "tensor_of"]

# Inputs in ONNX's order, None where one is left out; an operator of several outputs returns a tuple.
Function = Callable[..., "torch.Tensor | tuple[torch.Tensor, ...]"]

_MAX_ELEMENTS = 2**31


@dataclass(frozen=True)
class Op:
    """One node: its name, operator, attributes, the graph's opset, how many outputs are named."""

    name: str
    kind: str
    opset: int
    attributes: Mapping[str, Any]
    outputs: int = 1

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, text as str."""
        value = self.attributes.get(name, default)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    def cannot(self, why: str) -> IncompatibleError:
        """The error for what has no torch form."""
        return IncompatibleError(
            f"node {self.name!r} ({self.kind}) cannot be trained here: {why}",
            hint="leave out the passes that train (recover, qat, attacks), or simplify the model first",
        )


def op_of(node: onnx.NodeProto, graph: Graph) -> Op:
    """The facts of a node."""
    outputs = max((index for index, name in enumerate(node.output, 1) if name), default=0)
    return Op(node.name, node.op_type, graph.opset, attributes(node), outputs)


def tensor_of(value: onnx.TensorProto, what: str) -> torch.Tensor:
    """A constant as a torch tensor of its own; 4-bit integers become int8.

    Raises:
        IncompatibleError: torch has no such type.
    """
    array = onnx.numpy_helper.to_array(value)
    if array.dtype.kind == "V" or "int4" in str(array.dtype):
        array = array.astype("int8" if "int4" in str(array.dtype) else "float32")
    try:
        return torch.from_numpy(array.copy())
    except TypeError as error:
        raise IncompatibleError(f"constant {what!r} has a type that torch cannot hold: {array.dtype}") from error


def integers(values: torch.Tensor | Sequence[int] | None) -> list[int]:
    """Integers from an attribute or a tensor of shape arithmetic."""
    if values is None:
        return []
    if isinstance(values, torch.Tensor):
        return [int(value) for value in values.reshape(-1).tolist()]
    return [int(value) for value in values]


def bound(shape: Sequence[int]) -> list[int]:
    """A shape that a graph asks for, refused when no real model would."""
    total = 1
    for size in shape:
        total *= max(int(size), 0)
    if total > _MAX_ELEMENTS:
        raise BadInputError(f"the graph asks for a tensor of shape {list(shape)}")
    return [int(size) for size in shape]

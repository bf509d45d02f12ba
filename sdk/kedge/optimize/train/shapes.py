"""Torch forms of ONNX operators that move, cut, join and type tensors. Semantics: the ONNX operator schemas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import onnx
import torch
from torch import Tensor

from .op import Op, bound, integers, tensor_of

__all__ = [
    "cast",
    "cast_like",
    "concat",
    "constant",
    "constant_of_shape",
    "expand",
    "flatten",
    "gather",
    "gather_elements",
    "identity",
    "one_hot",
    "range_",
    "reshape",
    "shape",
    "size",
    "slice_",
    "split",
    "squeeze",
    "tile",
    "transpose",
    "trilu",
    "unsqueeze",
]

_TYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.BOOL: torch.bool,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
}


def identity(op: Op, x: Tensor, *_: Tensor | None) -> Tensor:
    """Identity, and Dropout as inference runs it."""
    if op.outputs > 1:
        raise op.cannot("its second output is used")
    return x


def reshape(op: Op, x: Tensor, target: Tensor | None = None) -> Tensor:
    """Reshape: 0 keeps a dimension (unless allowzero), -1 is what is left."""
    sizes = integers(op.get("shape") if target is None else target)
    if not op.get("allowzero", 0):
        sizes = [x.shape[index] if wanted == 0 else wanted for index, wanted in enumerate(sizes)]
    return x.reshape(sizes)


def flatten(op: Op, x: Tensor) -> Tensor:
    """Flatten to two dimensions around an axis."""
    axis = op.get("axis", 1)
    axis += x.dim() if axis < 0 else 0
    return x.flatten(1) if axis == 1 and x.dim() > 1 else x.reshape(math.prod(x.shape[:axis]), -1)


def transpose(op: Op, x: Tensor) -> Tensor:
    """Transpose; without perm the order is reversed."""
    return x.permute(integers(op.get("perm")) or list(range(x.dim()))[::-1])


def squeeze(op: Op, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Squeeze the named axes, or every one of size 1."""
    named = integers(op.get("axes") if axes is None else axes)
    return x.squeeze(tuple(named)) if named else x.squeeze()


def unsqueeze(op: Op, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Unsqueeze: axes count in the result."""
    named = integers(op.get("axes") if axes is None else axes)
    rank = x.dim() + len(named)
    for axis in sorted(axis + rank if axis < 0 else axis for axis in named):
        x = x.unsqueeze(axis)
    return x


def concat(op: Op, *parts: Tensor) -> Tensor:
    """Concat along an axis."""
    return torch.cat(parts, dim=op.get("axis", 1))


def split(op: Op, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    """Split into stated sizes, or equal ones (the last may be smaller)."""
    axis = op.get("axis", 0)
    stated = integers(op.get("split") if sizes is None else sizes)
    if not stated:
        step = -(-x.shape[axis] // op.get("num_outputs", op.outputs))
        return torch.split(x, step, dim=axis)
    return torch.split(x, stated, dim=axis)


def slice_(op: Op, x: Tensor, *given: Tensor | None) -> Tensor:
    """Slice; starts, ends, axes, steps are inputs since opset 10."""
    filled = [*given, None, None, None, None][:4]
    starts, ends, axes, steps = (
        integers(op.get(name) if value is None else value)
        for name, value in zip(("starts", "ends", "axes", "steps"), filled, strict=True)
    )
    steps = steps or [1] * len(starts)
    index: list[Any] = [slice(None)] * x.dim()
    turned: list[int] = []
    for axis, start, end, step in zip(axes or range(len(starts)), starts, ends, steps, strict=True):
        if step > 0:
            # torch warns of bounds beyond 32 bits, which exporters write for "from the beginning" and "to the end".
            index[axis] = slice(*slice(start, end, step).indices(x.shape[axis]))
            continue
        picked = range(x.shape[axis])[slice(start, None if end < -x.shape[axis] else end, step)]
        x = x.index_select(axis, torch.tensor(list(picked), dtype=torch.int64))
        turned.append(axis)
    return x if len(turned) == len(starts) else x[tuple(index)]


def gather(op: Op, x: Tensor, indices: Tensor) -> Tensor:
    """Gather along an axis; negative indices count from the end."""
    axis = op.get("axis", 0)
    axis += x.dim() if axis < 0 else 0
    wanted = indices.to(torch.int64)
    wanted = torch.where(wanted < 0, wanted + x.shape[axis], wanted)
    picked = x.index_select(axis, wanted.reshape(-1))
    return picked.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def gather_elements(op: Op, x: Tensor, indices: Tensor) -> Tensor:
    """GatherElements along an axis."""
    axis = op.get("axis", 0)
    wanted = indices.to(torch.int64)
    return x.gather(axis, torch.where(wanted < 0, wanted + x.shape[axis], wanted))


def expand(x: Tensor, target: Tensor) -> Tensor:
    """Expand by mutual broadcasting."""
    return x.expand(bound(_broadcast(list(x.shape), integers(target))))


def tile(x: Tensor, repeats: Tensor) -> Tensor:
    """Tile."""
    times = integers(repeats)
    bound([size * count for size, count in zip(x.shape, times, strict=True)])
    return x.repeat(times)


def shape(op: Op, x: Tensor) -> Tensor:
    """Shape, or the part of it between start and end."""
    return torch.tensor(list(x.shape)[slice(op.get("start", 0), op.get("end"))], dtype=torch.int64)


def size(x: Tensor) -> Tensor:
    """Size: how many elements."""
    return torch.tensor(x.numel(), dtype=torch.int64)


def constant(op: Op) -> Tensor:
    """Constant of any numeric form."""
    for name, value in op.attributes.items():
        if name == "value":
            return tensor_of(value, op.name)
        if name in ("value_float", "value_floats"):
            return torch.tensor(value, dtype=torch.float32)
        if name in ("value_int", "value_ints"):
            return torch.tensor(value, dtype=torch.int64)
    raise op.cannot("it is not a tensor of numbers")


def constant_of_shape(op: Op, target: Tensor) -> Tensor:
    """ConstantOfShape; zeros of FP32 by default."""
    value = op.attributes.get("value")
    fill = torch.zeros(1) if value is None else tensor_of(value, op.name)
    return fill.reshape(()).expand(bound(integers(target))).clone()


def range_(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """Range."""
    first, last, step = start.item(), limit.item(), delta.item()
    bound([max(0, math.ceil((last - first) / step))])
    return torch.arange(first, last, step, dtype=start.dtype)


def cast(op: Op, x: Tensor) -> Tensor:
    """Cast."""
    wanted = _TYPES.get(op.get("to"))
    if wanted is None:
        raise op.cannot("torch lacks the type it casts to")
    return x.to(wanted)


def cast_like(x: Tensor, like: Tensor) -> Tensor:
    """CastLike."""
    return x.to(like.dtype)


def one_hot(op: Op, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    """OneHot; values are [off, on]."""
    count, axis = integers(depth)[0], op.get("axis", -1)
    wanted = indices.to(torch.int64)
    wanted = torch.where(wanted < 0, wanted + count, wanted).unsqueeze(axis)
    places = _along(torch.arange(bound([count])[0]), wanted.dim(), axis)
    return torch.where(wanted == places, values[1], values[0])


def trilu(op: Op, x: Tensor, diagonal: Tensor | None = None) -> Tensor:
    """Trilu: the upper or lower triangle."""
    k = 0 if diagonal is None else integers(diagonal)[0]
    return torch.triu(x, k) if op.get("upper", 1) else torch.tril(x, k)


def _broadcast(a: list[int], b: list[int]) -> list[int]:
    rank = max(len(a), len(b))
    pairs = zip([1] * (rank - len(a)) + a, [1] * (rank - len(b)) + b, strict=True)
    return [second if first == 1 else first for first, second in pairs]


def _along(values: Tensor, rank: int, axis: int) -> Tensor:
    sizes: Sequence[int] = [1] * rank
    sizes = list(sizes)
    sizes[axis] = -1
    return values.reshape(sizes)

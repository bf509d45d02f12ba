"""The table of ONNX operators that have a torch form, and those that compute one value from another.

Semantics: the ONNX operator schemas, opsets 8 to 20. Each is held against onnxruntime in the tests.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from . import shapes, spatial
from .op import Function, Op, integers

__all__ = ["OPS"]


def _plain(form: Callable[..., Any]) -> Function:
    """An operator without attributes."""
    return lambda op, *inputs: form(*inputs)


def _fold(form: Callable[[Tensor, Tensor], Tensor]) -> Function:
    """An operator of any number of inputs."""
    return lambda op, *inputs: functools.reduce(form, inputs)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _power(a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b).to(a.dtype)


def _mod(op: Op, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if op.get("fmod", 0) else torch.remainder(a, b)


def _leaky(op: Op, x: Tensor) -> Tensor:
    return F.leaky_relu(x, op.get("alpha", 0.01))


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def _elu(op: Op, x: Tensor) -> Tensor:
    return F.elu(x, op.get("alpha", 1.0))


def _clip(op: Op, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    # Numbers, not tensors: torch's backward of clamp by tensors makes gradients nobody asked for.
    bottom = op.get("min") if low is None else low.item()
    top = op.get("max") if high is None else high.item()
    return x if bottom is None and top is None else x.clamp(bottom, top)


def _hard_sigmoid(op: Op, x: Tensor) -> Tensor:
    return torch.clamp(x * op.get("alpha", 0.2) + op.get("beta", 0.5), 0.0, 1.0)


def _gelu(op: Op, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=op.get("approximate", "none"))


def _softmax_like(form: Callable[..., Tensor]) -> Function:
    def run(op: Op, x: Tensor) -> Tensor:
        if op.opset >= 13:
            return form(x, dim=op.get("axis", -1))
        axis = op.get("axis", 1)  # before opset 13 everything from the axis on is one dimension
        return form(x.flatten(axis), dim=-1).reshape(x.shape)

    return run


def _layer_norm(op: Op, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    if op.outputs > 1:
        raise op.cannot("its mean is used")
    axis = op.get("axis", -1)
    width = list(x.shape[axis:])
    return F.layer_norm(
        x, width, scale.expand(width), None if bias is None else bias.expand(width), op.get("epsilon", 1e-5)
    )


def _instance_norm(op: Op, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=op.get("epsilon", 1e-5))


def _group_norm(op: Op, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    if scale.shape[0] != x.shape[1]:
        raise op.cannot("its scale is per group (opset 18)")
    return F.group_norm(x, op.get("num_groups"), scale, bias, op.get("epsilon", 1e-5))


def _batch_norm(op: Op, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """With computed statistics; with constant ones it is a module (layers.py)."""
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, op.get("epsilon", 1e-5))


def _lrn(op: Op, x: Tensor) -> Tensor:
    size = op.get("size")
    return F.local_response_norm(x, size, op.get("alpha", 1e-4), op.get("beta", 0.75), op.get("bias", 1.0))


def _gemm(op: Op, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    left = a.t() if op.get("transA", 0) else a
    right = b.t() if op.get("transB", 0) else b
    product = torch.mul(left @ right, op.get("alpha", 1.0))
    return product if c is None else product + torch.mul(c, op.get("beta", 1.0))


def _reduce(form: Callable[[Tensor, list[int], bool], Tensor]) -> Function:
    def run(op: Op, x: Tensor, axes: Tensor | None = None) -> Tensor:
        named = integers(op.get("axes") if axes is None else axes)
        if not named and op.get("noop_with_empty_axes", 0):
            return x
        return form(x, named or list(range(x.dim())), bool(op.get("keepdims", 1)))

    return run


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _arg(form: Callable[..., Tensor]) -> Function:
    def run(op: Op, x: Tensor) -> Tensor:
        if op.get("select_last_index", 0):
            raise op.cannot("it asks for the last of equal values")
        return form(x, dim=op.get("axis", 0), keepdim=bool(op.get("keepdims", 1)))

    return run


def _top_k(op: Op, x: Tensor, k: Tensor) -> tuple[Tensor, ...]:
    found = torch.topk(x, integers(k)[0], op.get("axis", -1), bool(op.get("largest", 1)), bool(op.get("sorted", 1)))
    return found.values, found.indices


def _cumsum(op: Op, x: Tensor, axis: Tensor) -> Tensor:
    if op.get("exclusive", 0) or op.get("reverse", 0):
        raise op.cannot("it is exclusive or reversed")
    return x.cumsum(integers(axis)[0])


def _einsum(op: Op, *inputs: Tensor) -> Tensor:
    return torch.einsum(op.get("equation"), *inputs)


def _channel(values: Tensor, like: Tensor, axis: int) -> Tensor:
    if values.dim() == 0 or values.numel() == 1:
        return values.reshape(())
    return values.reshape([-1 if index == axis % like.dim() else 1 for index in range(like.dim())])


def _quantize(op: Op, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Values on the grid but kept as floats; the rounding passes gradients straight through (Bengio et al. 2013)."""
    kind = torch.uint8 if zero is None else zero.dtype
    if op.get("block_size", 0) or kind not in (torch.uint8, torch.int8):
        raise op.cannot("only 8-bit types are known here")
    axis, info = op.get("axis", 1), torch.iinfo(kind)
    scaled = x / _channel(scale, x, axis)
    rounded = scaled + (torch.round(scaled) - scaled).detach()
    shifted = rounded if zero is None else rounded + _channel(zero, x, axis).to(x.dtype)
    return shifted.clamp(info.min, info.max)


def _dequantize(op: Op, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    if op.get("block_size", 0):
        raise op.cannot("it is quantised in blocks")
    axis, value = op.get("axis", 1), x.to(scale.dtype)
    shifted = value if zero is None else value - _channel(zero, x, axis).to(scale.dtype)
    return shifted * _channel(scale, x, axis)


OPS: dict[str, Function] = {
    "Abs": _plain(torch.abs),
    "Add": _plain(torch.add),
    "And": _plain(torch.logical_and),
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "AveragePool": spatial.average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": shapes.cast,
    "CastLike": _plain(shapes.cast_like),
    "Ceil": _plain(torch.ceil),
    "Clip": _clip,
    "Concat": shapes.concat,
    "Constant": shapes.constant,
    "ConstantOfShape": shapes.constant_of_shape,
    "Conv": spatial.conv,
    "Cos": _plain(torch.cos),
    "CumSum": _cumsum,
    "DepthToSpace": spatial.depth_to_space,
    "DequantizeLinear": _dequantize,
    "Div": _plain(_divide),
    "Dropout": shapes.identity,
    "Einsum": _einsum,
    "Elu": _elu,
    "Equal": _plain(torch.eq),
    "Erf": _plain(torch.erf),
    "Exp": _plain(torch.exp),
    "Expand": _plain(shapes.expand),
    "Flatten": shapes.flatten,
    "Floor": _plain(torch.floor),
    "Gather": shapes.gather,
    "GatherElements": shapes.gather_elements,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _plain(spatial.global_average_pool),
    "GlobalMaxPool": _plain(spatial.global_max_pool),
    "Greater": _plain(torch.gt),
    "GreaterOrEqual": _plain(torch.ge),
    "GroupNormalization": _group_norm,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plain(F.hardswish),
    "Identity": shapes.identity,
    "InstanceNormalization": _instance_norm,
    "LRN": _lrn,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": _leaky,
    "Less": _plain(torch.lt),
    "LessOrEqual": _plain(torch.le),
    "Log": _plain(torch.log),
    "LogSoftmax": _softmax_like(torch.log_softmax),
    "MatMul": _plain(torch.matmul),
    "Max": _fold(torch.maximum),
    "MaxPool": spatial.max_pool,
    "Mean": lambda op, *inputs: functools.reduce(torch.add, inputs) / len(inputs),
    "Min": _fold(torch.minimum),
    "Mish": _plain(F.mish),
    "Mod": _mod,
    "Mul": _plain(torch.mul),
    "Neg": _plain(torch.neg),
    "Not": _plain(torch.logical_not),
    "OneHot": shapes.one_hot,
    "Or": _plain(torch.logical_or),
    "PRelu": _plain(_prelu),
    "Pad": spatial.pad,
    "Pow": _plain(_power),
    "QuantizeLinear": _quantize,
    "Range": _plain(shapes.range_),
    "Reciprocal": _plain(torch.reciprocal),
    "ReduceL1": _reduce(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "ReduceL2": _reduce(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keepdim=keep)),
    "ReduceLogSumExp": _reduce(lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep)),
    "ReduceMax": _reduce(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMean": _reduce(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceMin": _reduce(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceProd": _reduce(_product),
    "ReduceSum": _reduce(lambda x, axes, keep: x.sum(axes, keepdim=keep, dtype=x.dtype)),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: x.square().sum(axes, keepdim=keep, dtype=x.dtype)),
    "Relu": _plain(torch.relu),
    "Reshape": shapes.reshape,
    "Resize": spatial.resize,
    "Round": _plain(torch.round),
    "Selu": _plain(F.selu),
    "Shape": shapes.shape,
    "Sigmoid": _plain(torch.sigmoid),
    "Sign": _plain(torch.sign),
    "Sin": _plain(torch.sin),
    "Size": _plain(shapes.size),
    "Slice": shapes.slice_,
    "Softmax": _softmax_like(torch.softmax),
    "Softplus": _plain(F.softplus),
    "Softsign": _plain(F.softsign),
    "SpaceToDepth": spatial.space_to_depth,
    "Split": shapes.split,
    "Sqrt": _plain(torch.sqrt),
    "Squeeze": shapes.squeeze,
    "Sub": _plain(torch.sub),
    "Sum": _fold(torch.add),
    "Tanh": _plain(torch.tanh),
    "Tile": _plain(shapes.tile),
    "TopK": _top_k,
    "Transpose": shapes.transpose,
    "Trilu": shapes.trilu,
    "Unsqueeze": shapes.unsqueeze,
    "Upsample": spatial.upsample,
    "Where": _plain(torch.where),
    "Xor": _plain(torch.logical_xor),
}

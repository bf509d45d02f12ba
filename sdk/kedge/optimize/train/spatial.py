"""Torch forms of ONNX operators over space: pads, pools, convolutions, resizing. Semantics: ONNX operator schemas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .op import Op, integers

__all__ = [
    "average_pool",
    "conv",
    "depth_to_space",
    "global_average_pool",
    "global_max_pool",
    "max_pool",
    "pad",
    "resize",
    "same_pads",
    "space_to_depth",
    "torch_pads",
    "upsample",
    "window",
]

_CONV: tuple[Any, ...] = (F.conv1d, F.conv2d, F.conv3d)
_MAX_POOL: tuple[Any, ...] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_AVG_POOL: tuple[Any, ...] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


def window(op: Op, kernel: Sequence[int]) -> tuple[list[int], list[int]]:
    """Strides and dilations of a window, 1 where nothing is stated."""
    return (
        integers(op.get("strides")) or [1] * len(kernel),
        integers(op.get("dilations")) or [1] * len(kernel),
    )


def same_pads(op: Op, sizes: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """Pads in ONNX's order (all begins, all ends) for an input of these spatial sizes.

    SAME_UPPER and SAME_LOWER: output = ceil(input / stride); an odd pad goes to the end or the beginning.
    """
    rank, mode = len(kernel), op.get("auto_pad", "NOTSET")
    if mode == "VALID":
        return [0] * (2 * rank)
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        return integers(op.get("pads")) or [0] * (2 * rank)
    strides, dilations = window(op, kernel)
    begins, ends = [], []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        less, more = total // 2, total - total // 2
        begins.append(less if mode == "SAME_UPPER" else more)
        ends.append(more if mode == "SAME_UPPER" else less)
    return begins + ends


def torch_pads(pads: Sequence[int]) -> list[int]:
    """ONNX's pads in the order of torch.nn.functional.pad: last dimension first."""
    rank = len(pads) // 2
    return [value for axis in reversed(range(rank)) for value in (pads[axis], pads[axis + rank])]


def conv(op: Op, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Conv whose weight is computed, so that no module can hold it."""
    rank = weight.dim() - 2
    strides, dilations = window(op, weight.shape[2:])
    pads = same_pads(op, x.shape[2:], weight.shape[2:])
    if any(pads):
        x = F.pad(x, torch_pads(pads))
    result: Tensor = _CONV[rank - 1](x, weight, bias, strides, 0, dilations, op.get("group", 1))
    return result


def _even(pads: Sequence[int], kernel: Sequence[int]) -> bool:
    """Whether torch's pools take these pads themselves: the same at both ends and at most half the window."""
    rank = len(kernel)
    return list(pads[:rank]) == list(pads[rank:]) and all(2 * p <= k for p, k in zip(pads[:rank], kernel, strict=True))


def max_pool(op: Op, x: Tensor) -> Tensor:
    """MaxPool; padding never wins."""
    kernel = integers(op.get("kernel_shape"))
    if op.outputs > 1:
        raise op.cannot("its indices are used")
    strides, dilations = window(op, kernel)
    pads = same_pads(op, x.shape[2:], kernel)
    inside: list[int] = pads[: len(kernel)]
    if not _even(pads, kernel):
        x, inside = F.pad(x, torch_pads(pads), value=-math.inf), [0] * len(kernel)
    pooled: Tensor = _MAX_POOL[len(kernel) - 1](x, kernel, strides, inside, dilations, bool(op.get("ceil_mode", 0)))
    return pooled


def average_pool(op: Op, x: Tensor) -> Tensor:
    """AveragePool; padding counts only with count_include_pad."""
    kernel = integers(op.get("kernel_shape"))
    strides, dilations = window(op, kernel)
    if any(dilation != 1 for dilation in dilations):
        raise op.cannot("its window is dilated")
    pads = same_pads(op, x.shape[2:], kernel)
    ceil, include = bool(op.get("ceil_mode", 0)), bool(op.get("count_include_pad", 0))
    pool = _AVG_POOL[len(kernel) - 1]
    pooled: Tensor
    if _even(pads, kernel):
        pooled = pool(x, kernel, strides, pads[: len(kernel)], ceil, include)
        return pooled
    pooled = pool(F.pad(x, torch_pads(pads)), kernel, strides, 0, ceil, True)
    if not include:
        # The mean over the window of a mask is the share of it that lies on real pixels.
        real = F.pad(torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype), torch_pads(pads))
        pooled = pooled / pool(real, kernel, strides, 0, ceil, True)
    return pooled


def global_average_pool(x: Tensor) -> Tensor:
    """GlobalAveragePool."""
    return x.mean(dim=tuple(range(2, x.dim())), keepdim=True)


def global_max_pool(x: Tensor) -> Tensor:
    """GlobalMaxPool."""
    return x.amax(dim=tuple(range(2, x.dim())), keepdim=True)


def pad(
    op: Op, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    """Pad: constant, edge, reflect or wrap; negative pads crop (constant only)."""
    stated = integers(op.get("pads") if pads is None else pads)
    if axes is not None:
        named, count = integers(axes), len(stated) // 2
        spread = [0] * (2 * x.dim())
        for index, axis in enumerate(named):
            place = axis + x.dim() if axis < 0 else axis
            spread[place], spread[place + x.dim()] = stated[index], stated[index + count]
        stated = spread
    if not any(stated):
        return x
    mode, amounts = op.get("mode", "constant"), torch_pads(stated)
    if mode == "constant":
        fill = op.get("value", 0.0) if value is None else float(value.item())
        return F.pad(x, amounts, value=fill)
    if min(amounts) < 0:
        raise op.cannot(f"it crops in mode {mode!r}")
    while len(amounts) > 2 and amounts[-2:] == [0, 0]:
        amounts = amounts[:-2]
    known = {"edge": "replicate", "reflect": "reflect", "wrap": "circular"}
    if mode not in known or len(amounts) // 2 > 3:
        raise op.cannot(f"torch has no mode {mode!r} for these axes")
    # torch pads the last one, two or three dimensions of a tensor that has at least one or two more.
    flat = x.reshape(1, -1, *x.shape[x.dim() - len(amounts) // 2 :])
    padded = F.pad(flat, amounts, mode=known[mode])
    return padded.reshape(*x.shape[: x.dim() - len(amounts) // 2], *padded.shape[2:])


def depth_to_space(op: Op, x: Tensor) -> Tensor:
    """DepthToSpace, DCR or CRD."""
    block, (n, c, h, w) = op.get("blocksize"), x.shape
    if op.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // block**2, h * block, w * block)


def space_to_depth(op: Op, x: Tensor) -> Tensor:
    """SpaceToDepth."""
    block, (n, c, h, w) = op.get("blocksize"), x.shape
    parts = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * block**2, h // block, w // block)


def upsample(op: Op, x: Tensor, scales: Tensor | None = None) -> Tensor:
    """Upsample of opset 9, which counts as Resize in asymmetric coordinates."""
    factors = [float(v) for v in (op.get("scales") if scales is None else scales.tolist())]
    sizes = [math.floor(size * factor) for size, factor in zip(x.shape, factors, strict=True)]
    return _interpolate(op, x, sizes, factors, op.get("mode", "nearest"), "asymmetric", "floor")


def resize(op: Op, x: Tensor, *given: Tensor | None) -> Tensor:
    """Resize, nearest and linear, one axis after another."""
    if len(given) == 1:  # opset 10: X, scales, in asymmetric coordinates
        return upsample(op, x, given[0])
    scales, sizes = [*given, None, None, None][1:3]
    if op.get("antialias", 0) or op.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise op.cannot("torch has no such antialiasing or aspect policy")
    axes = [axis % x.dim() for axis in integers(op.get("axes"))] or list(range(x.dim()))
    wanted, factors = list(x.shape), [1.0] * x.dim()
    for index, axis in enumerate(axes):
        if sizes is not None and sizes.numel():
            wanted[axis] = integers(sizes)[index]
            factors[axis] = wanted[axis] / x.shape[axis]
        elif scales is not None:
            factors[axis] = float(scales[index])
            wanted[axis] = math.floor(x.shape[axis] * factors[axis])
    return _interpolate(
        op,
        x,
        wanted,
        factors,
        op.get("mode", "nearest"),
        op.get("coordinate_transformation_mode", "half_pixel"),
        op.get("nearest_mode", "round_prefer_floor"),
    )


def _interpolate(
    op: Op, x: Tensor, sizes: Sequence[int], factors: Sequence[float], mode: str, coordinates: str, rounding: str
) -> Tensor:
    if mode not in ("nearest", "linear"):
        raise op.cannot(f"torch has no interpolation {mode!r} like ONNX's")
    for axis, (size, factor) in enumerate(zip(sizes, factors, strict=True)):
        if size == x.shape[axis] and factor == 1.0:
            continue
        places = _coordinates(op, x.shape[axis], size, factor, coordinates)
        last = x.shape[axis] - 1
        if mode == "nearest":
            x = x.index_select(axis, _nearest(op, places, rounding).clamp(0, last))
            continue
        places = places.clamp(0, last)
        below = places.floor()
        share = (places - below).to(x.dtype).reshape([-1 if i == axis else 1 for i in range(x.dim())])
        low = x.index_select(axis, below.to(torch.int64))
        high = x.index_select(axis, (below.to(torch.int64) + 1).clamp(max=last))
        x = low + (high - low) * share
    return x


def _coordinates(op: Op, old: int, new: int, factor: float, mode: str) -> Tensor:
    place = torch.arange(new, dtype=torch.float32)
    if mode == "asymmetric":
        return place / factor
    if mode == "align_corners":
        return place * ((old - 1) / (new - 1)) if new > 1 else place * 0
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and new > 1):
        return (place + 0.5) / factor - 0.5
    if mode == "pytorch_half_pixel":
        return place * 0
    raise op.cannot(f"coordinates {mode!r} are not known here")


def _nearest(op: Op, places: Tensor, rounding: str) -> Tensor:
    forms = {
        "floor": places.floor,
        "ceil": places.ceil,
        "round_prefer_floor": (places - 0.5).ceil,
        "round_prefer_ceil": (places + 0.5).floor,
    }
    if rounding not in forms:
        raise op.cannot(f"rounding {rounding!r} is not known here")
    return forms[rounding]().to(torch.int64)

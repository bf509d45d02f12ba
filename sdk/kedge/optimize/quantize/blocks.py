"""Four bits a weight, with one scale a block of them, and how ONNX and onnxruntime pack what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .affine import INT4
from .calibrate import weight_params

__all__ = ["TENSORRT_BLOCKS", "Stored", "asymmetric_blocks", "packed", "symmetric_blocks"]

TENSORRT_BLOCKS = (128, 64, 32, 16)
"""Sizes that TensorRT for RTX compiles, the largest first."""

_LEVELS = 15
_SHARES = np.linspace(1.0, 0.6, 17)
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Stored:
    """A layer's weights in four bits. size: of the blocks along `axis`; None: one scale for each index along it."""

    q: NDArray[Any]
    scale: NDArray[np.float32]
    zero: NDArray[np.uint8] | None
    axis: int
    size: int | None


def symmetric_blocks(
    weights: NDArray[np.float32], axis: int, size: int | None
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers from -7 to 7, and their scales; the clip of each block is the one of least squared error.

    Args:
        size: of blocks along `axis`, which it divides; None: one scale for each index along `axis`.

    Returns:
        q, in the shape of the weights; scales in the same shape with `axis` divided by `size`, or [channels].
    """
    if size is None:
        params = weight_params(weights, INT4, axis, search=True)
        return params.quantize(weights).astype(np.int8), params.scale
    turned = np.moveaxis(weights, axis, -1)
    rows = turned.reshape(-1, size)
    params = weight_params(rows, INT4, 0, search=True)
    q = params.quantize(rows).astype(np.int8).reshape(turned.shape)
    scales = params.scale.reshape(*turned.shape[:-1], -1)
    return np.ascontiguousarray(np.moveaxis(q, -1, axis)), np.ascontiguousarray(np.moveaxis(scales, -1, axis))


def asymmetric_blocks(
    rows: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Integers from 0 to 15, scale and zero point of each row: ŵ = s · (q - z).

    Both ends of a row's range, widened to hold 0, are drawn in by the share that gives the least squared error.

    Args:
        rows: [blocks, values a block].
    """
    low = np.minimum(rows.min(axis=1), 0.0).astype(np.float64)
    high = np.maximum(rows.max(axis=1), 0.0).astype(np.float64)
    least = np.full(len(rows), np.inf)
    q = np.zeros(rows.shape, np.uint8)
    scale, zero = np.zeros(len(rows), np.float32), np.zeros(len(rows), np.uint8)
    for share in _SHARES:
        s = np.maximum((high - low) * share / _LEVELS, _SMALLEST_SCALE).astype(np.float32)
        z = np.clip(np.rint(-low * share / s), 0, _LEVELS)
        found = np.clip(np.rint(rows / s[:, None]) + z[:, None], 0, _LEVELS)
        error = np.sum((rows - s[:, None] * (found - z[:, None])) ** 2, axis=1)
        better = error < least
        least[better], scale[better], zero[better] = error[better], s[better], z[better]
        q[better] = found[better]
    return q, scale, zero


def packed(values: NDArray[np.uint8] | NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two values a byte along the last axis, the first in the lower half; an odd last one is alone in its byte."""
    nibbles = (values.astype(np.int16) & 0xF).astype(np.uint8)
    if nibbles.shape[-1] % 2:
        nibbles = np.concatenate([nibbles, np.zeros((*nibbles.shape[:-1], 1), np.uint8)], axis=-1)
    return np.ascontiguousarray(nibbles[..., ::2] | (nibbles[..., 1::2] << 4))

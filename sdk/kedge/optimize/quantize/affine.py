"""The affine mapping between real numbers and integers, as ONNX and TensorRT define it.

    q = clamp(round(x / s) + z, low, high)          x̂ = s · (q − z)

`round` is to nearest, ties to even (ONNX QuantizeLinear; IEEE 754 roundTiesToEven). For a range
[a, b] that has been widened to hold 0, so that 0 is exact:

    asymmetric      s = (b − a) / (high − low)      z = clamp(round(low − a / s), low, high)
    symmetric       s = max(|a|, |b|) / high        z = 0

Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference"; ONNX operator specification, QuantizeLinear. docs/quantization.md
says where the shorthands of the literature differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["INT4", "INT8", "INT8_NARROW", "INT8_REDUCED", "UINT8", "Grid", "QuantParams", "asymmetric", "symmetric"]

# The product of two scales (that of a bias) must still be a normal float32.
_SMALLEST_SCALE = 1e-18


@dataclass(frozen=True)
class Grid:
    """The integers a tensor may take, and the type that stores them."""

    low: int
    high: int
    dtype: str


UINT8 = Grid(0, 255, "uint8")
INT8 = Grid(-128, 127, "int8")
INT8_NARROW = Grid(-127, 127, "int8")
INT8_REDUCED = Grid(-64, 64, "int8")
INT4 = Grid(-7, 7, "int8")
"""Four bits, kept in int8: what a simulated W4A8 layer stores."""


@dataclass(frozen=True)
class QuantParams:
    """Scale and zero point of a tensor: 0-d arrays, or 1-d along `axis`. scale is float32, zero_point int64."""

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    low: int
    high: int
    axis: int | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """What stores q."""
        return np.dtype(np.uint8) if self.low >= 0 else np.dtype(np.int8)

    def quantize(self, values: NDArray[Any]) -> NDArray[Any]:
        """q of each value."""
        scale, zero = self._aligned(values.ndim)
        # In double precision: a float32 quotient can fall on the wrong side of a tie.
        q = np.rint(values.astype(np.float64) / scale) + zero
        return np.clip(q, self.low, self.high).astype(np.int64)

    def dequantize(self, q: NDArray[Any]) -> NDArray[np.float32]:
        """x̂ of each integer."""
        scale, zero = self._aligned(q.ndim)
        return np.asarray((q - zero) * scale, dtype=np.float32)

    def fake(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """x̂ of each value: what the quantised layer sees."""
        return self.dequantize(self.quantize(values))

    def _aligned(self, ndim: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        scale = self.scale.astype(np.float64)
        if self.axis is None:
            return scale, self.zero_point
        shape = [1] * ndim
        shape[self.axis] = -1
        return scale.reshape(shape), self.zero_point.reshape(shape)


def symmetric(amax: NDArray[Any] | float, grid: Grid, axis: int | None = None) -> QuantParams:
    """Parameters for values within ±amax; one a channel when amax is 1-d and an axis is given.

    Zeros are exact on any grid: a channel of nothing else takes the scale that is usual among the others.
    """
    bound = np.asarray(amax, dtype=np.float64)
    used = bound[bound > 0]
    bound = np.where(bound > 0, bound, np.median(used) if used.size else 1.0)
    scale = np.maximum(bound / grid.high, _SMALLEST_SCALE).astype(np.float32)
    return QuantParams(scale, np.zeros(scale.shape, np.int64), grid.low, grid.high, axis)


def asymmetric(low: float, high: float, grid: Grid) -> QuantParams:
    """Parameters for values from low to high; the range is widened to hold 0, and to [0, 1] where it is 0 alone."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    high = 1.0 if low == high else high
    scale = np.float32(max((high - low) / (grid.high - grid.low), _SMALLEST_SCALE))
    zero = np.clip(np.rint(grid.low - low / float(scale)), grid.low, grid.high)
    return QuantParams(np.asarray(scale), np.asarray(zero, dtype=np.int64), grid.low, grid.high)

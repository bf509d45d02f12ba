"""Quantisation that can be trained through: rounding in the forward pass, straight-through gradients in the other.

Forward as ONNX defines it, x̂ = (clamp(round(x / s) + z, low, high) − z) · s, ties to even. Backward (Esser et al.
2020, "Learned Step Size Quantization"): with q the clamped integer,

    dx̂/dx = 1 inside the range, 0 outside            (straight through: Bengio et al. 2013)
    dx̂/ds = (q − z) − x / s inside, q − z outside
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..quantize.affine import QuantParams
from .view import TorchView

__all__ = ["FakeQuant", "fake_quantize"]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
        scaled = x / scale
        rounded = scaled.round() + zero
        q = rounded.clamp(low, high)
        ctx.save_for_backward(scaled, q, zero, rounded == q, scale)
        return (q - zero) * scale

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        scaled, q, zero, inside, scale = ctx.saved_tensors
        slope = slopes[0]
        by_scale = None
        if ctx.needs_input_grad[1]:
            each = slope * (q - zero - scaled * inside)
            axes = [axis for axis in range(each.dim()) if scale.dim() == 0 or scale.shape[axis] == 1]
            by_scale = each.sum(axes, keepdim=scale.dim() > 0) if axes else each
        return slope * inside, by_scale, None, None, None


def fake_quantize(x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
    """x̂ of x. scale, zero: 0-d, or of x's rank with size 1 on all axes but the channels'."""
    made: Tensor = _StraightThrough.apply(x, scale, zero, low, high)  # type: ignore[no-untyped-call]
    return made


class _Quantizer(nn.Module):
    """One tensor's grid.

    The scale is learned as the logarithm of its ratio to the start (as in Jain et al. 2020), so that it stays
    positive and a step of the optimiser means the same for every tensor, however small its values.
    """

    zero: Tensor
    start: Tensor

    def __init__(self, params: QuantParams, learn: bool) -> None:
        super().__init__()
        self.low, self.high, self.axis = params.low, params.high, params.axis
        start = torch.from_numpy(np.array(params.scale, np.float32))
        self.register_buffer("start", start, persistent=False)
        self.register_buffer("zero", torch.from_numpy(np.array(params.zero_point, np.float32)), persistent=False)
        self.ratio = nn.Parameter(torch.zeros_like(start), requires_grad=learn)

    def scale(self) -> Tensor:
        return self.start * torch.exp(self.ratio)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale()
        if self.ratio.requires_grad:
            # LSQ's gradient scale: as many values pull at one step size as the tensor has a channel.
            share = 1.0 / math.sqrt(max(x.numel() / scale.numel() * self.high, 1.0))
            scale = scale * share + (scale - scale * share).detach()
        zero = self.zero
        if self.axis is not None:
            shape = [-1 if axis == self.axis % x.dim() else 1 for axis in range(x.dim())]
            scale, zero = scale.reshape(shape), zero.reshape(shape)
        return fake_quantize(x, scale, zero, self.low, self.high)

    def params(self) -> QuantParams:
        scale = np.array(self.scale().detach().numpy(), np.float32)
        return QuantParams(scale, self.zero.numpy().astype(np.int64), self.low, self.high, self.axis)


class FakeQuant(nn.Module):
    """Quantises tensors of a view by name, and weights of its layers by node name (their axis in ONNX's layout).

    learn: scales are trained as well as weights.
    """

    def __init__(
        self, activations: Mapping[str, QuantParams], weights: Mapping[str, QuantParams], *, learn: bool = True
    ) -> None:
        super().__init__()
        self._tensors = {name: f"t{index}" for index, name in enumerate(activations)}
        self._nodes = {name: f"w{index}" for index, name in enumerate(weights)}
        for name, params in activations.items():
            self.add_module(self._tensors[name], _Quantizer(params, learn))
        for name, params in weights.items():
            self.add_module(self._nodes[name], _Quantizer(params, learn))

    def install(self, view: TorchView) -> None:
        """Become the hooks of a view."""
        view.activation_hook, view.weight_hook = self.activation, self.weight

    def activation(self, name: str, value: Tensor) -> Tensor:
        """A tensor as its quantised readers see it."""
        known = self._tensors.get(name)
        made: Tensor = value if known is None else getattr(self, known)(value)
        return made

    def weight(self, name: str, value: Tensor) -> Tensor:
        """A weight as the quantised layer holds it."""
        known = self._nodes.get(name)
        made: Tensor = value if known is None else getattr(self, known)(value)
        return made

    def activation_params(self) -> dict[str, QuantParams]:
        """The grids of the tensors as trained."""
        return {name: getattr(self, known).params() for name, known in self._tensors.items()}

    def weight_params(self) -> dict[str, QuantParams]:
        """The grids of the weights as trained."""
        return {name: getattr(self, known).params() for name, known in self._nodes.items()}

"""The gradient of a classifier's loss with respect to its inputs: what attacks follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ...errors import BadInputError
from ...model.graph import Graph
from .scores import head_of
from .view import TorchView

__all__ = ["attacked", "input_gradient"]

InputGradient = Callable[[Mapping[str, NDArray[Any]], NDArray[Any]], dict[str, NDArray[np.float32]]]


def input_gradient(graph: Graph) -> InputGradient:
    """A function of inputs by name (samples along the first axis) and labels [n] that gives gradients by input name.

    The loss is the sum over samples of the cross-entropy, so that a sample's gradient does not depend on the
    others. Inputs that are no floats have no gradient and are left out. BatchNormalization runs as inference does.

    Raises:
        IncompatibleError: an operator has no torch form.
        BadInputError: the graph is no classifier; when called: labels do not fit.
    """
    head = head_of(graph)
    view = TorchView(graph, also=(head.tensor,)).eval().requires_grad_(False)

    def gradient(inputs: Mapping[str, NDArray[Any]], labels: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in inputs.items()}
        floats = {name: value.clone().requires_grad_() for name, value in tensors.items() if value.is_floating_point()}
        logits = head.logits(view({**tensors, **floats}))
        wanted = torch.from_numpy(np.asarray(labels, dtype=np.int64))
        if wanted.shape != logits.shape[:1] or bool((wanted < 0).any()) or bool((wanted >= logits.shape[1]).any()):
            raise BadInputError(f"labels do not fit scores of shape {list(logits.shape)}")
        made = torch.autograd.grad(F.cross_entropy(logits, wanted, reduction="sum"), list(floats.values()))
        return {name: value.numpy() for name, value in zip(floats, made, strict=True)}

    return gradient


def attacked(
    inputs: Mapping[str, Tensor],
    loss: Callable[[Mapping[str, Tensor]], Tensor],
    bounds: Mapping[str, tuple[float, float]],
    *,
    eps: float,
    steps: int,
    random: torch.Generator | None,
) -> dict[str, Tensor]:
    """Inputs moved within ±eps (and their own bounds) to where the loss is larger.

    One step without `random` is FGSM, x + eps · sign(∇loss) (Goodfellow et al. 2015); with it, PGD: a random start
    and steps of 2.5 · eps / steps, each projected back (Madry et al. 2018).
    """
    floats = {name: value for name, value in inputs.items() if value.is_floating_point()}
    moved = dict(floats)
    if random is not None:
        moved = {
            name: (value + eps * (2 * torch.rand(value.shape, generator=random) - 1)).clamp(*bounds[name])
            for name, value in floats.items()
        }
    size = eps if random is None else 2.5 * eps / steps
    for _ in range(steps):
        leaves = {name: value.detach().requires_grad_() for name, value in moved.items()}
        slopes = torch.autograd.grad(loss({**inputs, **leaves}), list(leaves.values()))
        for (name, value), slope in zip(leaves.items(), slopes, strict=True):
            step = value.detach() + size * slope.sign()
            near = torch.minimum(torch.maximum(step, floats[name] - eps), floats[name] + eps)
            moved[name] = near.clamp(*bounds[name])
    return {**inputs, **moved}

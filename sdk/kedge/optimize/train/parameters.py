"""Which parameters of a view are trained, which zeros stay, and the optimiser over them."""

from __future__ import annotations

import fnmatch
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import BadInputError
from .layers import BATCH_NORMS
from .settings import TrainSettings
from .view import TorchView

__all__ = ["Masks", "freeze", "make_optimizer"]

_MASKED_FROM = 0.25


class Masks:
    """Zeros of weights that stay. Weights are parameters of two dimensions or more."""

    def __init__(self, view: TorchView, keep: str) -> None:
        self._zeros: list[tuple[nn.Parameter, Tensor]] = []
        for parameter in view.parameters():
            zeros = parameter.detach() == 0
            share = float(zeros.float().mean())
            if keep != "no" and parameter.dim() > 1 and share > 0 and (keep == "yes" or share >= _MASKED_FROM):
                self._zeros.append((parameter, zeros))

    @property
    def count(self) -> int:
        """How many weights are held at zero."""
        return sum(int(zeros.sum()) for _, zeros in self._zeros)

    def clear_gradients(self) -> None:
        """Before a step: what stays zero pulls at nothing, the clipped norm least of all."""
        for parameter, zeros in self._zeros:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(zeros, 0.0)

    @torch.no_grad()
    def apply(self) -> None:
        """After a step: momentum and decay have moved nothing."""
        for parameter, zeros in self._zeros:
            parameter.masked_fill_(zeros, 0.0)


def freeze(view: TorchView, settings: TrainSettings) -> None:
    """Take what the settings freeze out of training."""
    for name in view.layer_names:
        module = view.layer(name)
        still = settings.freeze_batchnorm and isinstance(module, BATCH_NORMS)
        if still or any(fnmatch.fnmatchcase(name, pattern) for pattern in settings.freeze):
            module.requires_grad_(False)


def make_optimizer(view: TorchView, extra: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimiser over all that is trained; only weights decay.

    Raises:
        BadInputError: nothing is left to train.
    """
    trained = [parameter for parameter in view.parameters() if parameter.requires_grad]
    weights = [parameter for parameter in trained if parameter.dim() > 1]
    others = [parameter for parameter in trained if parameter.dim() <= 1]
    others += [parameter for parameter in extra.parameters() if parameter.requires_grad]
    if not weights and not others:
        raise BadInputError("there is nothing to train: every weight is frozen", hint="freeze fewer layers")
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate = settings.learning_rate
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=settings.momentum, nesterov=settings.nesterov, fused=True)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=rate, fused=True)

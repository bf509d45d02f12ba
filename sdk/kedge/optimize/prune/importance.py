"""How much each channel of a group matters: norms of its weights, with or without gradients."""

from __future__ import annotations

from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from ...errors import BadInputError

__all__ = ["DataFree", "importance_of", "label_loss"]


class DataFree:
    """α · ‖w‖₁ / n + (1 − α) · ‖w‖₂ / √n of a channel's n weights, summed over the layers it runs through.

    Both terms are means over the weights (of |w|, and the root of that of w²), so layers with long rows do not outweigh
    short ones; each layer's values are divided by their mean before they are added, so layers with large weights (a
    folded BatchNormalization) do not outweigh others. Needs no data. L1 and L2 ranking: Li et al. 2017, He et al. 2018;
    summing over what goes together: Fang et al. 2023 (DepGraph).
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def __call__(self, group: Any) -> Tensor | None:
        """Scores [channels] of a group with all its indices; None when it holds no weights."""
        total: Tensor | None = None
        for item in group:
            rows = _rows(item.dep.handler, item.dep.target.module)
            if rows is None:
                continue
            rows = rows[item.idxs]
            n = rows.shape[1]
            score = self.alpha * rows.abs().sum(1) / n + (1 - self.alpha) * rows.norm(dim=1) / n**0.5
            score = score / score.mean().clamp_min(1e-12)
            if total is None:
                total = torch.zeros(max(item.root_idxs) + 1)
            roots = torch.tensor(item.root_idxs)
            times = torch.zeros_like(total).index_add_(0, roots, torch.ones_like(score)).clamp_min(1)
            total = total + torch.zeros_like(total).index_add_(0, roots, score) / times
        return total


def importance_of(kind: str, alpha: float) -> Any:
    """A scorer of torch-pruning's groups."""
    if kind == "data-free":
        return DataFree(alpha)
    if kind == "taylor":
        return torch_pruning.importance.GroupTaylorImportance()
    return torch_pruning.importance.GroupMagnitudeImportance(p=1 if kind == "l1" else 2)


def label_loss(outputs: dict[str, Tensor], labels: Tensor | None) -> Tensor:
    """Cross-entropy of the one output [n, classes] to the labels [n], or to the model's own choices.

    Raises:
        BadInputError: the model is no classifier.
    """
    scores = next(iter(outputs.values()))
    if len(outputs) != 1 or scores.dim() != 2 or not scores.is_floating_point():
        raise BadInputError(
            "Taylor importance needs a classifier with one output [n, classes]", hint="take another importance: l2"
        )
    wanted = scores.argmax(1).detach() if labels is None else labels
    with torch.no_grad():
        probable = bool((scores >= 0).all()) and bool(torch.allclose(scores.sum(1), torch.ones(len(scores)), atol=1e-3))
    logs = scores.clamp_min(1e-12).log() if probable else torch.log_softmax(scores, 1)
    return nn.functional.nll_loss(logs, wanted)


def _rows(handler: Any, module: Any) -> Tensor | None:
    """The weights of each channel as a row; None where the step is no layer's."""
    if not isinstance(module, nn.modules.conv._ConvNd | nn.Linear):  # noqa: SLF001  the base class of convolutions
        return None
    weight = module.weight.detach()
    transposed = getattr(module, "transposed", False)
    inward = handler in (torch_pruning.prune_conv_in_channels, torch_pruning.prune_linear_in_channels)
    return weight.transpose(0, 1).flatten(1) if inward != transposed else weight.flatten(1)

"""Classification accuracy on held-out data, with its uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInputError

__all__ = ["Accuracy", "top1"]


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy: `correct` of `count`, and the 95 % Wilson score interval of the share."""

    correct: int
    count: int

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return self.correct / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval (Wilson 1927): sound near 0 and 1, where the normal one is not."""
        z = 1.959964
        n, p = self.count, self.share
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        low, high = self.interval
        return {"correct": self.correct, "count": self.count, "share": self.share, "interval_95": [low, high]}


def top1(scores: NDArray[Any], labels: NDArray[Any]) -> Accuracy:
    """How often the largest of the scores [n, classes] is at the label [n].

    Raises:
        BadInputError: shapes do not match, there are no samples, or a label is out of range.
    """
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or scores.shape[0] == 0:
        raise BadInputError(f"scores {list(scores.shape)} and labels {list(labels.shape)} do not belong together")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise BadInputError(f"labels go from {labels.min()} to {labels.max()}, the model has {scores.shape[1]} classes")
    return Accuracy(int(np.count_nonzero(scores.argmax(axis=1) == labels)), int(labels.size))

"""Sensitivity and specificity of one class, of two models on the same samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compare import Paired, pairs

__all__ = ["ClassPairs", "class_pairs"]


@dataclass(frozen=True)
class ClassPairs:
    """How many samples both models, one of them, or neither got right, the class against all others.

    sensitivity: of the samples of the class, those that are found (TP of TP + FN). specificity: of all others, those
    that are not taken for it (TN of TN + FP). None where there are no such samples.
    """

    sensitivity: Paired | None
    specificity: Paired | None


def class_pairs(before: NDArray[np.int64], after: NDArray[np.int64], labels: NDArray[Any], number: int) -> ClassPairs:
    """Pairs of the class of this number, from predictions [n] (-1: no answer, which is wrong) and labels [n]."""
    own = labels == number
    found, spared = (
        [(answers == number)[own] for answers in (before, after)],
        [((answers != number) & (answers >= 0))[~own] for answers in (before, after)],
    )
    return ClassPairs(
        sensitivity=pairs(*found) if own.any() else None, specificity=None if own.all() else pairs(*spared)
    )

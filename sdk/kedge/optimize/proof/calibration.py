"""Whether a classifier's confidence is what it is worth: of answers given with 80 %, are 80 % right?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .metrics import predictions

__all__ = ["CalibrationError", "calibration_error", "probabilities"]

_BINS = 15
_UNIT = 1e-3


@dataclass(frozen=True)
class CalibrationError:
    """Expected calibration error, 0 to 1; softmax: the scores were no probabilities, and were made some by it."""

    error: float
    softmax: bool

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"error": self.error, "bins": _BINS, "softmax": self.softmax}


def probabilities(scores: NDArray[Any]) -> bool:
    """Whether scores [n, classes] are probabilities: in each row none below 0, and together 1 (to a thousandth)."""
    return bool((scores >= -_UNIT).all() and (np.abs(scores.sum(axis=1, dtype=np.float64) - 1) <= _UNIT).all())


def calibration_error(scores: NDArray[Any], labels: NDArray[Any], *, softmax: bool) -> CalibrationError | None:
    """Expected calibration error of scores [n, classes] against labels [n]; None where a score is not finite.

    Σ |share right − mean confidence| · samples of the bin / n over 15 bins of equal width of the largest score, as
    Guo et al. 2017 (On Calibration of Modern Neural Networks, ICML, eq. 3) define it. Of few samples it is too
    large: chance alone keeps the two apart.

    Args:
        softmax: the scores are logits, whose softmax is taken.
    """
    if not np.isfinite(scores).all():
        return None
    values = scores.astype(np.float64)
    if softmax:
        values = np.exp(values - values.max(axis=1, keepdims=True))
        values /= values.sum(axis=1, keepdims=True)
    confidence = values.max(axis=1)
    # Bin m is ((m - 1) / 15, m / 15].
    bins = np.clip(np.ceil(confidence * _BINS).astype(np.int64) - 1, 0, _BINS - 1)
    gap = np.bincount(bins, weights=(predictions(scores) == labels) - confidence, minlength=_BINS)
    return CalibrationError(float(np.abs(gap).sum() / labels.size), softmax)

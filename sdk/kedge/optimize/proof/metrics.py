"""How good a model's outputs are: classification against labels, tensors against a reference, a user's own figure."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInputError, IncompatibleError
from ...model.usercode import in_user_code, is_user_code, load_function
from ..evaluate import Accuracy

__all__ = [
    "ClassMetrics",
    "Metrics",
    "UserMetric",
    "classification",
    "cosine",
    "measure",
    "mse",
    "predictions",
    "psnr",
    "scores_name",
    "scores_of",
    "user_metric",
]


@dataclass(frozen=True)
class ClassMetrics:
    """One class: recall (sensitivity) as `accuracy`, F1; both None for a class that no sample has.

    specificity: of the samples of other classes, those that are not taken for this one; None where there are none.
    """

    label: str
    accuracy: Accuracy | None
    f1: float | None
    specificity: Accuracy | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; of a class that no sample has, the counts are 0 and the figures null."""
        shares = (
            {"correct": 0, "count": 0, "share": None, "interval_95": None}
            if self.accuracy is None
            else self.accuracy.to_json()
        )
        specificity = None if self.specificity is None else self.specificity.to_json()
        return {"label": self.label, **shares, "f1": self.f1, "specificity": specificity}


@dataclass(frozen=True)
class Metrics:
    """Figures of one model on one set of samples; None where not measured.

    top5: None when the model has fewer than six classes. f1_macro: the mean over the classes that
    samples have. user: the user's own metrics by their references.
    """

    top1: Accuracy | None = None
    top5: Accuracy | None = None
    f1_macro: float | None = None
    per_class: tuple[ClassMetrics, ...] | None = None
    user: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: METRICS of the report."""
        return {
            "top1": None if self.top1 is None else self.top1.to_json(),
            "top5": None if self.top5 is None else self.top5.to_json(),
            "f1_macro": self.f1_macro,
            "per_class": None if self.per_class is None else [entry.to_json() for entry in self.per_class],
            "user": dict(self.user),
        }


def measure(
    outputs: Mapping[str, NDArray[Any]],
    labels: NDArray[Any] | None,
    classes: Sequence[str] = (),
    user: Sequence[UserMetric] = (),
) -> Metrics:
    """All that can be measured on a model's outputs.

    Classification is measured where there are labels and an output of scores (see `scores_name`).

    Raises:
        BadInputError: labels do not fit the scores, or a user's metric fails.
    """
    scores = scores_of(outputs)
    measured = Metrics() if scores is None or labels is None else classification(scores, labels, classes)
    own = {metric.reference: metric.value(outputs, labels) for metric in user}
    return Metrics(measured.top1, measured.top5, measured.f1_macro, measured.per_class, own)


def scores_name(outputs: Mapping[str, NDArray[Any]]) -> str | None:
    """Which output is the scores: the first floating one of shape [n, classes], trailing axes of one aside."""
    for name, value in outputs.items():
        wide = value.ndim >= 2 and value.shape[1] > 1 and all(size == 1 for size in value.shape[2:])
        if wide and np.issubdtype(value.dtype, np.floating):
            return name
    return None


def scores_of(outputs: Mapping[str, NDArray[Any]]) -> NDArray[Any] | None:
    """The scores [n, classes] among the outputs, or None when no output looks like scores."""
    name = scores_name(outputs)
    if name is None:
        return None
    value = outputs[name]
    return value.reshape(value.shape[:2])


def predictions(scores: NDArray[Any]) -> NDArray[np.int64]:
    """The class of the largest score [n, classes] of each sample; -1 where a score is NaN: no answer is no class."""
    return np.where(np.isnan(scores).any(axis=1), -1, scores.argmax(axis=1)).astype(np.int64)


def classification(scores: NDArray[Any], labels: NDArray[Any], classes: Sequence[str] = ()) -> Metrics:
    """Top-1, top-5, and each class's share and F1 of scores [n, classes] against labels [n].

    F1 of a class is 2·TP / (2·TP + FP + FN) (van Rijsbergen, Information Retrieval, 1979), by
    scikit-learn. A sample with a NaN among its scores counts as wrong. Of equal scores the
    first counts as the larger, as argmax takes it.

    Args:
        classes: names of the labels; numbers where there are too few.

    Raises:
        BadInputError: shapes do not match, there are no samples, or a label is out of range.
        IncompatibleError: scikit-learn is not installed.
    """
    try:
        from sklearn.metrics import f1_score
    except ImportError as error:
        raise IncompatibleError("scikit-learn is needed for F1", hint="pip install 'kedge[optimize]'") from error
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or scores.shape[0] == 0:
        raise BadInputError(f"scores {list(scores.shape)} and labels {list(labels.shape)} do not belong together")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise BadInputError(f"labels go from {labels.min()} to {labels.max()}, the model has {scores.shape[1]} classes")
    predicted = predictions(scores)
    right = predicted == labels
    count = int(labels.size)
    present = np.unique(labels)
    f1 = dict(zip(present, f1_score(labels, predicted, labels=present, average=None, zero_division=0.0), strict=True))
    return Metrics(
        top1=Accuracy(int(right.sum()), count),
        top5=Accuracy(_within(scores, labels, 5), count) if scores.shape[1] > 5 else None,
        f1_macro=float(np.mean(list(f1.values()))),
        per_class=tuple(
            ClassMetrics(
                label=classes[index] if index < len(classes) else str(index),
                accuracy=Accuracy(int(right[labels == index].sum()), int((labels == index).sum()))
                if index in f1
                else None,
                f1=float(f1[index]) if index in f1 else None,
                specificity=_specificity(predicted, labels != index, index),
            )
            for index in range(scores.shape[1])
        ),
    )


def _specificity(predicted: NDArray[np.int64], others: NDArray[np.bool_], number: int) -> Accuracy | None:
    # No answer (-1) is wrong, whatever is asked.
    spared = others & (predicted != number) & (predicted >= 0)
    return Accuracy(int(spared.sum()), int(others.sum())) if others.any() else None


def _within(scores: NDArray[Any], labels: NDArray[Any], k: int) -> int:
    own = np.take_along_axis(scores, labels[:, None].astype(np.int64), axis=1)
    before = np.arange(scores.shape[1])[None, :] < labels[:, None]
    rank = ((scores > own) | ((scores == own) & before)).sum(axis=1)
    return int(np.count_nonzero((rank < k) & ~np.isnan(scores).any(axis=1)))


def mse(reference: NDArray[Any], value: NDArray[Any]) -> float:
    """Mean squared error, mean((x - y)²), over all elements.

    Raises:
        BadInputError: the shapes differ, or there are no elements.
    """
    x, y = _flat(reference, value)
    return float(np.mean(np.square(x - y)))


def cosine(reference: NDArray[Any], value: NDArray[Any]) -> float | None:
    """Cosine of the angle between two tensors taken as vectors, x·y / (|x|·|y|); None where one of them is zero.

    Raises:
        BadInputError: the shapes differ, or there are no elements.
    """
    x, y = _flat(reference, value)
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(np.clip(np.dot(x, y) / size, -1.0, 1.0)) if math.isfinite(size) and size > 0 else None


def psnr(reference: NDArray[Any], value: NDArray[Any]) -> float | None:
    """Peak signal-to-noise ratio in dB: 10·log10(peak² / MSE), where the peak is max(x) - min(x) of the reference.

    The definition is that of image coding (Huynh-Thu and Ghanbari, Electronics Letters 44(13), 2008),
    where the peak is the range of the signal; a tensor's range is not known beforehand, so it is taken
    from the reference. Infinite for equal tensors; None for a reference that is constant.

    Raises:
        BadInputError: the shapes differ, or there are no elements.
    """
    error = mse(reference, value)
    peak = float(reference.max()) - float(reference.min())
    if error == 0:
        return math.inf
    return 10 * math.log10(peak * peak / error) if peak > 0 and math.isfinite(peak * peak / error) else None


def _flat(reference: NDArray[Any], value: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if reference.shape != value.shape or reference.size == 0:
        raise BadInputError(f"tensors {list(reference.shape)} and {list(value.shape)} cannot be compared")
    return reference.astype(np.float64).ravel(), value.astype(np.float64).ravel()


@dataclass(frozen=True)
class UserMetric:
    """A figure computed by the user's own function (outputs by name, labels or None) -> float."""

    reference: str
    function: Callable[[dict[str, NDArray[Any]], NDArray[Any] | None], Any]

    def value(self, outputs: Mapping[str, NDArray[Any]], labels: NDArray[Any] | None) -> float:
        """What the function returns; it gets read-only arrays.

        Raises:
            BadInputError: it raises, or returns something that is no finite number.
        """
        views = {name: value.view() for name, value in outputs.items()}
        for view in views.values():
            view.flags.writeable = False
        with in_user_code(self.reference):
            result = self.function(views, labels)
        if isinstance(result, np.ndarray) and result.ndim == 0:
            result = result[()]
        if isinstance(result, bool | np.bool_) or not isinstance(result, numbers.Real) or not math.isfinite(result):
            raise BadInputError(
                f"the metric {self.reference} returned {str(result)[:40]!r}, not a finite number",
                hint="return one float",
            )
        return float(result)


def user_metric(reference: str, base: Path | None = None) -> UserMetric:
    """The function that `package.module:function` names; its module's code runs.

    Args:
        base: a folder to look in first (the recipe's), or None for the current one.

    Raises:
        BadInputError: there is no such module or function.
    """
    if not is_user_code(reference):
        raise BadInputError(f"{reference!r} does not name a metric", hint="write it as package.module:function")
    return UserMetric(reference, load_function(reference, base))

"""Two models on the same samples: is the difference real, and how large can it be?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInputError, IncompatibleError
from ..evaluate import Accuracy
from .metrics import cosine, mse, predictions, psnr, scores_name

__all__ = ["Comparison", "OutputError", "Paired", "compare", "pairs"]


@dataclass(frozen=True)
class Paired:
    """How many samples both models, one of them, or neither got right."""

    both: int
    only_before: int
    only_after: int
    neither: int

    @property
    def count(self) -> int:
        """How many samples."""
        return self.both + self.only_before + self.only_after + self.neither

    @property
    def before(self) -> Accuracy:
        """Of the model as it was given."""
        return Accuracy(self.both + self.only_before, self.count)

    @property
    def after(self) -> Accuracy:
        """Of the model that was made."""
        return Accuracy(self.both + self.only_after, self.count)

    @property
    def drop(self) -> float:
        """Share of accuracy lost, -1 to 1: positive when the model after is worse."""
        return (self.only_before - self.only_after) / self.count

    @property
    def drop_interval(self) -> tuple[float, float]:
        """95 % interval of the drop.

        Newcombe 1998 (Statistics in Medicine 17:2635-2650), method 10: the Wilson intervals of both
        shares, squared and added, with the correlation φ of the pairs, whose numerator is
        continuity-corrected. It keeps its coverage where the usual one has width 0: no discordant pair.
        """
        before, after = self.before, self.after
        (low1, high1), (low2, high2) = before.interval, after.interval
        down1, up1 = before.share - low1, high1 - before.share
        down2, up2 = after.share - low2, high2 - after.share
        phi = self._correlation()
        below = math.sqrt(max(down1**2 - 2 * phi * down1 * up2 + up2**2, 0.0))
        above = math.sqrt(max(up1**2 - 2 * phi * up1 * down2 + down2**2, 0.0))
        return max(-1.0, self.drop - below), min(1.0, self.drop + above)

    @property
    def p_value(self) -> float:
        """McNemar's exact test, two-sided: had neither model the edge, how likely would so uneven a split be?

        The pairs on which only one is right are a binomial sample of share 1/2 (McNemar 1947,
        Psychometrika 12:153-157). 1 when there is no such pair.

        Raises:
            IncompatibleError: scipy is not installed.
        """
        try:
            from scipy.stats import binomtest
        except ImportError as error:
            raise IncompatibleError(
                "scipy is needed for the paired test", hint="pip install 'kedge[optimize]'"
            ) from error
        discordant = self.only_before + self.only_after
        return float(binomtest(self.only_before, discordant, 0.5).pvalue) if discordant else 1.0

    def _correlation(self) -> float:
        product = (
            (self.both + self.only_before)
            * (self.only_after + self.neither)
            * (self.both + self.only_after)
            * (self.only_before + self.neither)
        )
        if product == 0:
            return 0.0
        cross: float = self.both * self.neither - self.only_before * self.only_after
        if cross > 0:
            cross = max(cross - self.count / 2, 0)
        return cross / math.sqrt(product)


@dataclass(frozen=True)
class OutputError:
    """How far one floating output is from the original's: None where the figure is not defined.

    psnr_db: None also for equal outputs, whose mse is 0.
    """

    name: str
    mse: float | None
    cosine: float | None
    psnr_db: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"name": self.name, "mse": self.mse, "cosine": self.cosine, "psnr_db": self.psnr_db}


@dataclass(frozen=True)
class Comparison:
    """The model after against the model before.

    paired: None without labels. agreement: how often both answer the same class; None when no output is
    scores. outputs: the error of each floating output.
    """

    paired: Paired | None
    agreement: Accuracy | None
    outputs: tuple[OutputError, ...]

    @property
    def drop(self) -> float | None:
        """Share of accuracy lost; None without labels."""
        return None if self.paired is None else self.paired.drop

    @property
    def cosine(self) -> float | None:
        """The lowest cosine of any floating output; None when one of them has none (zero, or not finite)."""
        values = [output.cosine for output in self.outputs]
        known = [value for value in values if value is not None]
        return min(known) if known and len(known) == len(values) else None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: the report's `comparison`."""
        return {
            "drop": self.drop,
            "drop_interval_95": None if self.paired is None else list(self.paired.drop_interval),
            "mcnemar": None
            if self.paired is None
            else {
                "only_before": self.paired.only_before,
                "only_after": self.paired.only_after,
                "p_value": self.paired.p_value,
            },
            "agreement": None if self.agreement is None else self.agreement.to_json(),
            "cosine": self.cosine,
            "outputs": [output.to_json() for output in self.outputs],
        }


def compare(
    before: Mapping[str, NDArray[Any]], after: Mapping[str, NDArray[Any]], labels: NDArray[Any] | None = None
) -> Comparison:
    """Compare outputs by name, [n, …] of the same samples in the same order, with labels [n] or without.

    A sample with a NaN among its scores is wrong, and agrees with nothing.

    Raises:
        BadInputError: an output is missing after, or has another shape; labels do not fit.
        IncompatibleError: scipy is not installed.
    """
    for name, value in before.items():
        if name not in after:
            raise BadInputError(f"the optimised model has no output {name!r}")
        if after[name].shape != value.shape:
            raise BadInputError(
                f"output {name!r} is {list(value.shape)} before and {list(after[name].shape)} after: not comparable"
            )
    paired = agreement = None
    scores = scores_name(before)
    if scores is not None:
        first, second = (_classes(outputs[scores]) for outputs in (before, after))
        agreement = Accuracy(int(np.count_nonzero((first == second) & (first >= 0))), int(first.size))
        if labels is not None:
            if labels.shape != first.shape:
                raise BadInputError(f"{first.size} outputs and labels {list(labels.shape)} do not belong together")
            paired = pairs(first == labels, second == labels)
    floating = [name for name, value in before.items() if np.issubdtype(value.dtype, np.floating) and value.size]
    return Comparison(paired, agreement, tuple(_error(name, before[name], after[name]) for name in floating))


def _classes(value: NDArray[Any]) -> NDArray[np.int64]:
    return predictions(value.reshape(value.shape[:2]))


def pairs(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Paired:
    """How often both models, one of them, or neither is right, from whether each is [n]."""
    return Paired(
        both=int(np.count_nonzero(before & after)),
        only_before=int(np.count_nonzero(before & ~after)),
        only_after=int(np.count_nonzero(~before & after)),
        neither=int(np.count_nonzero(~before & ~after)),
    )


def _error(name: str, before: NDArray[Any], after: NDArray[Any]) -> OutputError:
    squared = mse(before, after)
    if not math.isfinite(squared):
        return OutputError(name, None, None, None)
    ratio = psnr(before, after)
    return OutputError(
        name, squared, cosine(before, after), ratio if ratio is not None and math.isfinite(ratio) else None
    )

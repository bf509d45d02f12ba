"""Do the inputs still look like those that the model was calibrated with? A count of values outside, at little cost.

Of each request at most 256 values an input are looked at, spread evenly over the tensor, other ones each time. A model
gives no sign of its own when its inputs leave the range: a quantised one saturates, and answers.
"""

from __future__ import annotations

import itertools
import math
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..formats.artefact import Artefact, CalibratedRange
from ..formats.tensors import BYTES, TensorSpec
from ..runtime.base import Buffers

__all__ = ["DRIFT_SHARE", "DriftCounter"]

DRIFT_SHARE = 0.01
"""Share of values outside from which a model's accuracy is called unproven."""

# An input is counted in 4 µs in a loop. Behind a model it takes longer, for that has driven this code out of the
# caches: 8 µs behind one of 0.8 ms, 80 to 90 behind one of 8 to 14 ms (medians, onnxruntime on one x86-64 core).
# Four times as many values take 2 µs more.
_SAMPLE = 256
# The share is of the last one to two windows of values: what a device has seen in years would hide what it sees today.
_WINDOW = 1 << 20
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass
class _Seen:
    """What was counted of one input, as whole numbers of values; `recent` fades."""

    spec: TensorSpec
    range: CalibratedRange
    low: Any
    high: Any
    values: int = 0
    outside: int = 0
    recent_values: int = 0
    recent_outside: int = 0

    def add(self, values: int, outside: int) -> None:
        self.values += values
        self.outside += outside
        self.recent_values += values
        self.recent_outside += outside
        if self.recent_values >= 2 * _WINDOW:
            self.recent_values >>= 1
            self.recent_outside >>= 1


class DriftCounter:
    """Counts the values of a live model's inputs that lie outside their calibrated ranges. Thread-safe.

    Args:
        artefact: what is served, with the inputs as the loaded model states them. Inputs without a calibrated range are
            not counted.
    """

    def __init__(self, artefact: Artefact) -> None:
        self._precision = artefact.precision.upper()
        self._turns = itertools.count()
        self._guard = threading.Lock()
        self._seen = [
            _Seen(spec, artefact.calibrated[spec.name], *_bounds(spec.dtype, artefact.calibrated[spec.name]))
            for spec in artefact.inputs
            if spec.name in artefact.calibrated and spec.datatype != BYTES
        ]

    def count(self, inputs: Buffers) -> None:
        """Look at a sample of a request's inputs, by name, C-contiguous. NaN lies outside of every range."""
        # Multiples of the golden ratio, modulo 1, are spread evenly, and so are those of any regular subset of the
        # requests: every position has its turn, also where shapes alternate (Weyl's equidistribution theorem).
        phase = next(self._turns) * _GOLDEN % 1.0
        for seen in self._seen:
            array = inputs[seen.spec.name]
            if array.size == 0:
                continue
            stride = -(-array.size // _SAMPLE)
            sample = array.reshape(-1)[int(phase * stride) :: stride]
            outside = sample.size - int(np.count_nonzero((sample >= seen.low) & (sample <= seen.high)))
            with self._guard:
                seen.add(sample.size, outside)

    def report(self) -> list[dict[str, Any]]:
        """What was counted of each input that has a range, as plain JSON.

        values, outside: looked at since the model was loaded, and of them outside: they only grow. share: outside, 0 to
        1, of the last one to two million values looked at; None before the first. warning: a sentence where the share
        is above DRIFT_SHARE, else None.
        """
        with self._guard:
            return [self._report(seen) for seen in self._seen]

    def _report(self, seen: _Seen) -> dict[str, Any]:
        share = seen.recent_outside / seen.recent_values if seen.recent_values else None
        warning = None
        if share is not None and share > DRIFT_SHARE:
            warning = (
                f"{100 * share:.3g} % of the values of {seen.spec.name!r} lie outside what was calibrated: "
                f"{self._precision} accuracy is unproven"
            )
        return {
            "name": seen.spec.name,
            "min": seen.range.min,
            "max": seen.range.max,
            "source": seen.range.source,
            "values": seen.values,
            "outside": seen.outside,
            "share": share,
            "warning": warning,
        }


def _bounds(dtype: np.dtype[Any], calibrated: CalibratedRange) -> tuple[Any, Any]:
    """The least and the greatest value inside, as the input's own type: no comparison then converts a tensor."""
    if dtype.kind == "f":
        most = float(np.finfo(dtype).max)
        return tuple(dtype.type(min(max(end, -most), most)) for end in (calibrated.min, calibrated.max))
    lowest, highest = (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    return max(math.ceil(calibrated.min), lowest), min(math.floor(calibrated.max), highest)

"""Parity: do the device's outputs agree with those the host recorded?"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AgentError
from ..formats.gates import ParityGate
from ..formats.tensors import TensorSpec, datatype_of

__all__ = ["OutputParity", "compare_output", "failures", "require_golden"]


@dataclass(frozen=True)
class OutputParity:
    """Agreement of one output with its recording.

    cosine: cosine similarity of the flattened tensors (1 when both are all zero).
    max_abs_error: largest absolute difference, in the output's own unit.
    relative_error: that difference over the recording's largest magnitude.
    """

    output: str
    cosine: float
    max_abs_error: float
    relative_error: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; null where tensors that have different shapes, or texts, have no such figure."""
        return {key: None if value in (math.inf, -math.inf) else value for key, value in asdict(self).items()}


def compare_output(name: str, device: NDArray[Any], golden: NDArray[Any]) -> OutputParity:
    """Compare an output with its recording; shapes must be equal.

    Values that are not finite count as the worst agreement unless both sides have the same ones
    in the same places. So do texts: they are equal or they are not.
    """
    if device.shape != golden.shape:
        return OutputParity(name, -1.0, math.inf, math.inf)
    if "O" in (device.dtype.kind, golden.dtype.kind):
        equal = _texts(device) == _texts(golden)
        return OutputParity(name, 1.0, 0.0, 0.0) if equal else OutputParity(name, -1.0, math.inf, math.inf)
    a = device.astype(np.float64).ravel()
    b = golden.astype(np.float64).ravel()
    odd = ~(np.isfinite(a) & np.isfinite(b))
    if odd.any():
        if not np.array_equal(a[odd], b[odd], equal_nan=True):
            return OutputParity(name, -1.0, math.inf, math.inf)
        a, b = a[~odd], b[~odd]
    if a.size == 0:
        return OutputParity(name, 1.0, 0.0, 0.0)
    largest = float(np.abs(b).max())
    difference = float(np.abs(a - b).max())
    norms = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    cosine = float(a @ b) / norms if norms > 0 else float(difference == 0)
    relative = difference / largest if largest > 0 else 0.0 if difference == 0 else math.inf
    return OutputParity(name, min(cosine, 1.0), difference, relative)


def _texts(array: NDArray[Any]) -> list[Any]:
    """Elements of a tensor of texts as bytes: text stands for its UTF-8."""
    return [element.encode() if isinstance(element, str) else element for element in array.ravel().tolist()]


def require_golden(
    inputs: Mapping[str, NDArray[Any]],
    outputs: Collection[str],
    takes: Sequence[TensorSpec],
    gives: Sequence[TensorSpec],
) -> None:
    """Refuse recorded tensors that are not of a model that takes and gives these.

    Raises:
        AgentError: they are not (kind incompatible).
    """
    specs = {spec.name: spec for spec in takes}
    if set(inputs) != set(specs) or not set(outputs) <= {spec.name for spec in gives}:
        raise AgentError(
            "the golden tensors do not name the model's inputs and outputs",
            kind="incompatible",
            hint="build the release again",
        )
    for name, array in inputs.items():
        mismatch = specs[name].mismatch(datatype_of(array.dtype), array.shape)
        if mismatch is not None:
            raise AgentError(f"golden {mismatch}", kind="incompatible", hint="build the release again")


def failures(gate: ParityGate, results: Mapping[str, OutputParity]) -> list[str]:
    """One sentence for every limit that an output breaks; empty when the gate is passed."""
    out = []
    for name, result in results.items():
        limits = gate.of(name)
        if not result.cosine >= limits.cosine_min:
            out.append(f"output {name!r}: cosine {result.cosine:.6f} is below {limits.cosine_min:.9g}")
        if not result.relative_error <= limits.relative_error_max:
            out.append(
                f"output {name!r}: relative error {result.relative_error:.6g} is above {limits.relative_error_max:g}"
            )
        if limits.max_abs_error_max is not None and not result.max_abs_error <= limits.max_abs_error_max:
            out.append(
                f"output {name!r}: absolute error {result.max_abs_error:.6g} is above {limits.max_abs_error_max:g}"
            )
    return out

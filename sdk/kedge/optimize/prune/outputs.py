"""What a graph answers to samples, and how far another graph's answers are from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInputError
from ...model.graph import Graph
from ...model.samples import Samples

__all__ = ["ERRORS", "answers", "drawn", "fixed_batch_of", "output_error"]

ERRORS = ("mse", "kl")
_BATCH = 64


def answers(graph: Graph, samples: Samples, scratch: Path) -> dict[str, NDArray[Any]]:
    """Outputs by name for all samples, in onnxruntime on this machine; samples along the first axis.

    scratch: a folder for the file that onnxruntime reads; it is gone afterwards.

    Raises:
        BadInputError: the samples do not fit, or onnxruntime refuses the graph.
    """
    from ...model.session import ReferenceModel

    fixed = fixed_batch_of(graph)
    size = fixed or _BATCH
    path = scratch / f"answers-{graph.digest[:16]}.onnx"
    graph.write(path)
    try:
        model = ReferenceModel(path)
        whole = max(samples.count // size * size, size)
        parts = [model.run(batch) for batch in (samples.first(whole) if fixed else samples).batches(size)]
    finally:
        path.unlink(missing_ok=True)
    return {name: np.concatenate([np.atleast_1d(part[name]) for part in parts]) for name in parts[0]}


def fixed_batch_of(graph: Graph) -> int | None:
    """The batch size a graph insists on; None when it is free."""
    shape = graph.types[graph.input_names[0]][1] if graph.input_names else None
    return shape[0] if shape else None


def drawn(samples: Samples, count: int, seed: int) -> Samples:
    """Some samples, drawn without replacement: the first ones of a folder by class are all of one class."""
    if samples.count <= count:
        return samples
    return samples.take(np.sort(np.random.default_rng(seed).permutation(samples.count)[:count]))


def output_error(reference: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]], kind: str = "mse") -> float:
    """How far answers are from the reference's, 0 when equal; the mean over the outputs that are floating-point.

    "mse": Σ(y − ŷ)² / Σy². "kl": the mean over rows of KL(p ‖ q) (Kullback and Leibler 1951), in nats, where p and q
    are softmax over the last axis, or the values themselves where the reference's rows are probabilities already.

    Raises:
        BadInputError: no output is floating-point, or shapes differ.
    """
    errors = []
    for name, expected in reference.items():
        if not np.issubdtype(expected.dtype, np.floating):
            continue
        y, found = expected.astype(np.float64), other[name].astype(np.float64)
        if y.shape != found.shape:
            raise BadInputError(f"output {name!r} was {list(y.shape)} and is {list(found.shape)}")
        errors.append(_divergence(y, found) if kind == "kl" else _relative(y, found))
    if not errors:
        raise BadInputError("the model has no floating-point output to compare", hint="compare models by accuracy")
    value = float(np.mean(errors))
    return value if np.isfinite(value) else float("inf")


def _relative(y: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    power = float(np.sum(y * y))
    noise = float(np.sum((y - found) ** 2))
    if power == 0:
        return 0.0 if noise == 0 else float("inf")
    return noise / power


def _divergence(y: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    if bool(np.all(y >= 0)) and bool(np.allclose(y.sum(axis=-1), 1, atol=1e-3)):
        p, log_p, log_q = y, np.log(np.maximum(y, 1e-12)), np.log(np.maximum(found, 1e-12))
    else:
        log_p, log_q = _log_softmax(y), _log_softmax(found)
        p = np.exp(log_p)
    return float(np.mean(np.sum(p * (log_p - log_q), axis=-1)))


def _log_softmax(y: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = y - y.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))

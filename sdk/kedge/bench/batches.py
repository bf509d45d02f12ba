"""Run many samples through a deployed model, as many a request as the model takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kedge_agent.formats.tensors import DYNAMIC, TensorSpec

from ..errors import BadInputError, IncompatibleError
from ..transport.client import AgentClient

__all__ = ["infer_batches", "model_specs"]

_REQUEST_BYTES = 8 << 20


def model_specs(client: AgentClient, model: str) -> tuple[TensorSpec, ...]:
    """Specifications of a deployed model's inputs, as its metadata states them.

    Raises:
        BadInputError: there is no such model.
    """
    body = client.get(f"/v2/models/{model}", "infer")
    try:
        return tuple(TensorSpec(item["name"], item["datatype"], tuple(item["shape"])) for item in body["inputs"])
    except (KeyError, TypeError, ValueError) as error:
        raise IncompatibleError(f"the model's metadata makes no sense: {error}") from error


def infer_batches(
    client: AgentClient,
    model: str,
    inputs: Mapping[str, NDArray[Any]],
    tick: Callable[[str, float], None] = lambda phase, share: None,
    *,
    batch: int | None = None,
) -> tuple[dict[str, NDArray[Any]], list[float]]:
    """Outputs for all samples, and the end-to-end time of each request in ms.

    Args:
        inputs: by name, samples along the first axis.
        batch: samples a request; None takes the model's fixed batch, or what 8 MiB hold.

    Raises:
        BadInputError: the samples do not fill whole fixed batches.
    """
    specs = {spec.name: spec for spec in model_specs(client, model)}
    samples = {array.shape[0] for name, array in inputs.items() if specs[name].shape}
    if len(samples) != 1:
        raise BadInputError(f"the inputs have different numbers of samples: {sorted(samples)}")
    total = samples.pop()
    fixed = {spec.shape[0] for spec in specs.values() if spec.shape and spec.shape[0] != DYNAMIC}
    if fixed:
        size = max(fixed)
    else:
        per_sample = sum(array.nbytes // max(total, 1) for array in inputs.values())
        size = batch or max(1, min(64, _REQUEST_BYTES // max(per_sample, 1)))
    if total == 0 or (fixed and total % size):
        raise BadInputError(f"{total} samples do not fill batches of {size}", hint="the model's batch is fixed")
    parts: list[dict[str, NDArray[Any]]] = []
    timings: list[float] = []
    for start in range(0, total, size):
        chunk = {
            name: np.ascontiguousarray(array[start : start + size]) if specs[name].shape else array
            for name, array in inputs.items()
        }
        result = client.infer(model, chunk)
        parts.append(result.outputs)
        timings.append(result.end_to_end_ms)
        tick("inference", min(1.0, (start + size) / total))
    names = parts[0].keys()
    return {
        name: np.concatenate([part[name] for part in parts]) if parts[0][name].ndim else parts[-1][name]
        for name in names
    }, timings

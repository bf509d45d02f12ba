"""Run many samples through a deployed model, as many a request as the model takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kedge_agent.formats.strings import tensor_data
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

    What fits into one request is sent as one: whether a model's first dimension counts samples, its metadata does not
    say. Only more than 8 MiB, a fixed first dimension, the largest batch that the device takes, or `batch` split it.

    Args:
        inputs: by name.
        batch: samples a request, along the first axis.

    Raises:
        BadInputError: the samples do not fill whole fixed batches, or the model's outputs show
            that its first dimension does not count samples, so that it cannot be split.
    """
    specs = {spec.name: spec for spec in model_specs(client, model)}
    size, total = _split(specs, inputs, batch, _most_samples(client, model))
    parts: list[dict[str, NDArray[Any]]] = []
    timings: list[float] = []
    for start in range(0, total, size):
        chunk = dict(inputs)
        if size < total:
            chunk = {
                name: np.ascontiguousarray(array[start : start + size]) if specs[name].shape else array
                for name, array in inputs.items()
            }
        result = client.infer(model, chunk)
        sent = min(size, total - start)
        if size < total and any(out.shape[:1] != (sent,) for out in result.outputs.values()):
            raise BadInputError(
                f"{model} does not answer sample by sample: its input cannot be split into requests",
                hint="give fewer data at a time",
            )
        parts.append(result.outputs)
        timings.append(result.end_to_end_ms)
        tick("inference", min(1.0, (start + size) / total))
    if len(parts) == 1:
        return parts[0], timings
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, timings


def _most_samples(client: AgentClient, model: str) -> int | None:
    """What the device takes in one request; None: it does not say, and there is no limit but a request's size."""
    most = client.get(f"/v2/models/{model}/config", "infer").get("max_batch_size")
    return most if isinstance(most, int) and most > 0 else None


def _split(
    specs: Mapping[str, TensorSpec], inputs: Mapping[str, NDArray[Any]], batch: int | None, most: int | None
) -> tuple[int, int]:
    """Samples a request, and in all; (1, 1) where the data go as one request."""
    counts = {array.shape[0] for name, array in inputs.items() if specs[name].shape}
    fixed = {spec.shape[0] for spec in specs.values() if spec.shape and spec.shape[0] != DYNAMIC}
    total_bytes = sum(len(tensor_data(array)) if array.dtype.kind == "O" else array.nbytes for array in inputs.values())
    fits = all(specs[name].mismatch(specs[name].datatype, array.shape) is None for name, array in inputs.items())
    if most is not None and max(counts, default=0) > most:
        batch = min(batch or most, most)
    if fits and batch is None and total_bytes <= _REQUEST_BYTES:
        return 1, 1
    if len(counts) != 1:
        raise BadInputError(f"the inputs have different numbers of samples: {sorted(counts)}")
    total = counts.pop()
    size = max(fixed) if fixed else batch or max(1, _REQUEST_BYTES * total // max(total_bytes, 1))
    if total == 0 or (fixed and total % size):
        raise BadInputError(f"{total} samples do not fill batches of {size}", hint="the model's batch is fixed")
    return min(size, total), total

"""Outputs of a model for all samples, on this machine's CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInputError
from ...model.graph import Graph
from ...model.samples import Samples
from ...model.session import ReferenceModel
from ..work import silent

__all__ = ["run_all", "session_of"]

_MAX_BYTES = 4 << 30


def session_of(model: Path | Graph | ReferenceModel, *, faithful: bool = False, threads: int = 0) -> ReferenceModel:
    """A session for a file or a graph; one that is given is passed through.

    faithful: compute Q/DQ pairs exactly as written, for artefacts that another runtime will run.

    Raises:
        BadInputError: onnxruntime refuses the model.
        IncompatibleError: onnxruntime is not installed.
    """
    if isinstance(model, ReferenceModel):
        return model
    source = model.proto.SerializeToString() if isinstance(model, Graph) else model
    return ReferenceModel(source, threads=threads, optimise=not faithful)


def run_all(
    model: Path | Graph | ReferenceModel,
    samples: Samples,
    *,
    batch: int = 64,
    outputs: Sequence[str] | None = None,
    faithful: bool = False,
    progress: Callable[[str, float], None] = silent,
    step: str = "evaluate",
) -> dict[str, NDArray[Any]]:
    """Outputs by name, samples along the first axis, in the samples' order.

    A model with a fixed batch gets batches of just that size; the last is filled up by repeating its
    last sample, and what that gives is cut off again.

    Args:
        model: a file, a graph, or a session made before (`faithful` is then its maker's choice).
        outputs: which; None: all that have one entry a sample (others are left out).
        faithful: see `session_of`.
        progress: called with `step` and the share done after each batch.

    Raises:
        BadInputError: onnxruntime refuses the model or the inputs; an output named here has not one
            entry a sample, or changes its shape with the data; the outputs would not fit in memory.
    """
    session = session_of(model, faithful=faithful)
    size = session.fixed_batch
    filled: dict[str, NDArray[Any]] = {}
    done = 0
    for inputs in samples.batches(size or batch):
        count = next(iter(inputs.values())).shape[0]
        full = inputs if size is None or count == size else _repeat_last(inputs, size)
        given = size or count
        results = session.run(full, outputs)
        kept = {name: value for name, value in results.items() if value.ndim and value.shape[0] == given}
        if outputs is not None and len(kept) < len(results):
            name = next(name for name in results if name not in kept)
            raise BadInputError(f"output {name!r} has not one entry a sample", hint="name other outputs to compare")
        if not filled:
            filled = {name: _room(name, value, samples.count) for name, value in kept.items()}
        for name, store in list(filled.items()):
            if name not in kept:
                if outputs is not None:
                    raise BadInputError(f"output {name!r} is missing for some samples")
                del filled[name]
            elif kept[name].shape[1:] != store.shape[1:]:
                raise BadInputError(
                    f"output {name!r} is {list(store.shape[1:])} for some samples and {list(kept[name].shape[1:])} "
                    "for others: its size depends on the data",
                    hint="name other outputs to compare",
                )
            else:
                store[done : done + count] = kept[name][:count]
        done += count
        progress(step, done / samples.count)
    if not filled:
        raise BadInputError(
            "no output of the model has one entry a sample", hint="export it with the batch as its first axis"
        )
    return filled


def _repeat_last(inputs: dict[str, NDArray[Any]], size: int) -> dict[str, NDArray[Any]]:
    return {
        name: np.concatenate([array, np.repeat(array[-1:], size - array.shape[0], axis=0)])
        for name, array in inputs.items()
    }


def _room(name: str, first: NDArray[Any], count: int) -> NDArray[Any]:
    shape = (count, *first.shape[1:])
    need = int(np.prod(shape, dtype=np.int64)) * first.dtype.itemsize
    if need > _MAX_BYTES:
        raise BadInputError(
            f"output {name!r} of {count} samples takes {need >> 20} MiB; at most {_MAX_BYTES >> 20} are kept",
            hint="give fewer samples",
        )
    return np.empty(shape, first.dtype)

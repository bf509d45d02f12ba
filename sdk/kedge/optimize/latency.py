"""Latency on this machine's CPU, for targets whose runtime is onnxruntime: several models, interleaved."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kedge_agent.formats.latency import summarize

from ..model.samples import Samples
from ..model.session import ReferenceModel
from .work import Latency

__all__ = ["HostProbe"]

_WARMUP_MS = 200
_ROUND_MS = 100
_ROUNDS = 7
_LEAST_RUNS = 10


class HostProbe:
    """Times models in onnxruntime on this host: one thread, batch 1 (or the model's own), closed loop.

    Rounds of all models alternate, so that what else the machine does falls on all of them alike.
    """

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    @property
    def name(self) -> str:
        """This host."""
        return "this host"

    def measure(self, models: Mapping[str, Path]) -> dict[str, Latency]:
        """Latency by name."""
        sessions = {name: ReferenceModel(path, threads=1) for name, path in models.items()}
        inputs = {name: self._inputs(session) for name, session in sessions.items()}
        for name, session in sessions.items():
            _run_for(session, inputs[name], _WARMUP_MS, [])
        times: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(_ROUNDS):
            for name, session in sessions.items():
                _run_for(session, inputs[name], _ROUND_MS, times[name])
        out = {}
        for name, session in sessions.items():
            summary = summarize(times[name]).to_json()
            batch = next(iter(inputs[name].values())).shape[0]
            conditions = (
                f"this host, onnxruntime {session.runtime_version} CPU, 1 thread, batch {batch}, "
                f"warm-up {_WARMUP_MS} ms, {_ROUNDS} rounds of {_ROUND_MS} ms in alternation"
            )
            out[name] = Latency(summary["median_ms"], summary["p90_ms"], len(times[name]), conditions)
        return out

    def _inputs(self, session: ReferenceModel) -> dict[str, NDArray[Any]]:
        size = session.fixed_batch or 1
        batch = next(self._samples.batches(size))
        # Time does not depend on the values: few samples are repeated until they fill a batch.
        return {name: np.resize(array, (size, *array.shape[1:])) for name, array in batch.items()}


def _run_for(session: ReferenceModel, inputs: dict[str, NDArray[Any]], milliseconds: float, into: list[float]) -> None:
    begin, runs = time.perf_counter(), 0
    while runs < _LEAST_RUNS or (time.perf_counter() - begin) * 1e3 < milliseconds:
        start = time.perf_counter_ns()
        session.run(inputs)
        into.append((time.perf_counter_ns() - start) / 1e6)
        runs += 1

"""Accuracy and latency of the artefacts that tools/bench/optimize.py compares."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optimize_cases import Case

from kedge.model.samples import Samples
from kedge.model.session import ReferenceModel
from kedge.optimize.evaluate import Accuracy
from kedge.optimize.proof.compare import compare
from kedge.optimize.proof.metrics import predictions, scores_name
from kedge.optimize.proof.runner import run_all, session_of
from kedge_agent.formats.latency import summarize

__all__ = ["CONDITIONS", "against", "answers", "compared", "expected", "latency"]

Scores = NDArray[Any]

_WARMUP_MS, _ROUND_MS, _LEAST_RUNS = 300, 100, 5
CONDITIONS = (
    f"batch 1, 1 thread, closed loop, warm-up {_WARMUP_MS} ms; rounds of {_ROUND_MS} ms a model, all models of a "
    "case in each round, in an order drawn anew; speed-up: median over the rounds of FP32's p50 over the model's"
)


def answers(case: Case, models: Sequence[Path], *, faithful: bool) -> Scores:
    """Scores [n, classes] of all parts of a case, one model a part.

    faithful: Q/DQ pairs computed one by one as written, for a runtime that is not here.
    """
    parts = []
    for part, model in zip(case.parts, models, strict=True):
        # One thread: two that wait for one another on a machine that others use take twice the processor's time.
        session = session_of(model, faithful=faithful, threads=1)
        outputs = run_all(session, Samples({case.input: part.evaluation}))
        name = scores_name(outputs)
        if name is None:
            raise RuntimeError("no output is scores")
        parts.append(outputs[name].reshape(outputs[name].shape[:2]))
    return np.concatenate(parts)


def expected(case: Case, reference: Scores) -> NDArray[np.int64]:
    """Labels, or FP32's own answers where there are none."""
    if any(part.labels is None for part in case.parts):
        return predictions(reference)
    return np.concatenate([part.labels for part in case.parts if part.labels is not None])


def compared(reference: Scores, scores: Scores, labels: NDArray[np.int64]) -> dict[str, Any]:
    """How often right, with its interval; and against FP32: what was lost, agreement, cosine."""
    right = predictions(scores) == labels
    against_fp32 = compare({"scores": reference}, {"scores": scores}, labels).to_json()
    del against_fp32["outputs"]
    return {**Accuracy(int(np.count_nonzero(right)), int(right.size)).to_json(), "against_fp32": against_fp32}


def against(best: Scores, scores: Scores, labels: NDArray[np.int64]) -> dict[str, Any]:
    """A model against another: points behind (negative: ahead), their 95 % interval, McNemar's exact test."""
    found = compare({"scores": best}, {"scores": scores}, labels).to_json()
    low, high = found["drop_interval_95"]
    return {
        "points_behind": found["drop"] * 100,
        "interval_95": [low * 100, high * 100],
        "mcnemar": {
            "only_other": found["mcnemar"]["only_before"],
            "only_kedge": found["mcnemar"]["only_after"],
            "p_value": found["mcnemar"]["p_value"],
        },
    }


def latency(case: Case, models: Mapping[str, Path], rounds: int) -> dict[str, dict[str, Any]]:
    """By name, interleaved: percentiles over all runs, and the speed-up over the model named "FP32" round by round."""
    inputs = {case.input: case.parts[0].evaluation[:1]}
    sessions = {name: ReferenceModel(path, threads=1) for name, path in models.items()}
    for session in sessions.values():
        _run_for(session, inputs, _WARMUP_MS)
    times: dict[str, list[list[float]]] = {name: [] for name in models}
    order, draw = list(models), random.Random(0)  # noqa: S311 - not for secrets
    for _ in range(rounds):
        draw.shuffle(order)
        for name in order:
            times[name].append(_run_for(sessions[name], inputs, _ROUND_MS))
    typical = {name: [statistics.median(each) for each in of_rounds] for name, of_rounds in times.items()}
    out = {}
    for name, of_rounds in times.items():
        ratios = [fp32 / own for fp32, own in zip(typical["FP32"], typical[name], strict=True)]
        out[name] = {
            "summary": summarize([each for of_round in of_rounds for each in of_round]).to_json(),
            "speedup": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)},
        }
    return out


def _run_for(session: ReferenceModel, inputs: dict[str, NDArray[Any]], milliseconds: float) -> list[float]:
    samples: list[float] = []
    begin = time.perf_counter()
    while len(samples) < _LEAST_RUNS or (time.perf_counter() - begin) * 1e3 < milliseconds:
        start = time.perf_counter_ns()
        session.run(inputs)
        samples.append((time.perf_counter_ns() - start) / 1e6)
    return samples

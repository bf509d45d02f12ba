"""Keep in FP32 what costs the most accuracy: the search around a conversion that is judged on calibration data."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...model.graph import Graph
from ...model.samples import Samples
from ..proof.runner import run_all
from ..work import Work
from .simulate import simulation
from .static import output_error

__all__ = ["TOLERANCE_8_BITS", "Judge", "Refined", "refine"]

TOLERANCE_8_BITS = 0.01
"""Σ(y − ŷ)² / Σy² of outputs computed from 8 bits: for errors of no preferred direction, a cosine of 0.995."""

_RUNS = 40
_PARTS = 4
_SAMPLES = 64
_SAMPLES_A_PART = 16
# Keeping more must at least halve the error: rounding that all nodes share in is not taken away by keeping some.
_GAIN = 0.5


@dataclass(frozen=True)
class Refined:
    """The graph that was chosen. kept: names that it leaves in FP32 for their error, in the order they were found.

    error: relative squared error of its outputs; before: with none kept. None where there are no calibration data.
    """

    graph: Graph
    kept: tuple[str, ...] = ()
    error: float | None = None
    before: float | None = None


class Judge:
    """How far the outputs of a graph are off, on calibration data, as the target's runtime would compute them."""

    def __init__(self, graph: Graph, work: Work) -> None:
        self._samples = None if work.calibration is None else work.calibration.first(_SAMPLES)
        self._faithful = work.target.runtimes[0] != "onnxruntime"
        self._outputs = {} if self._samples is None else run_all(graph, self._samples)

    def error(self, made: Graph, limit: int = _SAMPLES) -> float | None:
        """Σ(y − ŷ)² / Σy², of at most `limit` samples; infinite where values are lost; None: there are no data."""
        if self._samples is None:
            return None
        samples: Samples = self._samples.first(limit)
        wanted = {name: values[: samples.count] for name, values in self._outputs.items()}
        runnable = (simulation(made) or made) if self._faithful else made
        found = run_all(runnable, samples, faithful=self._faithful)
        error = output_error(wanted, found)
        return error if math.isfinite(error) else math.inf


def refine(
    judge: Judge, work: Work, candidates: Sequence[str], build: Callable[[frozenset[str]], Graph], tolerance: float
) -> Refined:
    """Convert all candidates; while the outputs are off by more than `tolerance`, find those to blame, and keep them.

    A part of the candidates is judged by converting it alone. The worst part is divided in four, until single
    nodes are left: few sensitive nodes among many are found in few runs, by what they do to the outputs. Ends
    after 40 runs. Of what was tried as a whole, the first is chosen that is good enough, or that comes within twice
    of the least error.

    Args:
        candidates: names in the graph's order, for neighbours often share a fate.
        build: from the names to convert, a graph.
    """
    everything = frozenset(candidates)
    made = build(everything)
    before = judge.error(made)
    if before is None or before <= tolerance:
        return Refined(made, (), before, before)
    tries: list[tuple[float, Graph, tuple[str, ...]]] = [(before, made, ())]
    parts: list[tuple[float, int, tuple[str, ...]]] = [(-before, 0, tuple(candidates))]
    kept: list[str] = []
    runs = 0
    while parts and runs < _RUNS:
        work.progress("finding what to keep in FP32", runs / _RUNS)
        _, start, worst = heapq.heappop(parts)
        if len(worst) == 1:
            kept.append(worst[0])
        else:
            for offset, part in _divided(worst):
                heapq.heappush(
                    parts, (-(judge.error(build(frozenset(part)), _SAMPLES_A_PART) or 0.0), offset + start, part)
                )
                runs += 1
        # While one part alone is too far off, so is the whole.
        if len(worst) == 1 and (not parts or -parts[0][0] <= tolerance):
            tries.append(_whole(judge, build, everything, kept))
            runs += 1
            if tries[-1][0] <= tolerance:
                break
    if kept and len(tries[-1][2]) < len(kept):
        tries.append(_whole(judge, build, everything, kept))
    least = min(error for error, _, _ in tries)
    error, graph, names = next(entry for entry in tries if entry[0] <= max(least / _GAIN, tolerance))
    return Refined(graph, names, error, before)


def _whole(
    judge: Judge, build: Callable[[frozenset[str]], Graph], everything: frozenset[str], kept: list[str]
) -> tuple[float, Graph, tuple[str, ...]]:
    made = build(everything - set(kept))
    return judge.error(made) or 0.0, made, tuple(kept)


def _divided(names: tuple[str, ...]) -> list[tuple[int, tuple[str, ...]]]:
    size = math.ceil(len(names) / _PARTS)
    return [(start, names[start : start + size]) for start in range(0, len(names), size)]

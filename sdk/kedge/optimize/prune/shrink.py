"""Structured pruning to a share of the MACs, by blocks and channels in the mix that runs fastest once quantised."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from ...errors import BadInputError, IncompatibleError, KedgeError
from ...model.graph import Graph
from ..events import Events
from ..work import Latency, Result, Work
from .blocks import PruneBlocks
from .changes import sizes
from .channels import PruneChannels
from .counts import count
from .outputs import answers, drawn, output_error
from .residual import remove_block, residual_blocks

__all__ = ["Shrink", "shrink"]

Quantise = Callable[[Graph], Graph]

_LEAST_NOISE = 0.02


@dataclass(frozen=True)
class Shrink:
    """Get down to a share of the multiply-accumulates by taking out residual blocks and channels together.

    Which mix is fastest depends on the device far more than on the MACs, so a few are made, quantised to INT8 as the
    target wants it, and timed interleaved; among those within the measurement's noise of the fastest, the one whose
    outputs changed least is taken. Without something that measures, that rule alone decides.

    macs: the share. mixes: shares of the cut that blocks make; channels make the rest. speedup: when above 0,
    candidates this many times as fast as the unpruned model, by more than the measurement's noise, are fast enough, and
    the one of them whose outputs changed least is taken: the fastest is often the hardest to recover. The other fields
    are PruneBlocks' and PruneChannels'.
    """

    kind: ClassVar[str] = "prune-structured"

    macs: float = 0.5
    speedup: float = 0.0
    mixes: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    rounds: int = 8
    samples: int = 128
    importance: str = "data-free"
    scope: str = "global"
    round_to: int = 0
    max_ratio: float = 0.75
    ignore: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.macs) and 0 < self.macs < 1):
            raise BadInputError(f"macs {self.macs} is no share", hint="0.5 goes down to half")
        if not (math.isfinite(self.speedup) and self.speedup >= 0):
            raise BadInputError(f"speedup {self.speedup} is no factor", hint="1.5 asks for half as fast again")
        if not self.mixes or not all(0 <= mix <= 1 for mix in self.mixes):
            raise BadInputError(f"mixes {self.mixes} are no shares", hint="give numbers from 0 to 1")
        self.blocks(self.macs)
        self.channels(self.macs)

    def apply(self, graph: Graph, work: Work) -> Result:
        """Prune; candidates are quantised with the static INT8 quantiser's default settings.

        Raises:
            BadInputError: no calibration samples, or the MACs are not known.
            IncompatibleError: torch has no form for an operator, and the graph has no residual blocks either.
        """
        from ..quantize.static import quantize_static_int8

        return shrink(graph, work, self, partial(quantize_static_int8, work=work))

    def blocks(self, share: float) -> PruneBlocks:
        """The pass that takes out blocks."""
        return PruneBlocks(macs=share, rounds=self.rounds, samples=self.samples, exclude=self.exclude)

    def channels(self, share: float) -> PruneChannels:
        """The pass that takes out channels."""
        return PruneChannels(
            macs=share,
            importance=self.importance,
            scope=self.scope,
            round_to=self.round_to,
            max_ratio=self.max_ratio,
            ignore=self.ignore,
        )


@dataclass
class _Candidate:
    mix: float
    graph: Graph
    blocks: list[str]
    notes: tuple[str, ...]
    macs: int
    error: float
    latency: Latency | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "mix": self.mix,
            "blocks": len(self.blocks),
            "macs": self.macs,
            "output_error": self.error,
            "latency": None if self.latency is None else self.latency.to_json(),
        }


def shrink(graph: Graph, work: Work, rule: Shrink, quantise: Quantise | None) -> Result:
    """Prune by the rule.

    Args:
        quantise: makes of a candidate what is timed; None times the candidates as they are.

    Raises:
        BadInputError: no calibration samples, or the MACs are not known.
        IncompatibleError: torch has no form for an operator, and the graph has no residual blocks either.
    """
    whole = count(graph).macs
    if whole is None:
        raise BadInputError("the model's MACs are not known, for a dimension is free", hint="use prune-blocks: count")
    candidates, refusals = _candidates(graph, replace(work, probe=None), rule, whole)
    reached = [candidate for candidate in candidates if candidate.macs <= rule.macs * whole + 0.5]
    if not candidates:
        changed = {**sizes(graph, graph, work), "candidates": [], "reached": False}
        return Result(graph.copy(), changed, ("nothing to prune: no block and no channel can go", *refusals))
    judged = reached or [min(candidates, key=lambda candidate: candidate.macs)]
    baseline = _measure(graph, judged, work, quantise)
    best = _best(judged, baseline, rule.speedup)
    said = _tell(candidates, whole, work)
    changed = {
        **sizes(graph, best.graph, replace(work, probe=None)),
        # Of the quantised models, timed with the candidates: the pruned one is the chosen candidate.
        "latency": baseline and best.latency and {"before": baseline.to_json(), "after": best.latency.to_json()},
        "candidates": [candidate.to_json() for candidate in candidates],
        "chosen": candidates.index(best),
        "blocks": best.blocks,
        "reached": bool(reached),
    }
    return Result(best.graph, changed, (*_notes(best, baseline, quantise is not None, bool(reached)), *refusals, *said))


def _candidates(graph: Graph, work: Work, rule: Shrink, whole: int) -> tuple[list[_Candidate], tuple[str, ...]]:
    """One candidate for each mix that differs from the others; why some could not be made."""
    samples = drawn(work.need_calibration("choosing what to prune"), rule.samples, work.seed)
    reference = answers(graph, samples, work.scratch)
    deepest = max(rule.mixes)
    order: list[str] = []
    if deepest > 0 and residual_blocks(graph):
        ranked = rule.blocks(1 - deepest * (1 - rule.macs)).apply(graph, work)
        order = [entry["block"] for entry in ranked.changed["blocks"]]
    found: list[_Candidate] = []
    refusals: list[str] = []
    seen: set[int] = set()
    for done, mix in enumerate(sorted(set(rule.mixes))):
        smaller, gone = _without(graph, order, (1 - mix * (1 - rule.macs)) * whole)
        if len(gone) in seen:
            continue
        seen.add(len(gone))
        notes: tuple[str, ...] = ()
        left = count(smaller).macs or whole
        if left > rule.macs * whole:
            try:
                narrower = rule.channels(rule.macs * whole / left).apply(smaller, work)
                smaller, notes = narrower.graph, narrower.notes
            except IncompatibleError as error:
                refusals.append(f"channels cannot go: {error.message}")
        macs = count(smaller).macs or whole
        if macs < whole:
            change = output_error(reference, answers(smaller, samples, work.scratch))
            found.append(_Candidate(mix, smaller, gone, notes, macs, change))
        work.progress("make candidates", (done + 1) / len(rule.mixes))
    return found, tuple(dict.fromkeys(refusals))


def _without(graph: Graph, order: list[str], macs: float) -> tuple[Graph, list[str]]:
    """The graph without the first blocks of an order, as many as it takes to get down to these MACs."""
    gone: list[str] = []
    for name in order:
        if (count(graph).macs or 0) <= macs:
            break
        block = next((found for found in residual_blocks(graph) if found.name == name), None)
        if block is not None:
            graph = remove_block(graph, block)
            gone.append(name)
    return graph, gone


def _measure(graph: Graph, candidates: list[_Candidate], work: Work, quantise: Quantise | None) -> Latency | None:
    """Time all candidates and the unpruned graph together; gives the latter's latency."""
    if work.probe is None:
        return None
    paths = {}
    for name, model in {"before": graph, **{str(i): entry.graph for i, entry in enumerate(candidates)}}.items():
        path = work.scratch / f"shrink-{name}.onnx"
        try:
            (quantise(model) if quantise is not None else model).write(path)
        except KedgeError as error:
            raise IncompatibleError(
                f"a pruned candidate cannot be quantised, so it cannot be timed: {error.message}", hint=error.hint
            ) from error
        paths[name] = path
    measured: Mapping[str, Latency] = work.probe.measure(paths)
    for index, candidate in enumerate(candidates):
        candidate.latency = measured[str(index)]
    return measured["before"]


def _tell(candidates: list[_Candidate], whole: int, work: Work) -> list[str]:
    """Event files of the candidates; notes."""
    notes: list[str] = []
    with closing(Events(work, "prune-structured", work.scratch.name, notes, resumed=False)) as events:
        for index, each in enumerate(candidates):
            events.try_out(
                index,
                {"mix": each.mix, "blocks": len(each.blocks)},
                {
                    "candidate/macs": each.macs / whole,
                    "candidate/output_error": each.error,
                    "candidate/ms": None if each.latency is None else each.latency.p50_ms,
                },
            )
    return notes


def _best(candidates: list[_Candidate], baseline: Latency | None, speedup: float) -> _Candidate:
    """The one of least output error among those that are fast enough: `speedup`, or not told from the fastest."""
    timed = [(entry, entry.latency) for entry in candidates if entry.latency is not None]
    if not timed:
        return min(candidates, key=lambda entry: entry.error)
    _, fastest = min(timed, key=lambda pair: pair[1].p50_ms)
    if baseline is not None and speedup > 0:
        # Of several that are near the limit, the one that is taken would otherwise be one that noise has favoured.
        at_least = baseline.p50_ms - _noise(baseline)
        enough = [entry for entry, latency in timed if at_least >= speedup * (latency.p50_ms + _noise(latency))]
        if enough:
            return min(enough, key=lambda entry: entry.error)
    near = [entry for entry, latency in timed if latency.p50_ms - fastest.p50_ms <= _noise(latency) + _noise(fastest)]
    return min(near, key=lambda entry: entry.error)


def _noise(latency: Latency) -> float:
    """Two standard errors of the median, ms: 1.253 σ / √n (normal), σ from the 90th percentile; at least 2 %."""
    sigma = (latency.p90_ms - latency.p50_ms) / 1.2816
    return max(2 * 1.253 * sigma / float(np.sqrt(max(latency.samples, 1))), _LEAST_NOISE * latency.p50_ms / 2)


def _notes(best: _Candidate, baseline: Latency | None, quantised: bool, reached: bool) -> list[str]:
    notes = [f"{len(best.blocks)} residual blocks went: {', '.join(best.blocks) or 'none'}", *best.notes]
    if baseline is None or best.latency is None:
        notes.append("not measured: the mix was chosen by how little the outputs change")
    else:
        form = "INT8" if quantised else "as it is"
        notes.append(
            f"chosen by measured latency ({form}): p50 {baseline.p50_ms:.3f} ms before,"
            f" {best.latency.p50_ms:.3f} ms after ({baseline.p50_ms / best.latency.p50_ms:.2f} ×)"
        )
    if not reached:
        notes.append("the share asked for was not reached: this is the smallest candidate")
    return notes

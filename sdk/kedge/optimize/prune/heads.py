"""Structured pruning of attention: whole heads go, out of the projections that make them and that which reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
from onnx import helper

from ...errors import BadInputError
from ...model.graph import Graph
from ..work import Result, Work
from .attention import find_attention
from .changes import sizes
from .counts import count, layer_macs, shapes_at_batch_one
from .head_cut import Inputs, cut, measured_shapes, same_when_silenced
from .head_importance import Gates, weight_norms
from .head_labels import Heads, UnclearError, heads_of
from .outputs import answers, drawn, fixed_batch_of, output_error
from .weights import chosen, lift_constants

__all__ = ["PruneHeads"]

_ONE = "a block's only head cannot go"
_IMPORTANCES = ("auto", "output", "data-free")


@dataclass(frozen=True)
class PruneHeads:
    """Take out heads of attention (Michel et al. 2019, "Are Sixteen Heads Really Better than One?").

    The goal is the first of these that is above 0. heads: how many every block keeps. macs: share of the model's
    multiply-accumulates to get down to. ratio: share of the heads to take, over all blocks together.
    importance: "output" (change of the outputs on calibration samples with the head silenced, which is the sum of the
    outputs of the last projection without it), "data-free" (‖w‖₂ of all weights that go with it, as a share of the mean
    of its block), or "auto": "output" where there are calibration samples. For a goal in MACs, per MAC saved.
    rounds: how often heads that remain are ranked anew by "output": more is more exact.
    keep_least: no block keeps fewer. exclude: blocks that stay: names or shell patterns of one of their projections.
    samples: how many calibration samples, at most.
    """

    kind: ClassVar[str] = "prune-heads"

    ratio: float = 0.25
    macs: float = 0.0
    heads: int = 0
    importance: str = "auto"
    rounds: int = 1
    keep_least: int = 1
    exclude: tuple[str, ...] = ()
    samples: int = 64

    def __post_init__(self) -> None:
        for name, share in (("ratio", self.ratio), ("macs", self.macs)):
            if not (math.isfinite(share) and 0 <= share < 1):
                raise BadInputError(f"{name} {share} is no share", hint="give a number from 0 up to, but not, 1")
        if self.heads < 0 or self.keep_least < 1 or self.rounds < 1 or self.samples < 1:
            raise BadInputError(
                f"heads {self.heads}, keep_least {self.keep_least}, rounds {self.rounds} or samples {self.samples}"
                " is out of range",
                hint="heads 0 or more, the others 1 or more",
            )
        if not (self.heads or self.macs or self.ratio):
            raise BadInputError("pruning heads has no goal", hint="give heads, macs or ratio")
        if self.importance not in _IMPORTANCES:
            raise BadInputError(f"importance {self.importance!r} is not known", hint=", ".join(_IMPORTANCES))

    def apply(self, graph: Graph, work: Work) -> Result:
        """Prune. Every block is tried first: without half of its heads it must answer as with these heads silenced.

        Raises:
            BadInputError: a block named is not there; importance "output" has no calibration samples; MACs are the
                goal and not known; an input has a free dimension and there are no samples.
        """
        importance = self.importance
        if importance == "auto":
            importance = "output" if work.calibration is not None else "data-free"
        elif importance == "output":
            work.need_calibration('importance "output"')
        started = lift_constants(graph)
        trial = self._tried(started, work)
        gone = self._chosen(started, trial.blocks, importance, work)
        smaller = started
        for block in trial.blocks:
            taken = gone[block.attention.name]
            if taken:
                smaller = _without(smaller, block, taken, trial)
                taken = gone[block.attention.name] = [] if block.attention.name in trial.left else taken
        changed = {
            **sizes(graph, smaller, work),
            "layers": _layers(trial.blocks, gone),
            "left": trial.left,
            "importance": importance,
        }
        changed["reached"] = bool(trial.blocks) and self._reached(trial.blocks, gone, changed)
        if not changed["layers"]:
            return Result(graph.copy(), changed, (_nothing(trial), *_reasons(trial.left)))
        changed["output_error"] = self._error(graph, smaller, work)
        total = sum(len(taken) for taken in gone.values())
        notes = [f"{total} of {sum(block.count for block in trial.blocks)} heads went", *_reasons(trial.left)]
        if not changed["reached"]:
            notes.append("the share asked for was not reached: every block keeps as few heads as it may")
        return Result(smaller, changed, tuple(notes))

    def _tried(self, graph: Graph, work: Work) -> _Trial:
        """Blocks whose heads can go, and why those of the others cannot."""
        found, strange = find_attention(graph)
        kept = chosen(self.exclude, [name for block in found for name in block.layers])
        trial = _Trial(len(found) + len(strange), left=dict(strange))
        if not found:
            return trial
        trial.inputs = _example(graph, work)
        names = {
            name
            for block in found
            for node in (*block.projections, *block.inward, *block.onward, block.scores)
            for name in graph.by_name[node].output
        }
        shapes = measured_shapes(graph, sorted(names), trial.inputs)
        for done, block in enumerate(found):
            if kept & set(block.layers):
                trial.excluded += 1
                continue
            try:
                heads = heads_of(graph, block, shapes)
                if heads.count < 2:
                    raise UnclearError(_ONE)
                _without(graph, heads, range(heads.count // 2), trial)
            except UnclearError as reason:
                trial.left[block.name] = str(reason)
            if block.name not in trial.left:
                trial.blocks.append(heads)
            work.progress("try heads", (done + 1) / len(found))
        return trial

    def _chosen(self, graph: Graph, blocks: list[Heads], importance: str, work: Work) -> dict[str, list[int]]:
        """Heads to take from each block."""
        gone: dict[str, list[int]] = {block.attention.name: [] for block in blocks}
        pools = [[block] for block in blocks] if self.heads else [blocks]
        weights = {block.attention.name: 1.0 for block in blocks}
        whole = float(sum(block.count for block in blocks))
        if self.macs and not self.heads:
            weights, whole = _macs_of_a_head(graph, blocks)
        gates = None
        if importance == "output" and blocks:
            samples = drawn(work.need_calibration('importance "output"'), self.samples, work.seed)
            gates = Gates(graph, blocks, samples)
        rounds = self.rounds if gates else 1
        for turn in range(rounds):
            if gates:
                scores = gates.errors(gone, partial(_ranked, work, turn, rounds))
            else:
                scores = {
                    (block.attention.name, head): float(norm)
                    for block in blocks
                    for head, norm in enumerate(weight_norms(graph, block))
                }
            for pool in pools:
                goal = (turn + 1) / rounds * self._goal(pool, whole)
                self._take(pool, goal, scores, weights, gone)
        return {name: sorted(taken) for name, taken in gone.items()}

    def _goal(self, pool: list[Heads], whole: float) -> float:
        """How many heads, or MACs, the blocks give up together."""
        if self.heads:
            return float(sum(max(block.count - self.heads, 0) for block in pool))
        return (1 - self.macs) * whole if self.macs else round(self.ratio * whole)

    def _take(
        self,
        pool: list[Heads],
        goal: float,
        scores: Mapping[tuple[str, int], float],
        weights: Mapping[str, float],
        gone: dict[str, list[int]],
    ) -> None:
        """The least important heads until the goal is met. Fills `gone`."""
        counts = {block.attention.name: block.count for block in pool}
        ranked = sorted((score / weights[name], name, head) for (name, head), score in scores.items() if name in counts)
        for _, name, head in ranked:
            if sum(len(gone[each]) * weights[each] for each in counts) >= goal - 1e-9:
                return
            if head not in gone[name] and counts[name] - len(gone[name]) > self.keep_least:
                gone[name].append(head)

    def _reached(self, blocks: list[Heads], gone: Mapping[str, list[int]], changed: Mapping[str, Any]) -> bool:
        if self.heads:
            return all(block.count - len(gone[block.attention.name]) <= self.heads for block in blocks)
        if self.macs:
            macs = changed["macs"]
            return bool(macs["after"] is not None and macs["after"] <= self.macs * macs["before"] + 0.5)
        return sum(map(len, gone.values())) >= self._goal(blocks, float(sum(block.count for block in blocks)))

    def _error(self, graph: Graph, smaller: Graph, work: Work) -> float | None:
        """Relative change of the outputs on calibration samples; None: not measured."""
        if work.calibration is None:
            return None
        samples = drawn(work.calibration, self.samples, work.seed)
        return output_error(answers(graph, samples, work.scratch), answers(smaller, samples, work.scratch))


def _ranked(work: Work, turn: int, rounds: int, share: float) -> None:
    work.progress("rank heads", (turn + share) / rounds)


@dataclass
class _Trial:
    """found: blocks in all. blocks: those whose heads can go. left: why others stay. inputs: what was tried with."""

    found: int
    left: dict[str, str]
    excluded: int = 0
    blocks: list[Heads] = field(default_factory=list)
    inputs: Inputs = field(default_factory=dict)


def _without(graph: Graph, heads: Heads, gone: Any, trial: _Trial) -> Graph:
    """The graph without these heads; or as it is, and why, when that is not what silencing them gives."""
    try:
        smaller = cut(graph, heads, gone)
    except UnclearError as reason:
        trial.left[heads.attention.name] = str(reason)
        return graph
    if not same_when_silenced(graph, heads, gone, smaller, trial.inputs):
        trial.left[heads.attention.name] = "the model without them is not the model with them silenced"
        return graph
    return smaller


def _example(graph: Graph, work: Work) -> Inputs:
    """Two samples where there are any (as many as a fixed batch has), else noise."""
    size = fixed_batch_of(graph) or 2
    samples = work.calibration or work.train
    if samples is not None and samples.count >= size:
        return {name: np.ascontiguousarray(value[:size]) for name, value in samples.inputs.items()}
    shapes, random = shapes_at_batch_one(graph), np.random.default_rng(work.seed)
    made = {}
    for name in graph.input_names:
        if name not in shapes:
            raise BadInputError(f"input {name!r} has a free dimension", hint="give calibration data: --calibration")
        kind = helper.tensor_dtype_to_np_dtype(graph.types[name][0])
        noise = random.standard_normal(shapes[name])
        made[name] = (noise if kind.kind == "f" else np.abs(noise)).astype(kind)
    return made


def _macs_of_a_head(graph: Graph, blocks: list[Heads]) -> tuple[dict[str, float], float]:
    """MACs that go with one head of each block, and the model's."""
    whole, macs = count(graph).macs, layer_macs(graph)
    if whole is None:
        raise BadInputError("the model's MACs are not known, for a dimension is free", hint="give ratio or heads")
    found = {}
    for block in blocks:
        attention = block.attention
        nodes = (*attention.projections, attention.scores, attention.mix, attention.name)
        found[attention.name] = sum(macs[name] or 0 for name in nodes) / block.count
    return found, float(whole)


def _layers(blocks: list[Heads], gone: Mapping[str, list[int]]) -> dict[str, Any]:
    return {
        name: {"before": block.count, "after": block.count - len(gone[name]), "removed": gone[name]}
        for block in blocks
        if gone[name := block.attention.name]
    }


def _nothing(trial: _Trial) -> str:
    if not trial.found:
        return "nothing to prune: the graph has no attention"
    if set(trial.left.values()) == {_ONE} and not trial.excluded:
        return f"nothing to prune: each of the {trial.found} blocks of attention has one head"
    if trial.blocks:
        return "nothing to prune: no head has to go for this goal, or may"
    return "nothing to prune: no block's heads can go"


def _reasons(left: Mapping[str, str]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for name, reason in left.items():
        by_reason.setdefault(reason, []).append(name)
    return [f"heads left, for {reason}: {', '.join(names)}" for reason, names in by_reason.items()]

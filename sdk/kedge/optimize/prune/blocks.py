"""Structured pruning by depth: whole residual blocks go, those whose loss changes the outputs least."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from ...errors import BadInputError
from ...model.graph import Graph
from ...model.samples import Samples
from ..work import Result, Work
from .changes import sizes
from .counts import count
from .outputs import ERRORS, answers, drawn, output_error
from .residual import Block, remove_block, residual_blocks

__all__ = ["PruneBlocks"]


@dataclass(frozen=True)
class PruneBlocks:
    """Take out residual blocks: the sum x + f(x) becomes x (Veit et al. 2016 show that ResNets bear it).

    The goal is the first of these that is above 0. count: how many blocks go. latency: share of the time of one
    inference to get down to, measured. macs: share of the multiply-accumulates to get down to.
    Blocks go by the smallest change of the outputs on calibration samples; for a goal in MACs, by the smallest
    change per MAC saved.
    rounds: how often the blocks that remain are ranked anew; as many rounds as blocks is greedy and the most exact,
    1 ranks once. samples: how many calibration samples, at most 256. error: "mse" (relative) or "kl".
    exclude: names of Adds whose blocks stay.
    """

    kind: ClassVar[str] = "prune-blocks"

    count: int = 0
    latency: float = 0.0
    macs: float = 0.75
    rounds: int = 8
    samples: int = 128
    error: str = "mse"
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.count < 0 or self.rounds < 1 or not 1 <= self.samples <= 256:
            raise BadInputError(
                f"count {self.count}, rounds {self.rounds} or samples {self.samples} is out of range",
                hint="count 0 or more, rounds 1 or more, samples 1 to 256",
            )
        for name, share in (("latency", self.latency), ("macs", self.macs)):
            if not (math.isfinite(share) and 0 <= share <= 1):
                raise BadInputError(f"{name} {share} is no share", hint="0.5 goes down to half")
        if not (self.count or self.latency or self.macs):
            raise BadInputError("pruning blocks has no goal", hint="give count, latency or macs")
        if self.error not in ERRORS:
            raise BadInputError(f"error {self.error!r} is not known", hint=" or ".join(ERRORS))

    def apply(self, graph: Graph, work: Work) -> Result:
        """Prune.

        Raises:
            BadInputError: no calibration samples, or latency is the goal and nothing can measure it.
        """
        if self.latency and not self.count and work.probe is None:
            raise BadInputError("a latency share needs something that measures", hint="give macs or count instead")
        smaller, gone, whole = graph, list[dict[str, Any]](), count(graph).macs
        if not self._candidates(graph):
            changed = {**sizes(graph, graph, work), "blocks": [], "reached": False}
            return Result(graph.copy(), changed, ("nothing to prune: the graph has no residual block that can go",))
        samples = drawn(work.need_calibration("choosing blocks"), self.samples, work.seed)
        reference = answers(graph, samples, work.scratch)
        for turn in range(self.rounds):
            if self._done(graph, whole, smaller, len(gone), work):
                break
            ranked = self._ranked(smaller, reference, samples, work)
            for _, name, error in ranked[: self._quota(whole, smaller, len(ranked), len(gone), turn)]:
                if self._done(graph, whole, smaller, len(gone), work):
                    break
                # A block inside one that went is gone with it.
                block = next((found for found in self._candidates(smaller) if found.name == name), None)
                if block is not None:
                    smaller = remove_block(smaller, block)
                    gone.append({"block": name, "macs": block.macs, "error": error})
            work.progress("prune blocks", (turn + 1) / self.rounds)
        reached = self._done(graph, whole, smaller, len(gone), work)
        error = output_error(reference, answers(smaller, samples, work.scratch), self.error)
        changed = {**sizes(graph, smaller, work), "blocks": gone, "reached": reached, "output_error": error}
        return Result(smaller, changed, tuple(_notes(gone, reached)))

    def _candidates(self, graph: Graph) -> list[Block]:
        return [block for block in residual_blocks(graph) if block.name not in self.exclude]

    def _ranked(
        self, graph: Graph, reference: dict[str, NDArray[Any]], samples: Samples, work: Work
    ) -> list[tuple[float, str, float]]:
        """(rank, name, output error) of each block that could go, least first."""
        ranked = []
        for block in self._candidates(graph):
            found = answers(remove_block(graph, block), samples, work.scratch)
            error = output_error(reference, found, self.error)
            by_macs = not (self.count or self.latency) and bool(block.macs)
            ranked.append((error / block.macs if by_macs and block.macs else error, block.name, error))
        return sorted(ranked)

    def _quota(self, whole: int | None, smaller: Graph, ranked: int, gone: int, turn: int) -> int:
        """How many blocks may go before the next ranking: what remains to be done over the rounds that remain."""
        left = self.rounds - turn
        if self.count:
            return math.ceil((self.count - gone) / left)
        if left == 1:
            return ranked
        if self.latency:
            return math.ceil(ranked / left)
        now = count(smaller).macs
        blocks = [block.macs for block in self._candidates(smaller) if block.macs]
        if whole is None or now is None or not blocks:
            return ranked
        return max(1, math.ceil((now - self.macs * whole) / (sum(blocks) / len(blocks)) / left))

    def _done(self, graph: Graph, whole: int | None, smaller: Graph, gone: int, work: Work) -> bool:
        if self.count:
            return gone >= self.count
        if self.latency:
            measured = sizes(graph, smaller, work)["latency"]
            return bool(measured and measured["after"]["p50_ms"] <= self.latency * measured["before"]["p50_ms"])
        now = count(smaller).macs
        if whole is None or now is None:
            raise BadInputError(
                "the model's MACs are not known, for a dimension is free", hint="give a count of blocks instead"
            )
        return now <= self.macs * whole


def _notes(gone: list[dict[str, Any]], reached: bool) -> list[str]:
    notes = [f"{len(gone)} residual blocks went: {', '.join(entry['block'] for entry in gone) or 'none'}"]
    if not reached:
        notes.append("the goal was not reached: no more blocks could go")
    return notes

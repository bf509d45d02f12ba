"""The simplify pass: constants folded, BatchNormalization folded into convolutions, what nothing reads removed."""

from __future__ import annotations

import contextlib
import io
import logging
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from ..errors import IncompatibleError, first_line
from ..model.graph import Graph
from .rewrites import rewrite
from .work import Result, Work

__all__ = ["Simplify", "simplify"]


@dataclass(frozen=True)
class Simplify:
    """Pass: shape inference, constant folding, fusion of BatchNormalization, by onnxslim."""

    kind: ClassVar[str] = "simplify"

    def apply(self, graph: Graph, work: Work) -> Result:
        """Outputs stay what they were, but for the rounding of folded constants."""
        work.progress("simplifying", 0.0)
        out = simplify(graph)
        before, after = (Counter(node.op_type for node in each.nodes) for each in (graph, out))
        gone = {op: count - after[op] for op, count in sorted(before.items()) if count > after[op]}
        return Result(out, {"nodes_before": before.total(), "nodes_after": after.total(), "removed": gone})


def simplify(graph: Graph) -> Graph:
    """A simplified copy.

    Raises:
        IncompatibleError: onnxslim is missing, or cannot read the graph.
    """
    try:
        import onnxslim
    except ImportError as error:
        raise IncompatibleError("onnxslim is needed to simplify", hint="pip install 'kedge[optimize]'") from error
    # Equal constants stay apart: a pass that trains would train them as one.
    chatter = logging.getLogger("onnxslim")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            slimmed = onnxslim.slim(graph.copy().proto, skip_optimizations=["weight_tying"])
    except Exception as error:  # onnxslim raises many unrelated classes
        raise IncompatibleError(
            f"onnxslim cannot simplify this model: {first_line(error)}",
            hint="leave the simplify pass out of the recipe",
        ) from error
    finally:
        chatter.setLevel(level)
    # It drops inputs that nothing reads; whoever calls the model gives them all the same.
    left = {value.name: value for value in slimmed.graph.input}
    del slimmed.graph.input[:]
    slimmed.graph.input.extend(left.get(value.name, value) for value in graph.proto.graph.input)
    return rewrite(Graph(slimmed))

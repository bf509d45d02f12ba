"""A classifier's output as logits, whatever the graph ends in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor

from ...errors import BadInputError
from ...model.graph import Graph

__all__ = ["Head", "head_of"]

_SMALLEST = 1e-12
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


@dataclass(frozen=True)
class Head:
    """Where a graph's class scores are.

    output: the graph's output. tensor: what to read; the input of a last Softmax, where there is one.
    logarithm: the tensor holds probabilities, so that its logarithm is read. (For cross-entropy and for a
    softmax of any temperature log p serves as logits: it differs from them by a constant of the sample.)
    """

    output: str
    tensor: str
    logarithm: bool = False

    def logits(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Logits [n, classes].

        Raises:
            BadInputError: the scores have another shape.
        """
        scores = outputs[self.tensor]
        if scores.dim() > 2 and scores[0].numel() == scores.shape[1]:
            scores = scores.flatten(1)
        if scores.dim() != 2 or scores.shape[1] < 2:
            raise BadInputError(
                f"output {self.output!r} has shape {list(scores.shape)}; training needs scores [n, classes]",
                hint="only classifiers can be trained",
            )
        scores = scores.float()
        return torch.log(scores.clamp_min(_SMALLEST)) if self.logarithm else scores


def head_of(graph: Graph) -> Head:
    """The head of a graph: its first float output that may be [n, classes].

    Raises:
        BadInputError: there is none.
    """
    for name in graph.output_names:
        kind, shape = graph.types.get(name, (onnx.TensorProto.FLOAT, None))
        if kind not in _FLOATS or (shape is not None and (len(shape) < 2 or set(shape[2:]) - {1})):
            continue
        maker = graph.producer.get(name)
        if maker is not None and maker.op_type == "Softmax":
            return Head(name, maker.input[0])
        return Head(name, name, logarithm=_ends_in_softmax(graph, name))
    raise BadInputError("the model has no output of class scores [n, classes]", hint="only classifiers can be trained")


def _ends_in_softmax(graph: Graph, name: str) -> bool:
    """Whether a Softmax, or the exp(x) / sum that one is written as, lies before what only reshapes it."""
    maker = graph.producer.get(name)
    while maker is not None and maker.op_type in ("Identity", "Reshape", "Flatten", "Squeeze", "Cast"):
        maker = graph.producer.get(maker.input[0])
    if maker is None:
        return False
    if maker.op_type == "Div":
        above = graph.producer.get(maker.input[0])
        below = graph.producer.get(maker.input[1])
        return above is not None and below is not None and (above.op_type, below.op_type) == ("Exp", "ReduceSum")
    return maker.op_type == "Softmax"

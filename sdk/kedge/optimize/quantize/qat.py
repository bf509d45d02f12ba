"""The qat pass: train with quantisation in the loop, from where post-training quantisation ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...errors import BadInputError, IncompatibleError
from ...model.graph import Graph
from ..simplify import simplify
from ..train.settings import TrainSettings
from ..work import Result, Work
from .qdq import insert_qdq
from .static import StaticQuantizer
from .step import Quantize, require_precision, static_result

__all__ = ["QuantizationAwareTraining"]

_PRECISIONS = ("int8", "w4a8")


@dataclass(frozen=True)
class QuantizationAwareTraining(TrainSettings):
    """Pass: static quantisation whose weights and ranges are trained (Esser et al. 2020, LSQ).

    Training starts from the calibrated grids and ends in the same Q/DQ nodes that `quantize` writes.
    The fields of TrainSettings apply; these are its own:

    precision: "int8" or "w4a8". keep, calibrator, percentile, reduced_range: as for `quantize`.
    learn_scales: train the ranges too, not only the weights.
    """

    kind: ClassVar[str] = "qat"

    learning_rate: float = 5e-4
    epochs: int = 4
    distil: float = 0.7
    precision: str = "int8"
    keep: tuple[str, ...] = ()
    calibrator: str = "auto"
    percentile: float = 99.99
    reduced_range: str = "auto"
    learn_scales: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precision not in _PRECISIONS:
            raise BadInputError(f"qat does not train {self.precision!r}", hint=f"one of {', '.join(_PRECISIONS)}")
        self.quantize()

    def quantize(self) -> Quantize:
        """The pass that training starts from."""
        return Quantize(
            precision=self.precision,
            keep=self.keep,
            calibrator=self.calibrator,
            percentile=self.percentile,
            rounding="nearest",
            reduced_range=self.reduced_range,
        )

    def apply(self, graph: Graph, work: Work) -> Result:
        """Calibrate, train, and write the Q/DQ nodes.

        Raises:
            BadInputError: no training data, or training diverges.
            IncompatibleError: torch is missing or has no form of an operator, or the target lacks the precision.
        """
        try:
            import torch  # noqa: F401
        except ImportError as error:
            raise IncompatibleError("torch is needed to train", hint="pip install 'kedge[optimize]'") from error
        from ..train.qat import train_quantised

        require_precision(self.precision, work)
        start = self.quantize()
        quantizer = StaticQuantizer(simplify(graph), work, start.settings())
        kept = start.kept([node.name for node in quantizer.layers])
        plan = {node.name: "fp32" if node.name in kept else self.precision for node in quantizer.layers}
        placement, activations, weights = quantizer.parameters(plan)
        # A tensor that shares another's scale follows it: one scale is learnt for both.
        own = {name: params for name, params in activations.items() if name not in placement.same_scale}
        done = train_quantised(quantizer.graph, own, weights, work, self, learn_scales=self.learn_scales)
        learnt = dict(done.activations)
        for name in placement.same_scale:
            root = name
            while root in placement.same_scale:
                root = placement.same_scale[root]
            learnt[name] = learnt.get(root, activations[name])
        trained = insert_qdq(done.graph, placement, learnt, done.weights, integer_bias=quantizer.scheme.bias == "int32")
        described = static_result(quantizer, plan)
        return Result(
            trained,
            {**described.changed, **done.trained.to_json()},
            (*described.notes, *done.trained.notes),
            described.evidence,
        )

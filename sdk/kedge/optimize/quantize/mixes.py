"""What a mix of precisions costs, and how much accuracy it loses on data that the proof does not use."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...model.samples import Samples
from ...model.session import ReferenceModel
from ..proof.metrics import predictions, scores_of
from ..proof.runner import run_all
from ..prune.counts import layer_macs
from ..spread import spread
from ..work import Work
from .placement import weight_site
from .static import StaticQuantizer, output_error

__all__ = ["Evidence", "Judge", "Mix", "Prices", "judge_model"]

_BITS = {"fp32": 32, "int8": 8, "w4a8": 4}
# Without a measurement. INT8 on VNNI does four times the multiplications a cycle; half of it arrives in
# whole networks (ResNet-20 and -56 on one core here: 2.0 to 2.2 times).
_ASSUMED_INT8_TIME = 0.5
# Where two mixes take the same time, the smaller one: a tenth of the weight decides nothing else.
_SIZE_WEIGHT = 0.1
_JUDGED_SAMPLES = 4000


@dataclass(frozen=True)
class Mix:
    """A plan that was tried. time, size: shares of FP32's. drop: estimated, a share of samples; margin: its error."""

    number: int
    plan: Mapping[str, str]
    time: float
    size: float
    drop: float
    margin: float
    measured_ms: float | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Layers by precision."""
        return dict(sorted(Counter(self.plan.values()).items()))

    @property
    def cost(self) -> float:
        """What is minimised: time, and size where times are alike."""
        return self.time + _SIZE_WEIGHT * self.size


@dataclass
class Prices:
    """Estimates time and size of a plan from the layers' multiplications and weights.

    int8_time: time of a layer in INT8 over its time in FP32: measured on whole models where something measures.
    """

    quantizer: StaticQuantizer
    int8_time: float = _ASSUMED_INT8_TIME

    def __post_init__(self) -> None:
        graph = self.quantizer.graph
        macs = layer_macs(graph)
        names = [node.name for node in self.quantizer.layers]
        known = {name: float(macs.get(name) or 0) for name in names}
        total = sum(known.values())
        self._time = {name: known[name] / total if total else 1 / len(names) for name in names}
        values = {}
        for node in self.quantizer.layers:
            site = weight_site(graph, node)
            values[node.name] = float(np.prod(graph.initializers[site.tensor].dims)) if site is not None else 0.0
        held = sum(values.values())
        self._size = {name: values[name] / held if held else 0.0 for name in names}

    def of(self, plan: Mapping[str, str]) -> tuple[float, float]:
        """Time and size as shares of FP32's. Four bits are computed as INT8 here: they save bytes, not time."""
        time = sum(share * (1.0 if plan[name] == "fp32" else self.int8_time) for name, share in self._time.items())
        size = sum(share * _BITS[plan[name]] / 32 for name, share in self._size.items())
        return time, size

    def has_weights(self, name: str) -> bool:
        """Whether the layer stores weights: attention products do not."""
        return self._size[name] > 0

    def of_layer(self, name: str, precision: str) -> float:
        """What one layer adds to the cost of a plan."""
        time = self._time[name] * (1.0 if precision == "fp32" else self.int8_time)
        return time + _SIZE_WEIGHT * self._size[name] * _BITS[precision] / 32


@dataclass(frozen=True)
class Evidence:
    """What plans are judged by; it travels to whoever judges. outputs: of the model as it was.

    labels: None where agreement with the former answers is all that can be asked for.
    """

    samples: Samples
    outputs: Mapping[str, NDArray[Any]]
    labels: NDArray[np.int64] | None
    faithful: bool

    @property
    def before(self) -> NDArray[np.int64] | None:
        """The former answers; None where the outputs are no scores of classes."""
        return _answers(self.outputs)


def judge_model(evidence: Evidence, model: bytes) -> tuple[float, float]:
    """The estimated drop of a candidate, an ONNX file's bytes, and its standard error."""
    session = ReferenceModel(model, optimise=not evidence.faithful)
    outputs = run_all(session, evidence.samples)
    before, after = evidence.before, _answers(outputs)
    count = evidence.samples.count
    if before is None or after is None:
        # No classes: the share of the signal that is lost stands in for accuracy.
        return min(math.sqrt(output_error(evidence.outputs, outputs)), 1.0), 0.0
    if evidence.labels is None:
        share = float(np.mean(before != after))
        return share, math.sqrt(share * (1 - share) / count)
    right, now = before == evidence.labels, after == evidence.labels
    lost, won = float(np.mean(right & ~now)), float(np.mean(now & ~right))
    # Variance of a difference of paired proportions (McNemar's setting).
    return lost - won, math.sqrt(max(lost + won - (lost - won) ** 2, 0.0) / count)


def _answers(outputs: Mapping[str, NDArray[Any]]) -> NDArray[np.int64] | None:
    scores = scores_of(outputs)
    return None if scores is None else predictions(scores)


@dataclass
class Judge:
    """Estimates the accuracy plans lose: on training data with labels, or by agreement on calibration data.

    margin: one standard error of the estimate. A plan is held to drop + margin, because the network has
    seen its training data and is surer of them than of new ones.
    """

    quantizer: StaticQuantizer
    work: Work
    evidence: Evidence = field(init=False)

    def __post_init__(self) -> None:
        train = self.work.train
        labelled = train is not None and train.labels is not None
        samples = (train if labelled and train is not None else self.quantizer.samples).first(_JUDGED_SAMPLES)
        outputs = run_all(self.quantizer.graph, samples)
        self.evidence = Evidence(samples, outputs, samples.labels if labelled else None, self.quantizer.simulated)

    def drops(self, plans: Sequence[Mapping[str, str]]) -> Iterator[tuple[float, float]]:
        """The estimated drop of each plan, and its standard error, as they are judged."""
        models = (self.quantizer.build(plan).proto.SerializeToString() for plan in plans)
        return spread(judge_model, self.evidence, models, self.work.helpers)

    @property
    def conditions(self) -> str:
        """What the estimate rests on, for people."""
        count = self.evidence.samples.count
        if self.evidence.before is None:
            return f"relative error of the outputs on {count} calibration samples"
        if self.evidence.labels is None:
            return f"disagreement with FP32 on {count} calibration samples"
        return f"accuracy on {count} training samples"

"""The quantize pass: one precision for the layers of a model, or the best mix of several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import numpy as np

from ...errors import BadInputError, IncompatibleError
from ...model.graph import Graph
from ..simplify import simplify
from ..work import Result, Work
from .awq import AWQ
from .histogram import Histogram
from .placement import thin_layers
from .static import StaticQuantizer, StaticSettings

__all__ = ["PRECISIONS", "Quantize", "require_precision"]

_SHOWN_HISTOGRAMS = 6
_SHOWN_BINS = 128
_ON_TARGET = {"int8-dynamic": "int8", "w4a8": "int8", "auto": "int8"}


@dataclass(frozen=True)
class Quantize:
    """Pass: fewer bits, in the scheme of the target's runtime.

    precision: a key of PRECISIONS. keep: patterns of layer names that stay FP32.
    calibrator, percentile, rounding, reduced_range: see StaticSettings. rounding "awq", with int4 for TensorRT: clips
    by ModelOpt (extra `modelopt`).
    max_drop: for "auto", the accuracy that may be lost, as a share of samples (0.002: 0.2 points).
    max_time, max_size: for "auto", a budget instead, as a share of FP32's; accuracy is then maximised.
    trials: for "auto", how many mixes are tried.
    """

    kind: ClassVar[str] = "quantize"

    precision: str = "int8"
    keep: tuple[str, ...] = ()
    calibrator: str = "auto"
    percentile: float = 99.99
    rounding: str = "adaround"
    reduced_range: str = "auto"
    max_drop: float = 0.01
    max_time: float = 0.0
    max_size: float = 0.0
    trials: int = 24

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise BadInputError(f"no precision named {self.precision!r}", hint=f"one of {', '.join(PRECISIONS)}")
        for name, value, high in (
            ("max_drop", self.max_drop, 1),
            ("max_time", self.max_time, 10),
            ("max_size", self.max_size, 10),
        ):
            if not 0 <= value <= high:
                raise BadInputError(f"{name} is {value}", hint=f"give a share from 0 to {high}")
        if self.rounding == AWQ and self.precision != "int4":
            raise BadInputError(f"AWQ is for int4 weights, not {self.precision}", hint="round to nearest, or adaround")
        if not 1 <= self.trials <= 10_000:
            raise BadInputError(f"trials is {self.trials}", hint="from 1 to 10000; 24 is usual")
        self.settings()

    def settings(self) -> StaticSettings:
        """The part that static quantisation takes."""
        rounding = "nearest" if self.rounding == AWQ else self.rounding
        return StaticSettings(self.calibrator, self.percentile, rounding, self.reduced_range)

    def apply(self, graph: Graph, work: Work) -> Result:
        """Quantise the graph.

        Raises:
            IncompatibleError: the target does not run this precision.
            BadInputError: data are missing, or a pattern names no layer.
        """
        require_precision(self.precision, work)
        return PRECISIONS[self.precision](self, graph, work)

    def kept(self, names: list[str]) -> set[str]:
        """The layers that stay FP32.

        Raises:
            BadInputError: a pattern names no layer.
        """
        out: set[str] = set()
        for pattern in self.keep:
            # Exporters write brackets into names, which a pattern would read as a set of letters.
            found = {name for name in names if name == pattern or fnmatchcase(name, pattern)}
            if not found:
                raise BadInputError(
                    f"no layer matches {pattern!r}",
                    hint=f"layers: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}",
                )
            out |= found
        return out


def require_precision(precision: str, work: Work) -> None:
    """Refuse a precision that the target does not run.

    Raises:
        IncompatibleError: it does not.
    """
    wanted = _ON_TARGET.get(precision, precision)
    target = work.target
    if wanted not in target.precisions:
        raise IncompatibleError(
            f"{target.name} runs {', '.join(target.precisions)}, not {wanted}", hint="see: kedge targets show"
        )
    if precision == "int8-dynamic" and target.runtimes[0] != "onnxruntime":
        raise IncompatibleError(
            f"{target.runtimes[0]} has no dynamic INT8: it wants every range stated in the model",
            hint="quantise statically: --quantize int8 with --calibration",
        )


def _static(step: Quantize, graph: Graph, work: Work) -> Result:
    quantizer = StaticQuantizer(simplify(graph), work, step.settings())
    kept = step.kept([node.name for node in quantizer.layers])
    if step.precision == "int8":
        kept |= thin_layers(quantizer.graph, quantizer.layers, work.target.int8.float_below_channels)
    plan = {node.name: "fp32" if node.name in kept else step.precision for node in quantizer.layers}
    return static_result(quantizer, plan)


def static_result(quantizer: StaticQuantizer, plan: dict[str, str], **changed: Any) -> Result:
    """The pass's result for a plan: graph, what was chosen, histograms of the widest-clipped activations."""
    graph = quantizer.build(plan)
    placement, activations, _ = quantizer.parameters(plan)
    counts = {precision: list(plan.values()).count(precision) for precision in sorted(set(plan.values()))}
    notes = []
    if "w4a8" in counts:
        notes.append("4-bit weights are simulated: they are stored and computed as INT8, and make nothing faster")
    if quantizer.simulated:
        notes.append(
            f"accuracy is simulated on this host's CPU: {quantizer.work.target.runtimes[0]} runs on the device"
        )
    scheme = quantizer.scheme
    facts = {
        "activations": scheme.activations,
        "weights": scheme.weights,
        "symmetric": scheme.symmetric,
        "bias": scheme.bias,
        "placement": scheme.placement,
        "reduced_range": quantizer.reduced_range,
        "calibrator": quantizer.calibrator,
        "calibrator_errors": quantizer.errors,
        "calibration_samples": quantizer.samples.count,
        "rounding": quantizer.settings.rounding,
        "layers": counts,
        "quantized_activations": len(placement.activations),
    }
    shown = {name: params for name, params in activations.items() if name not in placement.same_scale}
    return Result(
        graph,
        {**facts, **changed},
        tuple(notes),
        {
            "precision": {name: precision for name, precision in plan.items() if precision != "fp32"},
            "histograms": _histograms(quantizer, shown, placement.activations, plan),
        },
    )


def _histograms(quantizer: StaticQuantizer, shown: Any, readers: Any, plan: dict[str, str]) -> list[dict[str, Any]]:
    rows = []
    for tensor, histogram in quantizer.histograms(set(shown)).items():
        params = shown[tensor]
        low = float((params.low - int(params.zero_point)) * params.scale)
        high = float((params.high - int(params.zero_point)) * params.scale)
        fake = params.fake(histogram.centres)
        power = float(np.sum(histogram.counts * histogram.centres**2)) or 1.0
        error = float(np.sum(histogram.counts * (histogram.centres - fake) ** 2)) / power
        maker = quantizer.graph.producer.get(tensor)
        layer = next((node for node, _ in sorted(readers[tensor]) if node in plan), maker.name if maker else tensor)
        rows.append((error, tensor, layer, histogram, (low, high)))
    rows.sort(key=lambda row: (-row[0], row[1]))
    return [
        {
            "tensor": tensor,
            "layer": layer,
            "low": histogram.low,
            "high": histogram.high,
            "counts": _coarse(histogram),
            "range": list(ends),
            "precision": plan.get(layer, "int8"),
        }
        for _, tensor, layer, histogram, ends in rows[:_SHOWN_HISTOGRAMS]
    ]


def _coarse(histogram: Histogram) -> list[int]:
    return [int(count) for count in histogram.counts.reshape(_SHOWN_BINS, -1).sum(axis=1)]


def _half(step: Quantize, graph: Graph, work: Work) -> Result:
    from .lowfloat import convert

    return convert(step, simplify(graph), work)


def _float8(step: Quantize, graph: Graph, work: Work) -> Result:
    from .float8 import quantize_float8

    return quantize_float8(step, simplify(graph), work)


def _four_bits(step: Quantize, graph: Graph, work: Work) -> Result:
    from .weight_only import quantize_int4

    return quantize_int4(step, simplify(graph), work)


def _dynamic(step: Quantize, graph: Graph, work: Work) -> Result:
    from .weight_only import quantize_dynamic

    return quantize_dynamic(step, simplify(graph), work)


def _mixed(step: Quantize, graph: Graph, work: Work) -> Result:
    from .search import search_mix

    return search_mix(step, simplify(graph), work)


PRECISIONS: dict[str, Callable[[Quantize, Graph, Work], Result]] = {
    "int8": _static,
    "int8-dynamic": _dynamic,
    "w4a8": _static,
    "int4": _four_bits,
    "fp16": _half,
    "bf16": _half,
    "fp8": _float8,
    "auto": _mixed,
}
"""What --quantize takes."""

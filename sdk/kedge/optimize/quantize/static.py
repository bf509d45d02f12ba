"""Static INT8 (and simulated W4A8): observe once, then build a graph for any plan of precisions by layer."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInputError, IncompatibleError
from ...model.graph import Graph
from ...model.samples import Samples
from ...targets import Int8Scheme
from ..proof.runner import run_all
from ..work import Work
from .affine import INT4, INT8, INT8_NARROW, INT8_REDUCED, UINT8, Grid, QuantParams
from .calibrate import CALIBRATOR_NAMES, OUTPUT, Range, check_percentile, choose_range, params_for, weight_params
from .histogram import Histogram, observe
from .placement import Placement, place, quantizable, weight_site
from .qdq import insert_qdq

__all__ = ["AUTO_CALIBRATORS", "StaticQuantizer", "StaticSettings", "output_error", "quantize_static_int8"]

AUTO_CALIBRATORS = ("min-max", "percentile", "mse")
_COMPARED_SAMPLES = 128

Plan = Mapping[str, str]
"""Precision by layer name: "int8" or "w4a8"; a layer that is not named stays FP32."""


@dataclass(frozen=True)
class StaticSettings:
    """calibrator: one of CALIBRATOR_NAMES, or "auto": the one whose outputs stay closest to FP32.
    percentile: for that calibrator. rounding of 4-bit weights: "nearest", or "adaround" (a minute for a small network).
    reduced_range: "yes", "no", or "auto": where the profile names a CPU feature that this host lacks.
    """

    calibrator: str = "auto"
    percentile: float = 99.99
    rounding: str = "nearest"
    reduced_range: str = "auto"

    def __post_init__(self) -> None:
        _one_of("calibrator", self.calibrator, ("auto", *CALIBRATOR_NAMES))
        check_percentile(self.percentile)
        _one_of("rounding", self.rounding, ("nearest", "adaround"))
        _one_of("reduced_range", self.reduced_range, ("auto", "yes", "no"))


@dataclass
class StaticQuantizer:
    """Observes a float graph once; builds quantised graphs from it.

    graph: simplified, FP32. calibrator: the one in use, after `choose_calibrator`.
    errors: relative output error by calibrator, where they were compared.
    """

    graph: Graph
    work: Work
    settings: StaticSettings = field(default_factory=StaticSettings)
    calibrator: str = ""
    errors: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.samples = self.work.need_calibration("static quantisation")
        self.layers = quantizable(self.graph)
        if not self.layers:
            raise IncompatibleError(
                "the model has no layer to quantise", hint="Conv, ConvTranspose, Gemm and MatMul layers are quantised"
            )
        self.scheme = self.work.target.int8
        self.reduced_range = self.settings.reduced_range == "yes" or (
            self.settings.reduced_range == "auto" and lacks_feature(self.scheme)
        )
        self._histograms: dict[str, Histogram] = {}
        self._ranges: dict[tuple[str, str], Range] = {}
        self._judged: dict[tuple[str, tuple[tuple[str, str, str], ...]], Range | None] = {}
        self._weights: dict[tuple[str, str], QuantParams] = {}
        self._rounded: dict[tuple[str, str], NDArray[np.float32]] = {}
        if self.settings.calibrator != "auto":
            self.calibrator = self.settings.calibrator

    def histograms(self, tensors: Mapping[str, object] | set[str]) -> dict[str, Histogram]:
        """Histograms of activations, observed when first asked for."""
        missing = set(tensors) - set(self._histograms)
        if missing:
            self.work.progress("calibrating", 0.0)
            self._histograms |= observe(self.graph, missing, self.samples, self.work.progress)
        return {name: self._histograms[name] for name in tensors}

    def choose_calibrator(self, plan: Plan) -> str:
        """Settle on a calibrator: compare the automatic candidates on this plan, unless one is set."""
        if self.calibrator:
            return self.calibrator
        some = self.samples.first(_COMPARED_SAMPLES)
        reference = run_all(self.graph, some)
        for index, candidate in enumerate(AUTO_CALIBRATORS):
            self.work.progress("comparing calibrators", index / len(AUTO_CALIBRATORS))
            self.calibrator = candidate
            # Rounded to nearest: adaptive rounding takes its time, and starts from the ranges chosen here.
            self.errors[candidate] = self.error(self._built(plan, adaptively=False), some, reference)
        self.calibrator = min(AUTO_CALIBRATORS, key=lambda name: self.errors[name])
        return self.calibrator

    def error(self, quantized: Graph, samples: Samples, reference: Mapping[str, NDArray[Any]]) -> float:
        """Relative squared error of the outputs against the reference's."""
        return output_error(reference, run_all(quantized, samples, faithful=self.simulated))

    @property
    def simulated(self) -> bool:
        """Whether this machine can only imitate what the target's runtime will compute."""
        return self.work.target.runtimes[0] != "onnxruntime"

    def parameters(self, plan: Plan) -> tuple[Placement, dict[str, QuantParams], dict[str, QuantParams]]:
        """Placement, activation parameters by tensor and weight parameters by layer, for a plan."""
        self.choose_calibrator(plan)
        placement = place(
            self.graph, {name for name, precision in plan.items() if precision != "fp32"}, self.work.target
        )
        roots = {tensor: _root(tensor, placement.same_scale) for tensor in placement.activations}
        self.histograms(set(roots.values()))
        weights = {name: self.weight(name, plan[name]) for name in placement.weights}
        ranges = {root: self._range(root) for root in set(roots.values())}
        if self.calibrator == OUTPUT:
            ranges |= self._ranges_by_output(plan, placement, roots, weights)
        grid, is_symmetric = self.activation_grid(), self.scheme.symmetric
        chosen = {root: params_for(*ends, grid, is_symmetric=is_symmetric) for root, ends in ranges.items()}
        return placement, {tensor: chosen[root] for tensor, root in roots.items()}, weights

    def build(self, plan: Plan) -> Graph:
        """The graph with the named layers quantised."""
        return self._built(plan, adaptively=self.settings.rounding == "adaround")

    def _built(self, plan: Plan, *, adaptively: bool) -> Graph:
        if not any(precision != "fp32" for precision in plan.values()):
            return self.graph.copy()
        placement, activations, weights = self.parameters(plan)
        source = self.graph
        # Only weights of four bits are rounded adaptively; torch, which that takes, is not imported for others.
        if adaptively and "w4a8" in plan.values():
            source = self._adaptively_rounded(plan, placement, activations, weights)
        return insert_qdq(source, placement, activations, weights, integer_bias=self.scheme.bias == "int32")

    def weight(self, layer: str, precision: str) -> QuantParams:
        """Parameters of a layer's weight at a precision."""
        key = (layer, precision)
        if key not in self._weights:
            site = weight_site(self.graph, self.graph.by_name[layer])
            assert site is not None
            grid = INT4 if precision == "w4a8" else self._weight_grid()
            values = self.graph.array(site.tensor).astype(np.float32)
            self._weights[key] = weight_params(values, grid, site.axis, search=precision == "w4a8")
        return self._weights[key]

    def activation_grid(self) -> Grid:
        """The grid of activations."""
        return UINT8 if self.scheme.activations == "uint8" else INT8

    def _weight_grid(self) -> Grid:
        return INT8_REDUCED if self.reduced_range else INT8_NARROW

    def _range(self, tensor: str) -> Range:
        calibrator = "mse" if self.calibrator == OUTPUT else self.calibrator
        key = (tensor, calibrator)
        if key not in self._ranges:
            self._ranges[key] = choose_range(
                self._histograms[tensor],
                calibrator,
                self.activation_grid(),
                is_symmetric=self.scheme.symmetric,
                percentile=self.settings.percentile,
            )
        return self._ranges[key]

    def _ranges_by_output(
        self, plan: Plan, placement: Placement, roots: Mapping[str, str], weights: Mapping[str, QuantParams]
    ) -> dict[str, Range]:
        try:
            from .output_mse import Readers, judge_ranges
        except ImportError as error:
            raise IncompatibleError(
                "torch is needed to judge ranges by outputs", hint="pip install 'kedge[optimize]', or --calibrator mse"
            ) from error
        readers: dict[str, set[tuple[str, str]]] = {root: set() for root in roots.values()}
        for tensor, takers in placement.activations.items():
            for name, _ in takers:
                moved = any(output in placement.same_scale for output in self.graph.by_name[name].output)
                if not moved:
                    readers[roots[tensor]].add((tensor, name if name in weights else ""))
        # What is best for a tensor depends on how its readers' weights are rounded.
        keys = {
            root: (root, tuple(sorted((*pair, plan.get(pair[1], "")) for pair in pairs)))
            for root, pairs in readers.items()
        }
        missing = {root: key for root, key in keys.items() if key not in self._judged}
        if missing:
            self.work.progress("judging ranges by outputs", 0.0)
            extremes = {root: (self._histograms[root].low, self._histograms[root].high) for root in missing}
            found = judge_ranges(
                self.graph,
                {root: Readers(extremes[root], tuple(sorted(readers[root]))) for root in missing},
                weights,
                self.activation_grid(),
                self.samples,
                is_symmetric=self.scheme.symmetric,
                seed=self.work.seed,
            )
            self._judged |= {key: found.get(root) for root, key in missing.items()}
        return {root: ends for root, key in keys.items() if (ends := self._judged[key]) is not None}

    def _adaptively_rounded(
        self,
        plan: Plan,
        placement: Placement,
        activations: Mapping[str, QuantParams],
        weights: Mapping[str, QuantParams],
    ) -> Graph:
        from .adaround import round_adaptively

        wanted = [name for name in placement.weights if plan[name] == "w4a8"]
        missing = [name for name in wanted if (name, self.calibrator) not in self._rounded]
        if missing:
            found = round_adaptively(
                self.graph, {name: weights[name] for name in missing}, activations, self.samples, self.work
            )
            self._rounded |= {(name, self.calibrator): values for name, values in found.items()}
        out = self.graph.copy()
        for name in wanted:
            node = out.by_name[name]
            own = out.unused_name(f"{node.input[1]}_rounded")
            out.set_array(own, self._rounded[name, self.calibrator])
            node.input[1] = own
            out.touched()
        return out


def quantize_static_int8(graph: Graph, work: Work) -> Graph:
    """Every layer to INT8, with default settings: what other passes time candidates with."""
    quantizer = StaticQuantizer(graph, work, StaticSettings(calibrator="min-max"))
    return quantizer.build({node.name: "int8" for node in quantizer.layers})


def output_error(reference: Mapping[str, NDArray[Any]], values: Mapping[str, NDArray[Any]]) -> float:
    """Mean over the outputs of Σ(y − ŷ)² / Σy²; of outputs that are no real numbers, of the share that differs."""
    errors = []
    for name, expected in reference.items():
        if expected.dtype.kind != "f":
            errors.append(float(np.mean(expected != values[name])))
            continue
        y, found = expected.astype(np.float64), values[name].astype(np.float64)
        errors.append(float(np.sum((y - found) ** 2) / max(float(np.sum(y**2)), 1e-30)))
    return float(np.mean(errors)) if errors else 0.0


def lacks_feature(scheme: Int8Scheme, read: Callable[[], str] | None = None) -> bool:
    """Whether this host lacks the CPU feature without which the scheme's weights keep to 7 bits."""
    if scheme.reduced_range_without is None:
        return False
    if platform.system() != "Linux":
        return True
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace") if read is None else read()
    except OSError:
        return True
    return scheme.reduced_range_without not in flags


def _root(tensor: str, same_scale: Mapping[str, str]) -> str:
    while tensor in same_scale:
        tensor = same_scale[tensor]
    return tensor


def _one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise BadInputError(f"{what} is {value!r}", hint=f"one of {', '.join(allowed)}")

"""FP8 (E4M3) by Q/DQ pairs, for runtimes that compute it: activations per tensor, weights per output channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInputError, IncompatibleError
from ...model.graph import Graph
from ..work import Result, Work
from .affine import QuantParams
from .histogram import observe
from .placement import WeightSite, place, quantizable
from .qdq import insert_qdq
from .refine import TOLERANCE_8_BITS, Judge, refine
from .step import Quantize

__all__ = ["E4M3_MAX", "Float8Params", "quantize_float8"]

E4M3_MAX = 448.0
"""The largest finite E4M3. Source: Micikevicius et al. 2022, "FP8 Formats for Deep Learning", table 1."""

_OPSET, _IR_VERSION = 19, 9
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Float8Params(QuantParams):
    """Scale of a tensor in E4M3: q = E4M3(x / s), to nearest, ties to even, saturated; x̂ = s · q."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """E4M3 without infinities, as ONNX's FLOAT8E4M3FN."""
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(ml_dtypes.float8_e4m3fn)
        return found

    def quantize(self, values: NDArray[Any]) -> NDArray[Any]:
        """q of each value, in E4M3."""
        scale, _ = self._aligned(values.ndim)
        # Beyond the largest, the conversion makes NaN.
        scaled = np.clip(values.astype(np.float64) / scale, -E4M3_MAX, E4M3_MAX)
        return np.asarray(scaled.astype(np.float32).astype(self.dtype))

    def dequantize(self, q: NDArray[Any]) -> NDArray[np.float32]:
        """x̂ of each value in E4M3."""
        scale, _ = self._aligned(q.ndim)
        return np.asarray(q.astype(np.float64) * scale, dtype=np.float32)


def quantize_float8(step: Quantize, graph: Graph, work: Work) -> Result:
    """Every layer but those kept to FP8: s = max|x| / 448, of all calibration data.

    Raises:
        IncompatibleError: the model has no layer for it, or its opset cannot be raised.
        BadInputError: calibration data are missing, or another calibrator is asked for.
    """
    if work.target.int8.placement != "tensorrt":
        raise IncompatibleError(
            f"{work.target.runtimes[0]} computes nothing in FP8", hint="for this runtime: --quantize int8"
        )
    if step.calibrator not in ("auto", "min-max"):
        raise BadInputError(
            f"FP8 takes the largest magnitude, not {step.calibrator}: a float type loses little by an outlier",
            hint="leave the calibrator at auto",
        )
    samples = work.need_calibration("FP8")
    source = graph.copy()
    source.add_opset(_OPSET)
    source.proto.ir_version = max(source.proto.ir_version, _IR_VERSION)
    layers = [node.name for node in quantizable(source)]
    wanted = set(layers) - step.kept(layers) if layers else set()
    placed = place(source, wanted, work.target)
    if not placed.activations:
        raise IncompatibleError(
            "the model has no layer to compute in FP8", hint="Conv, Gemm and MatMul layers are quantised"
        )
    activations: dict[str, QuantParams] = {}
    weights = {name: _weight_params(source, site) for name, site in placed.weights.items()}

    def build(chosen: frozenset[str]) -> Graph:
        placement = place(source, set(chosen), work.target)
        # With other layers chosen, another operand of a residual Add may be the one that is quantised.
        for name, seen in observe(source, set(placement.activations) - set(activations), samples).items():
            activations[name] = _params(np.asarray(max(abs(seen.low), abs(seen.high))))
        return insert_qdq(source, placement, activations, weights, integer_bias=False)

    readers = {node for some in placed.activations.values() for node, _ in some}
    candidates = [name for name in layers if name in readers & wanted]
    done = refine(Judge(graph, work), work, candidates, build, TOLERANCE_8_BITS)
    taken = set(candidates) - set(done.kept)
    return Result(
        done.graph,
        {
            "activations": "fp8-e4m3",
            "weights": "fp8-e4m3",
            "placement": work.target.int8.placement,
            "calibration_samples": samples.count,
            "layers": {"fp32": len(layers) - len(taken), "fp8": len(taken)},
            "kept_for_their_error": list(done.kept),
            "output_error": done.error,
        },
        (f"accuracy is simulated on this host's CPU: {work.target.runtimes[0]} runs on the device",),
        {"precision": dict.fromkeys(sorted(taken), "fp8")},
    )


def _params(amax: NDArray[Any], axis: int | None = None) -> Float8Params:
    scale = np.asarray(np.maximum(amax.astype(np.float64) / E4M3_MAX, _SMALLEST_SCALE), dtype=np.float32)
    return Float8Params(scale, np.zeros(scale.shape, np.int64), -int(E4M3_MAX), int(E4M3_MAX), axis)


def _weight_params(graph: Graph, site: WeightSite) -> Float8Params:
    magnitudes = np.abs(graph.array(site.tensor))
    if site.axis is None:
        return _params(np.asarray(magnitudes.max(initial=0.0)))
    others = tuple(axis for axis in range(magnitudes.ndim) if axis != site.axis)
    return _params(magnitudes.max(axis=others, initial=0.0), site.axis)

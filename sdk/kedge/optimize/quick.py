"""The shortest way to a static INT8 file: for the demo, and for callers that want no report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..config import cache_dir
from ..model.graph import Graph
from ..model.onnx_io import read_model, require_float
from ..model.samples import Samples
from ..targets import Target
from .quantize.step import Quantize
from .work import Work

__all__ = ["Quantized", "quantize_int8"]


@dataclass(frozen=True)
class Quantized:
    """What was done: types, reduced range or not, the calibrator that was chosen."""

    activations: str
    weights: str
    reduced_range: bool
    calibrator: str


def quantize_int8(model: Path, calibration: Mapping[str, NDArray[Any]], target: Target, out: Path) -> Quantized:
    """Quantise an ONNX file to static INT8 in the target's scheme.

    Args:
        calibration: inputs by name, samples along the first axis.

    Raises:
        BadInputError: the model is quantised already, or the calibration data do not fit it.
        IncompatibleError: a library is missing, or nothing in the model can be quantised.
    """
    require_float(read_model(model), str(model))
    graph = Graph.read(model)
    samples = Samples(calibration, name="calibration")
    folder = cache_dir() / "optimize"
    result = Quantize().apply(graph, Work(target, graph, samples, None, scratch=folder, cache=folder))
    result.graph.write(out)
    changed = result.changed
    return Quantized(changed["activations"], changed["weights"], changed["reduced_range"], changed["calibrator"])

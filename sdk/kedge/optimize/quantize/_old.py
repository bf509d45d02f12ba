"""Static INT8 for the scheme the target's runtime wants, calibrated on the user's data."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from kedge_agent.formats.tensors import DYNAMIC

from ..errors import BadInputError, IncompatibleError, first_line
from ..model.onnx_io import ModelSpec, read_model
from ..targets import Int8Scheme, Target

__all__ = ["Quantized", "quantize_int8"]


@dataclass(frozen=True)
class Quantized:
    """What was done: types, reduced range or not, number of calibration batches."""

    activations: str
    weights: str
    reduced_range: bool
    calibration_batches: int


def quantize_int8(model: Path, calibration: Mapping[str, NDArray[Any]], target: Target, out: Path) -> Quantized:
    """Quantise an ONNX model to static INT8 (QDQ, weights per channel, min-max calibration).

    Args:
        calibration: inputs by name, samples along the first axis.

    Raises:
        BadInputError: the model is quantised already, or the calibration data do not fit it.
        IncompatibleError: onnxruntime is not installed, or cannot quantise this model.
    """
    spec = read_model(model)
    if spec.is_quantized:
        raise BadInputError(f"{model} is quantised already", hint="start from the FP32 model")
    batches = _batches(spec, calibration)
    try:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise IncompatibleError("onnxruntime is needed to quantise", hint="pip install 'kedge[optimize]'") from error

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(batches)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self._left, None)

    kinds = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}
    reduced = _reduced_range(target.int8)
    with tempfile.TemporaryDirectory(prefix="kedge-quantize-") as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        try:
            quant_pre_process(str(model), str(prepared))
            quantize_static(
                str(prepared),
                str(out),
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=reduced,
                activation_type=kinds[target.int8.activations],
                weight_type=kinds[target.int8.weights],
            )
        except Exception as error:  # the quantiser raises many unrelated classes
            raise IncompatibleError(f"onnxruntime cannot quantise {model}: {first_line(error)}") from error
    return Quantized(target.int8.activations, target.int8.weights, reduced, len(batches))


def _batches(spec: ModelSpec, calibration: Mapping[str, NDArray[Any]]) -> list[dict[str, NDArray[Any]]]:
    samples = min((array.shape[0] for array in calibration.values() if array.ndim), default=0)
    size = next((tensor.shape[0] for tensor in spec.inputs if tensor.shape and tensor.shape[0] != DYNAMIC), 1)
    count = samples // max(size, 1)
    if count == 0:
        raise BadInputError(
            f"{samples} calibration samples do not fill one batch of {size}", hint="give a few hundred real samples"
        )
    return [
        {tensor.name: calibration[tensor.name][i * size : (i + 1) * size] for tensor in spec.inputs}
        for i in range(count)
    ]


def _reduced_range(scheme: Int8Scheme) -> bool:
    """Whether the processors this artefact must serve may lack the feature the scheme depends on."""
    if scheme.reduced_range_without is None:
        return False
    if platform.system() != "Linux":
        return True
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return True
    return scheme.reduced_range_without not in flags

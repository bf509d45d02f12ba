"""Ranges of inputs for which a model's accuracy was looked at: observed in calibration, or what its quantiser holds.

`kedge optimize` notes what it observed in the ONNX file (kedge.model.notes), `kedge build` writes it, or what a
QuantizeLinear behind the input can represent, into the manifest (docs/release-format.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import NodeProto

from kedge_agent.formats.artefact import CALIBRATION_DATA, QUANTIZER, read_calibrated
from kedge_agent.formats.reader import ManifestError, Reader
from kedge_agent.formats.tensors import BYTES

from .graph import Graph
from .onnx_io import ModelSpec
from .qdq_view import QdqView
from .samples import Samples

__all__ = ["observed_ranges", "stated_inputs"]

# The values of the input, one for one, in another order or shape.
_MOVING = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")

# The real values, in steps of the scale from the zero point, that are off by half a step at most when they are
# quantised. Largest finite values of FP8 and their last steps: ONNX, "Float stored in 8 bits".
_HELD: Mapping[str, tuple[float, float]] = {
    "int4": (-8.5, 7.5),
    "uint4": (-0.5, 15.5),
    "int8": (-128.5, 127.5),
    "uint8": (-0.5, 255.5),
    "int16": (-32768.5, 32767.5),
    "uint16": (-0.5, 65535.5),
    "fp8": (-464.0, 464.0),
    "fp8-e5m2": (-61440.0, 61440.0),
}


def observed_ranges(samples: Samples) -> dict[str, dict[str, str]]:
    """The least and the greatest value of each input, as decimal text.

    Inputs that hold text, NaN or infinity have none.
    """
    out = {}
    for name, array in samples.inputs.items():
        if array.dtype.kind in "biuf":
            ends = [array.min().item(), array.max().item()]
            if all(math.isfinite(end) for end in ends):
                out[name] = {"min": _text(ends[0]), "max": _text(ends[1])}
    return out


def stated_inputs(model: Path, spec: ModelSpec) -> list[dict[str, Any]]:
    """A model's inputs as a manifest states them, each with its calibrated range where one is known.

    Args:
        model: the file that `spec` was read from.
    """
    noted = spec.notes.get("calibrated", {})
    view = QdqView(Graph.read(model), ()) if spec.is_quantized else None
    out = []
    for tensor in spec.inputs:
        known = None if tensor.datatype == BYTES else _noted(noted.get(tensor.name))
        if known is None and view is not None:
            known = _representable(view, tensor.name)
        out.append(tensor.to_json() | ({} if known is None else {"calibrated": known}))
    return out


def _noted(entry: Any) -> dict[str, str] | None:
    """An entry of a note; None where it is no range: anyone may write into an ONNX file."""
    if not isinstance(entry, dict):
        return None
    stated = {**entry, "source": CALIBRATION_DATA}
    try:
        read_calibrated(Reader(dict(stated), "calibrated"))
    except ManifestError:
        return None
    return stated


def _representable(view: QdqView, name: str) -> dict[str, str] | None:
    """What all the QuantizeLinear nodes that an input feeds can hold; those without one constant scale do not count."""
    ranges = [held for node in _quantizers(view.graph, name) if (held := _held(view, node)) is not None]
    if not ranges:
        return None
    low, high = max(low for low, _ in ranges), min(high for _, high in ranges)
    return {"min": _text(low), "max": _text(high), "source": QUANTIZER} if low <= high else None


def _quantizers(graph: Graph, name: str) -> Iterator[NodeProto]:
    names = [name]
    while names:
        for node, index in graph.consumers.get(names.pop(), ()):
            if index == 0 and node.op_type == "QuantizeLinear":
                yield node
            elif index == 0 and node.op_type in _MOVING:
                names.append(node.output[0])


def _held(view: QdqView, node: NodeProto) -> tuple[float, float] | None:
    scale, zero = view.parameters(node)
    steps = _HELD.get(view.quantized_type(node))
    if scale is None or zero is None or steps is None or scale.size != 1 or zero.size != 1:
        return None
    step, offset = float(scale.item()), float(zero.item())
    low, high = ((end - offset) * step for end in steps)
    return (low, high) if step > 0 and np.isfinite([low, high]).all() else None


def _text(value: float) -> str:
    return repr(int(value) if isinstance(value, bool) else value)

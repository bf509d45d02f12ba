"""What kedge notes in an ONNX file's metadata.

How inputs are prepared, their range, what was done to the model, how accurate it was before and after, and which gates
it must pass on a device. The file carries them from `kedge optimize` to `kedge build`, which copies them
into the manifest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

__all__ = ["read_notes", "write_notes"]

_PREFIX = "kedge."
_KEYS = ("preprocess", "optimize", "calibrated", "gates", "accuracy")
_MAX_BYTES = 1 << 16


def write_notes(model: onnx.ModelProto, notes: Mapping[str, Any]) -> None:
    """Put notes into a model, in place of those it has. Numbers with a point become decimal text."""
    import onnx

    kept = [(entry.key, entry.value) for entry in model.metadata_props if not entry.key.startswith(_PREFIX)]
    written = [(f"{_PREFIX}{key}", json.dumps(_exact(value), sort_keys=True)) for key, value in notes.items()]
    onnx.helper.set_model_props(model, dict(kept + written))


def read_notes(model: onnx.ModelProto) -> dict[str, Any]:
    """The notes of a model. What is not ours, too long or no JSON object is left out: anyone may write there."""
    notes = {}
    for entry in model.metadata_props:
        key = entry.key.removeprefix(_PREFIX)
        if not entry.key.startswith(_PREFIX) or key not in _KEYS or len(entry.value) > _MAX_BYTES:
            continue
        try:
            value = json.loads(entry.value, parse_float=str, parse_constant=str)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            notes[key] = value
    return notes


def _exact(value: Any) -> Any:
    """The same without floating-point numbers, which a manifest does not hold."""
    if isinstance(value, float):
        return format(Decimal(repr(value)), "f") if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): _exact(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_exact(item) for item in value]
    return value

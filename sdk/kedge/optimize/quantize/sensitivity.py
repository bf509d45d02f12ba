"""What each layer alone costs in accuracy at each precision: one pass over the layers, kept for the next run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from ...model.samples import Samples
from ...model.session import ReferenceModel
from ..code import code_digest
from ..proof.runner import run_all
from ..spread import spread
from .static import StaticQuantizer, output_error

__all__ = ["measure_sensitivity"]

_SAMPLES = 64


def measure_sensitivity(quantizer: StaticQuantizer, precisions: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Relative squared error of the model's outputs when one layer alone is quantised: {layer: {precision: error}}.

    The sum over the layers of a plan is an estimate of its error, exact to first order where the
    errors of layers are independent (Zhou et al. 2018, "Adaptive Quantization for Deep Neural Network").
    """
    work = quantizer.work
    some = quantizer.samples.first(_SAMPLES)
    settings = quantizer.settings
    described = [
        code_digest(),
        quantizer.graph.digest,
        [digest.hex() for digest in quantizer.samples.digests()],
        work.target.int8.to_json(),
        list(precisions),
        [quantizer.calibrator, settings.percentile, settings.rounding, quantizer.reduced_range],
    ]
    key = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    path = work.cache / "sensitivity" / f"{key}.json"
    known = _read(path)
    if known is not None and set(known) == {node.name for node in quantizer.layers}:
        return known
    reference = run_all(quantizer.graph, some)
    pairs = [(node.name, precision) for node in quantizer.layers for precision in precisions]
    errors = spread(
        _error,
        _Judged(some, reference, faithful=quantizer.simulated),
        (quantizer.build({name: precision}).proto.SerializeToString() for name, precision in pairs),
        work.helpers,
    )
    found: dict[str, dict[str, float]] = {}
    for index, (name, precision) in enumerate(pairs):
        work.progress("sensitivity of the layers", index / len(pairs))
        found.setdefault(name, {})[precision] = next(errors)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found), encoding="utf-8")
    return found


@dataclass(frozen=True)
class _Judged:
    samples: Samples
    reference: Mapping[str, NDArray[Any]]
    faithful: bool


def _error(judged: _Judged, model: bytes) -> float:
    outputs = run_all(ReferenceModel(model, optimise=not judged.faithful), judged.samples)
    return output_error(judged.reference, outputs)


def _read(path: Any) -> dict[str, dict[str, float]] | None:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return body if isinstance(body, dict) else None
